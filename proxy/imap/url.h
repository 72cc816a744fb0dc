/*
 * The URL of a server in a referral, `imap://user;AUTH=*@host:port/...` (RFC 2221 4, RFC 5092 3), a
 * pure function. Of what names a mailbox, behind the host, nothing is read.
 */
#ifndef IMAPMUX_IMAP_URL_H
#define IMAPMUX_IMAP_URL_H

#include "proxy/base/address.h"
#include "proxy/base/span.h"

enum { URL_USER_MAX = 255, URL_MAX = 1024 };

struct url {
    char user[URL_USER_MAX + 1]; /* decoded; "" without: anonymous */
    char host[HOST_MAX];         /* a name or a number, without brackets */
    uint16_t port;               /* 0: not told */
};

/*
 * False for what is no such URL, is longer than URL_MAX octets, or has control characters in its
 * user, encoded or not. An "@" in the user should be encoded; servers do not, so the last one
 * counts.
 */
bool url_parse(struct span text, struct url *url_out);

#endif
