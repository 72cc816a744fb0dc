/*
 * Owns which set of TLS contexts is in force, and the watch on its files. A look, and reading them,
 * is the work of a pool thread: whatever hangs, the loop does not. Files are read when they have
 * changed and then rested between two looks, for a certificate and its key come one after the
 * other; a set that is not good is left alone until they change again.
 */
#include "proxy/process/certificates.h"

#include "proxy/base/log.h"
#include "proxy/base/mem.h"
#include "proxy/net/tickets.h"
#include "proxy/net/tls_files.h"
#include "proxy/process/expiry.h"
#include "proxy/process/ticket_rotation.h"

#include <time.h>

enum { REST_MS = 1000 };

struct certificates {
    struct control *control;
    struct expiry *expiry;
    struct ticket_rotation *rotation; /* NULL where ticket keys are of a file */
    uv_timer_t timer;
    struct tls_files *seen; /* changed, and not read yet; NULL: all is as it was read */
    struct tls_files *bad;  /* what was no good; NULL: the last ones read were */
    bool looking, closing, timer_closed;

    /* A look: the thread's while it runs, which may read `seen` and `bad`, too. */
    uv_work_t work;
    struct {
        const struct tls *in_force; /* held: it was so when the look began */
        struct tls_files *files;    /* as they were at its end; NULL without memory */
        bool changed, read;
        const struct tls *tls; /* what they make; NULL: not good, or not read */
        struct err err;
    } look;
};

static void on_timer(uv_timer_t *timer);
static void look(uv_work_t *work);
static void on_looked(uv_work_t *work, int status);

/* --- the set in force --- */

/* When to look at the files next; a look that is under way calls this at its end. */
static void schedule(struct certificates *certificates)
{
    uint64_t watch = tls_configuration(certificates->control->tls)->tls.watch;
    bool soon = certificates->seen != NULL && watch > REST_MS;

    uv_timer_stop(&certificates->timer);
    if (watch > 0 && !certificates->looking)
        uv_timer_start(&certificates->timer, on_timer, soon ? REST_MS : watch, 0);
}

/* Of another set, or what has been dealt with. */
static void forget_files(struct certificates *certificates)
{
    tls_files_free(&certificates->seen);
    tls_files_free(&certificates->bad);
}

static void put_in_force(struct certificates *certificates, const struct tls *tls)
{
    struct control *control = certificates->control;

    tls_hold(tls);
    tls_release(&control->tls);
    control->tls = tls;
    gauge_set(&control->env.counters->certificate_not_after, (uint64_t)tls_not_after(tls));
    if (!certificates->looking) /* else the thread may read them */
        forget_files(certificates);
    if (certificates->rotation != NULL)
        ticket_rotation_set(certificates->rotation, &tls_configuration(tls)->tls);
    else
        tls_use_ticket_keys(tls);
    schedule(certificates);
    expiry_watch(certificates->expiry, tls);
}

void certificates_follow(struct certificates *certificates, const struct tls *tls)
{
    put_in_force(certificates, tls);
}

struct certificates *certificates_open(struct control *control, const struct tls *tls,
                                       struct err *err)
{
    struct certificates *certificates = mem_new(sizeof *certificates);
    const struct conf_tls *conf = &tls_configuration(tls)->tls;

    if (certificates == NULL) {
        err_set(err, ERR_INTERNAL, "no memory for certificates");
        return NULL;
    }
    certificates->control = control;
    certificates->work.data = certificates;
    uv_timer_init(control->env.loop, &certificates->timer);
    certificates->timer.data = certificates;
    certificates->expiry = expiry_open(control->env.loop, err);
    if (conf->ticket_keys != TICKET_KEYS_FILE)
        certificates->rotation = ticket_rotation_open(&control->env, conf, err);
    if (certificates->expiry != NULL &&
        (certificates->rotation != NULL || conf->ticket_keys == TICKET_KEYS_FILE))
        put_in_force(certificates, tls);
    else
        certificates_close(&certificates);
    return certificates;
}

bool certificates_use(struct certificates *certificates, const struct tls *tls, struct err *err)
{
    struct control *control = certificates->control;

    if (!workers_use_tls(control->workers, tls, err))
        return false;
    if (control->health != NULL)
        health_use_tls(control->health, tls);
    put_in_force(certificates, tls);
    return true;
}

static void free_when_done(struct certificates *certificates)
{
    if (!certificates->timer_closed || certificates->looking)
        return;
    forget_files(certificates);
    mem_free(certificates);
}

static void timer_closed(uv_handle_t *handle)
{
    struct certificates *certificates = handle->data;

    certificates->timer_closed = true;
    free_when_done(certificates);
}

