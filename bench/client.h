/*
 * One client of a run: a connection with TLS, the commands it gives, and the answers it insists
 * on. A client is ready, waits for the start, works, and is finished; it tells so in the run's
 * counts.
 */
#ifndef IMAPMUX_BENCH_CLIENT_H
#define IMAPMUX_BENCH_CLIENT_H

#include "bench/run.h"

#include <stdint.h>

struct client;

/* Ends the program when there is no memory. The run lives longer. `number` chooses the address. */
struct client *client_new(struct run *run, unsigned number);

/* Does what comes before the start: opens the connection, or nothing if each unit has its own. */
void client_prepare(struct client *client);

/* The start: of a client that is ready. */
void client_start(struct client *client);

/* What epoll has reported with the client as its pointer. */
void client_event(struct client *client, uint32_t events);

/* With a rate: so many more octets may be read now. */
void client_allow(struct client *client, uint64_t octets);

void client_free(struct client *client);

/* For the context of the run: gives tickets to the client whose connection they came on. */
void client_keep_tickets(SSL_CTX *context);

#endif
