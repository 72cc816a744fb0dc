/*
 * What is said to a store to log a user in: ID (RFC 2971), then AUTHENTICATE PLAIN or LOGIN, as the
 * store can and the shard's settings want. Bytes only: backend sends them.
 */
#ifndef IMAPMUX_STORE_STORE_LOGIN_H
#define IMAPMUX_STORE_STORE_LOGIN_H

#include "proxy/base/address.h"
#include "proxy/base/buf.h"
#include "proxy/base/conf.h"

/* Who logs in, and where the client is. */
struct store_client {
    const char *user;              /* name at the store */
    const struct secret *password; /* the user's own; NULL: it has come without */
    const struct secret *token;    /* the user's own, for OAUTHBEARER or XOAUTH2; NULL without */
    const char *master;            /* who logs in as the user; NULL: the user itself */
    const char *session_id;
    struct span id;     /* the client's ID fields, `"name" "value" ...`; may be empty */
    unsigned proxy_ttl; /* how many more proxies may follow; at least 1 */
    const char *tls_version, *tls_cipher; /* of the client's connection; NULL in clear */
    union address address, local;         /* of the client's connection, as the client sees it */
};

enum store_login_way {
    STORE_LOGIN_NONE,
    STORE_LOGIN_PASSWORD,
    STORE_LOGIN_MASTER_AUTHZID,
    STORE_LOGIN_MASTER_SUFFIX,
    STORE_LOGIN_OAUTHBEARER,
    STORE_LOGIN_XOAUTH2
};

/*
 * The tagged commands I (ID) and L (the login) in pieces: what goes at once, and what answers the
 * first and the second "+". All are wiped on release.
 */
struct store_login {
    enum store_login_way way;
    struct buf now, on_plus, on_second_plus;
};

void store_login_init(struct store_login *login);
void store_login_release(struct store_login *login);

/*
 * Whether the store, by its capabilities, offers a way to log in that the shard's settings can
 * take.
 */
bool store_login_possible(const struct conf_shard *shard, struct span capabilities);

/*
 * How this client is logged in at a store with these capabilities: NONE if the store does not offer
 * what the shard's settings want, or if it came without a password, and neither may it be logged in
 * by the shard's master user nor its token be passed on.
 */
enum store_login_way store_login_way(const struct conf_shard *shard, struct span capabilities,
                                     const struct store_client *client);

/* The same at a store that can do everything. */
enum store_login_way store_login_foreseen(const struct conf_shard *shard,
                                          const struct store_client *client);

/* Whether that is any at all. */
bool store_login_is_foreseen(const struct conf_shard *shard, const struct store_client *client);

/* For people: "master_suffix", or "none". */
const char *store_login_name(enum store_login_way way);

/* Whether that way is with the user's own password or token, so that the user may be wrong. */
bool store_login_is_own(enum store_login_way way);

/* Writes the pieces, for a way that is not NONE; false when something does not fit. */
bool store_login_write(struct store_login *login, const struct conf_shard *shard,
                       struct span capabilities, const struct store_client *client);

#endif
