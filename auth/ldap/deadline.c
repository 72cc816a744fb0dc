/*
 * Owns a layer between libldap's TLS and its socket, which waits before it reads. Where the
 * deadline is per thread, nothing has to live as long as the connection.
 */
#include "auth/ldap/deadline.h"

#include "proxy/base/clock.h"

#include <errno.h>
#include <poll.h>
#include <uv.h>

static _Thread_local uint64_t deadline_ms, limit_ms; /* by clock_ms; 0: there is none */

void ldap_deadline_begin(uint64_t limit)
{
    limit_ms = limit;
    deadline_ms = clock_ms() + limit;
}

void ldap_deadline_end(void)
{
    deadline_ms = 0;
}

uint64_t ldap_deadline_left(void)
{
    uint64_t now = clock_ms();

    return now < deadline_ms ? deadline_ms - now : 0;
}

static bool wait_until_readable(Sockbuf *sockbuf)
{
    struct pollfd poll_fd = {.fd = -1, .events = POLLIN};
    int count;

    if (ber_sockbuf_ctrl(sockbuf, LBER_SB_OPT_GET_FD, &poll_fd.fd) != 1)
        return false;
    do
        count = poll(&poll_fd, 1, (int)ldap_deadline_left());
    while (count < 0 && errno == EINTR);
    if (count == 0)
        errno = ETIMEDOUT;
    return count > 0;
}

static ber_slen_t layer_read(Sockbuf_IO_Desc *layer, void *bytes, ber_len_t size)
{
    if (deadline_ms != 0 && LBER_SBIOD_CTRL_NEXT(layer, LBER_SB_OPT_DATA_READY, NULL) <= 0 &&
        !wait_until_readable(layer->sbiod_sb))
        return -1;
    return LBER_SBIOD_READ_NEXT(layer, bytes, size);
}

static ber_slen_t layer_write(Sockbuf_IO_Desc *layer, void *bytes, ber_len_t size)
{
    return LBER_SBIOD_WRITE_NEXT(layer, bytes, size);
}

static int layer_control(Sockbuf_IO_Desc *layer, int option, void *argument)
{
    return LBER_SBIOD_CTRL_NEXT(layer, option, argument);
}

static Sockbuf_IO layer_calls = {
    .sbi_ctrl = layer_control, .sbi_read = layer_read, .sbi_write = layer_write};

/* The socket is connected; TLS comes next. */
static int connected(LDAP *ldap, Sockbuf *sockbuf, LDAPURLDesc *url, struct sockaddr *address,
                     struct ldap_conncb *callback)
{
    enum { ABOVE_THE_SOCKET = (LBER_SBIOD_LEVEL_PROVIDER + LBER_SBIOD_LEVEL_TRANSPORT) / 2 };

    (void)ldap;
    (void)url;
    (void)address;
    (void)callback;
    if (deadline_ms != 0)
        ldap_deadline_begin(limit_ms);
    return ber_sockbuf_add_io(sockbuf, &layer_calls, ABOVE_THE_SOCKET, NULL);
}

static void disconnected(LDAP *ldap, Sockbuf *sockbuf, struct ldap_conncb *callback)
{
    (void)ldap;
    (void)sockbuf;
    (void)callback;
}

bool ldap_deadline_install(LDAP *ldap)
{
    static struct ldap_conncb callback = {.lc_add = connected, .lc_del = disconnected};

    return ldap_set_option(ldap, LDAP_OPT_CONNECT_CB, &callback) == LDAP_OPT_SUCCESS;
}
