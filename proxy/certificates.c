/* Owns which set of TLS contexts is in force. */
#include "proxy/certificates.h"

static void put_in_force(struct control *control, const struct tls *tls)
{
    tls_hold(tls);
    tls_release(&control->tls);
    control->tls = tls;
    gauge_set(&control->env.counters->certificate_not_after, (uint64_t)tls_not_after(tls));
}

void certificates_open(struct control *control, const struct tls *tls)
{
    put_in_force(control, tls);
}

void certificates_close(struct control *control)
{
    tls_release(&control->tls);
}

bool certificates_use(struct control *control, const struct tls *tls, struct err *err)
{
    if (!workers_use_tls(control->workers, tls, err))
        return false;
    if (control->health != NULL)
        health_use_tls(control->health, tls);
    put_in_force(control, tls);
    return true;
}
