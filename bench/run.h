/* What all clients of one run share: what to do, and what has been done. */
#ifndef IMAPMUX_BENCH_RUN_H
#define IMAPMUX_BENCH_RUN_H

#include "bench/samples.h"

#include <openssl/ssl.h>
#include <stdbool.h>

enum command { NONE, GREETING, LOGIN, SELECT, FETCH, APPEND, NOOP, IDLE, WAKE_UP, LOGOUT };

enum { OPENING_MAX = 4 };

/*
 * A client gives the commands of `opening` once for each connection. Then it gives `repeated`
 * again and again, each time a unit of work; or, if that is NONE, waits for the server to close,
 * and the whole connection was the unit. The time of a unit is that from its start to the answer
 * to `measured`.
 */
struct workload {
    const char *name;
    enum command opening[OPENING_MAX];
    enum command repeated, measured;
};

struct run {
    const struct workload *workload;
    SSL_CTX *tls; /* NULL: plain text */
    int epoll;
    uint16_t port;
    unsigned sources;      /* clients come from so many addresses, 127.0.0.1 and up */
    unsigned first_user;   /* connections log in as user0, user1, ... if this is 0, in turn */
    unsigned users;        /* so many, and again from the first */
    const char *password;  /* of all of them */
    uint64_t size;         /* of a body */
    uint64_t rate;         /* a client reads so many octets in a second; 0: all it can */
    bool resume;           /* TLS sessions; a client's first connection is no unit then */
    bool late_acks;        /* the kernel acknowledges when it likes, not at once */
    uint64_t units_wanted; /* 0: no limit but the time */
    uint64_t ends_ns;      /* no unit begins after this */

    bool going; /* units are done and counted */
    uint64_t connections, units_begun, units_done, resumed, bytes_in, bytes_out, errors;
    unsigned ready, finished; /* clients */
    struct samples samples;
};

/* Counts an error, and prints it: what went wrong, and the words that show it. */
void run_error(struct run *run, const char *what, const char *words);

#endif
