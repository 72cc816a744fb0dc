/* Owns the change from one set of TLS contexts to the next. */
#include "proxy/certificates.h"

bool certificates_use(struct control *control, const struct tls *tls, struct err *err)
{
    if (!workers_use_tls(control->workers, tls, err))
        return false;
    if (control->health != NULL)
        health_use_tls(control->health, tls);
    tls_hold(tls);
    tls_release(&control->tls);
    control->tls = tls;
    return true;
}
