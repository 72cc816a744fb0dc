/* What a client says of itself by ID (RFC 2971), for the store to hear. */
#ifndef IMAPMUX_SESSION_CLIENT_ID_H
#define IMAPMUX_SESSION_CLIENT_ID_H

#include "proxy/base/buf.h"
#include "proxy/imap/args.h"

enum { CLIENT_ID_MAX = 2048, CLIENT_ID_PROXY_TTL = 4 };

struct client_id {
    struct buf fields;  /* but x-*, as `"name" "value" ...` */
    unsigned proxy_ttl; /* how many proxies may follow: by its x-proxy-ttl, else the one above */
};

void client_id_init(struct client_id *id);
void client_id_release(struct client_id *id); /* and may be used again */

/*
 * Reads the arguments of an ID command, in place of what was there; false when they are malformed.
 */
bool client_id_read(struct client_id *id, struct args *args);

#endif
