/* No name may end the value it is put into; libldap must read the DN as one, with the name as its
 * value. */
#include "auth/ldap/escape.h"

#include <assert.h>
#include <ldap.h>
#include <stdint.h>
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_filter(struct span name, struct buf *out)
{
    assert(ldap_escape_expand("%{user}", name, LDAP_ESCAPE_FILTER, out, NULL));

    struct span text = buf_span(out);

    for (size_t i = 0; i < text.len; i++)
        assert(memchr("()*", text.ptr[i], 3) == NULL && text.ptr[i] != '\0');
}

/* libldap wants UTF-8 in the rest of a DN's string form, so the name is taken as ASCII. */
static void check_dn(struct span name, struct buf *out)
{
    LDAPDN dn = NULL;

    assert(ldap_escape_expand("uid=%{user},dc=x", name, LDAP_ESCAPE_DN, out, NULL));
    assert(buf_append(out, (struct span){"", 1}));
    assert(ldap_str2dn(buf_span(out).ptr, &dn, LDAP_DN_FORMAT_LDAPV3) == LDAP_SUCCESS);
    assert(dn[0] != NULL && dn[1] != NULL && dn[2] == NULL && dn[0][0] != NULL && dn[0][1] == NULL);

    struct berval value = dn[0][0]->la_value;

    assert(span_equal((struct span){value.bv_val, value.bv_len}, name));
    ldap_dnfree(dn);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char name[256];
    struct err err = {0};
    struct buf out;

    if (size >= sizeof name)
        return 0;
    buf_init(&out, 4096);
    check_filter((struct span){(const char *)data, size}, &out);
    buf_release(&out);
    for (size_t i = 0; i < size; i++)
        name[i] = (char)(data[i] & 0x7f);
    name[size] = '\0';
    if (size > 0)
        check_dn((struct span){name, size}, &out);
    buf_release(&out);
    (void)ldap_escape_expand(name, span_of("ann@example"), LDAP_ESCAPE_DN, &out, &err);
    buf_release(&out);
    return 0;
}