void certificates_close(struct certificates **certificates)
{
    struct certificates *c = *certificates;

    *certificates = NULL;
    if (c == NULL)
        return;
    c->closing = true;
    expiry_close(&c->expiry);
    ticket_rotation_close(&c->rotation);
    tickets_forget();
    tls_release(&c->control->tls);
    if (c->looking)
        (void)uv_cancel((uv_req_t *)&c->work); /* on_looked comes either way */
    uv_close((uv_handle_t *)&c->timer, timer_closed);
}

/* --- the watch --- */

static void on_timer(uv_timer_t *timer)
{
    struct certificates *certificates = timer->data;

    certificates->looking = true;
    certificates->look.in_force = tls_hold(certificates->control->tls);
    /* fails only without a callback */
    uv_queue_work(timer->loop, &certificates->work, look, on_looked);
}

static bool is_news(const struct certificates *certificates, const struct tls_files *files)
{
    return !tls_files_same(files, tls_made_of(certificates->look.in_force)) &&
           (certificates->bad == NULL || !tls_files_same(files, certificates->bad));
}

/* In a pool thread. */
static void look(uv_work_t *work)
{
    struct certificates *certificates = work->data;
    const struct conf *conf = tls_configuration(certificates->look.in_force);
    struct tls_files *files = tls_files_look(conf);

    certificates->look.changed = files != NULL && is_news(certificates, files);
    certificates->look.read = certificates->look.changed && certificates->seen != NULL &&
                              tls_files_same(files, certificates->seen);
    if (certificates->look.read) {
        certificates->look.tls = tls_open(conf, &certificates->look.err);

        struct tls_files *after = tls_files_look(conf);

        /* If it was written meanwhile, it is read once more. */
        certificates->look.read = after != NULL && tls_files_same(files, after);
        tls_files_free(&files);
        files = after;
    }
    certificates->look.files = files;
}

static void tell_good(const struct tls *tls)
{
    time_t first = tls_not_after(tls);
    char date[sizeof "2026-01-01T00:00:00Z"];
    struct tm parts;

    gmtime_r(&first, &parts);
    if (strftime(date, sizeof date, "%Y-%m-%dT%H:%M:%SZ", &parts) > 0)
        log_event(LOG_LEVEL_INFO, "certificates read", "%zu; the first expires %s",
                  tls_certificate_count(tls), date);
}

/* What was read, and rested. Without memory it is read again. */
static void take_read(struct certificates *certificates)
{
    const struct tls *tls = certificates->look.tls;
    struct err *err = &certificates->look.err;

    if (tls != NULL && certificates_use(certificates, tls, err)) {
        tell_good(tls);
        return;
    }
    if (err->kind != ERR_INTERNAL) {
        tls_files_free(&certificates->bad);
        certificates->bad = certificates->look.files;
        certificates->look.files = NULL;
    }
    log_event(LOG_LEVEL_ERROR, "certificates not read", "%s; those read before stay", err->text);
}

static void take_look(struct certificates *certificates)
{
    tls_files_free(&certificates->seen);
    if (certificates->look.read) {
        take_read(certificates);
    } else if (certificates->look.changed) {
        certificates->seen = certificates->look.files;
        certificates->look.files = NULL;
    }
}

static void on_looked(uv_work_t *work, int status)
{
    struct certificates *certificates = work->data;
    struct control *control = certificates->control;

    (void)status; /* cancelled only by certificates_close */
    certificates->looking = false;
    if (!certificates->closing) {
        if (control->tls == certificates->look.in_force && control->workers != NULL)
            take_look(certificates);
        else
            forget_files(certificates);
        schedule(certificates);
    }
    tls_files_free(&certificates->look.files);
    tls_release(&certificates->look.tls);
    tls_release(&certificates->look.in_force);
    certificates->look.err = (struct err){0};
    if (certificates->closing)
        free_when_done(certificates);
}

void certificates_print_metrics(const struct control *control, FILE *out)
{
    static const char name[] = "imapmux_certificate_expiry_seconds";
    size_t count = control->tls == NULL ? 0 : tls_certificate_count(control->tls);

    if (count > 0)
        fprintf(out,
                "# HELP %s When a certificate for clients expires, in unix seconds.\n"
                "# TYPE %s gauge\n",
                name, name);
    for (size_t i = 0; i < count; i++) {
        struct tls_certificate certificate;

        tls_certificate(control->tls, i, &certificate);
        fprintf(out, "%s{certificate=\"", name);
        metrics_print_label(out, certificate.title);
        fputs("\",name=\"", out);
        metrics_print_label(out, certificate.name);
        fprintf(out, "\"} %lld\n", (long long)certificate.not_after);
    }
}
