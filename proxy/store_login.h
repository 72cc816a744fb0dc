/*
 * What is said to a store to log a user in: ID (RFC 2971), then AUTHENTICATE PLAIN or LOGIN, as the
 * store can and the shard's settings want. Bytes only: backend sends them.
 */
#ifndef IMAPMUX_PROXY_STORE_LOGIN_H
#define IMAPMUX_PROXY_STORE_LOGIN_H

#include "proxy/base/address.h"
#include "proxy/base/buf.h"
#include "proxy/base/conf.h"

/* Who logs in, and where the client is. */
struct store_client {
    const char *user;              /* name at the store */
    const struct secret *password; /* the client's own; used when the shard says login = password */
    const char *session_id;
    struct span id;     /* the client's ID fields, `"name" "value" ...`; may be empty */
    unsigned proxy_ttl; /* how many more proxies may follow; at least 1 */
    const char *tls_version, *tls_cipher; /* of the client's connection; NULL in clear */
    union address address, local;         /* of the client's connection, as the client sees it */
};

/*
 * The tagged commands I (ID) and L (the login) in pieces: what goes at once, and what answers the
 * first and the second "+". All are wiped on release.
 */
struct store_login {
    struct buf now, on_plus, on_second_plus;
};

void store_login_init(struct store_login *login);
void store_login_release(struct store_login *login);

/*
 * Whether the store, by its capabilities, offers a way to log in that the shard's settings can
 * take.
 */
bool store_login_possible(const struct conf_shard *shard, struct span capabilities);

/* Writes the pieces; false when something does not fit. */
bool store_login_write(struct store_login *login, const struct conf_shard *shard,
                       struct span capabilities, const struct store_client *client);

#endif
