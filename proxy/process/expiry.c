/* Owns what has been told of the dates of the certificates in force. */
#include "proxy/process/expiry.h"

#include "proxy/base/log.h"
#include "proxy/base/mem.h"

#include <time.h>

enum { LOOK_EACH_MS = 60 * 1000, SOON_MOST_S = 14 * 24 * 60 * 60 };

/* Of one certificate: what the log has. */
struct told {
    enum expiry_state certificate, ocsp;
};

struct expiry {
    uv_timer_t timer;
    const struct tls *tls; /* held; NULL before the first */
    struct told *told;     /* of each; NULL without memory, then nothing is told */
};

enum expiry_state expiry_state(int64_t from, int64_t until, int64_t now)
{
    int64_t soon = (until - from) / 4;

    if (now >= until)
        return EXPIRY_PAST;
    return now >= until - (soon < SOON_MOST_S ? soon : SOON_MOST_S) ? EXPIRY_SOON : EXPIRY_FAR;
}

static const char *date(int64_t at, char out[32])
{
    time_t seconds = at;
    struct tm parts;

    gmtime_r(&seconds, &parts);
    return strftime(out, 32, "%Y-%m-%dT%H:%M:%SZ", &parts) > 0 ? out : "?";
}

static void tell_certificate(const struct tls_certificate *certificate, enum expiry_state state)
{
    char text[32];

    if (state == EXPIRY_SOON)
        log_event(LOG_LEVEL_WARNING, "certificate expires", "%s (%s): %s", certificate->file,
                  certificate->name, date(certificate->not_after, text));
    else if (state == EXPIRY_PAST)
        log_event(LOG_LEVEL_ERROR, "certificate has expired", "%s (%s): %s", certificate->file,
                  certificate->name, date(certificate->not_after, text));
}

static void tell_ocsp(const struct tls_certificate *certificate, enum expiry_state state)
{
    char text[32];

    if (state == EXPIRY_SOON)
        log_event(LOG_LEVEL_WARNING, "OCSP response expires", "%s: %s", certificate->ocsp_file,
                  date(certificate->ocsp.next_update, text));
    else if (state == EXPIRY_PAST)
        log_event(LOG_LEVEL_WARNING, "OCSP response not served", "%s: it has expired at %s",
                  certificate->ocsp_file, date(certificate->ocsp.next_update, text));
}

static void look(struct expiry *expiry)
{
    int64_t now = time(NULL);

    for (size_t i = 0; expiry->told != NULL && i < tls_certificate_count(expiry->tls); i++) {
        struct told *told = &expiry->told[i];
        struct tls_certificate certificate;

        tls_certificate(expiry->tls, i, &certificate);

        const struct ocsp_dates *ocsp = &certificate.ocsp;
        struct told state = {expiry_state(certificate.not_before, certificate.not_after, now),
                             ocsp->next_update == 0
                                 ? EXPIRY_FAR
                                 : expiry_state(ocsp->this_update, ocsp->next_update, now)};

        if (state.certificate != told->certificate)
            tell_certificate(&certificate, state.certificate);
        if (state.ocsp != told->ocsp)
            tell_ocsp(&certificate, state.ocsp);
        *told = state;
    }
}

static void on_timer(uv_timer_t *timer)
{
    look(timer->data);
}

struct expiry *expiry_open(uv_loop_t *loop, struct err *err)
{
    struct expiry *expiry = mem_new(sizeof *expiry);

    if (expiry == NULL) {
        err_set(err, ERR_INTERNAL, "no memory for certificates");
        return NULL;
    }
    uv_timer_init(loop, &expiry->timer);
    expiry->timer.data = expiry;
    uv_timer_start(&expiry->timer, on_timer, LOOK_EACH_MS, LOOK_EACH_MS);
    return expiry;
}

void expiry_watch(struct expiry *expiry, const struct tls *tls)
{
    tls_hold(tls);
    tls_release(&expiry->tls);
    expiry->tls = tls;
    mem_free(expiry->told);
    expiry->told = mem_array(tls_certificate_count(tls) + 1, sizeof *expiry->told);
    look(expiry);
}

static void timer_closed(uv_handle_t *handle)
{
    mem_free(handle->data);
}

void expiry_close(struct expiry **expiry)
{
    struct expiry *e = *expiry;

    *expiry = NULL;
    if (e == NULL)
        return;
    tls_release(&e->tls);
    mem_free(e->told);
    uv_close((uv_handle_t *)&e->timer, timer_closed);
}
