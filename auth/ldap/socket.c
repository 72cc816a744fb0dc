/* Owns nothing but the layer's verbs: the layer itself is the socket's, and goes with it. */
#include "auth/ldap/socket.h"

#include "proxy/base/secret.h"

#include <lber.h>

static int control(Sockbuf_IO_Desc *layer, int option, void *argument)
{
    return LBER_SBIOD_CTRL_NEXT(layer, option, argument);
}

static ber_slen_t read_some(Sockbuf_IO_Desc *layer, void *bytes, ber_len_t size)
{
    return LBER_SBIOD_READ_NEXT(layer, bytes, size);
}

/* Referrals, for which libldap would want to read a request again, are off. */
static ber_slen_t write_and_wipe(Sockbuf_IO_Desc *layer, void *bytes, ber_len_t len)
{
    ber_slen_t written = LBER_SBIOD_WRITE_NEXT(layer, bytes, len);

    if (written > 0)
        secret_wipe(bytes, (size_t)written);
    return written;
}

bool ldap_socket_wipe_requests(LDAP *ldap)
{
    static Sockbuf_IO verbs = {
        .sbi_ctrl = control, .sbi_read = read_some, .sbi_write = write_and_wipe};
    Sockbuf *socket = NULL;

    return ldap_get_option(ldap, LDAP_OPT_SOCKBUF, &socket) == LDAP_OPT_SUCCESS && socket != NULL &&
           ber_sockbuf_add_io(socket, &verbs, LBER_SBIOD_LEVEL_APPLICATION, NULL) == 0;
}
