/* Owns the letters that go to and fro between a census and the workers, and what is copied. */
#include "proxy/fleet/census.h"

#include "proxy/base/clock.h"
#include "proxy/base/mem.h"
#include "proxy/session/entry.h"
#include "proxy/session/phase.h"
#include "proxy/session/users.h"

#include <stdio.h>

enum {
    VISITS_MAX = 256, /* of one step, as is */
    FOUND_MAX = 64,
    TOGETHER_MAX = 512 /* found in the steps of all workers: so many may come after a pause */
};

/* A worker's side. While its letter is on its way, or at the worker, only the worker touches it. */
struct census_part {
    struct letter letter; /* first member */
    struct census *census;
    size_t worker;
    bool begun, over, is_away;
    struct phase_walk walk;
    size_t count;
    struct census_session found[FOUND_MAX];
};

/* --- on the worker's thread --- */

static void copy(char *out, size_t size, const char *text)
{
    snprintf(out, size, "%s", text == NULL ? "" : text);
}

static void describe(const struct session *s, struct census_session *out)
{
    const struct home *home = s->home;
    const SSL *tls = conn_tls(s->client);
    uint64_t now = clock_ms();

    *out = (struct census_session){
        .phase = home->phases[s->phase].name,
        .tls = tls == NULL ? "none" : SSL_get_version(tls),
        .method = s->method == NULL ? "" : s->method,
        .lease = s->relayed ? entry_lease_kinds[s->lease_kind] : "",
        .peer = s->peer,
        .age_ms = now - s->accepted_ms,
        .has_user = users_has(s),
        .is_relayed = s->relayed,
    };
    copy(out->id, sizeof out->id, s->id);
    copy(out->user, sizeof out->user,
         s->user != NULL    ? users_name(s->user)
         : s->entry != NULL ? s->entry->user
                            : NULL);
    copy(out->master, sizeof out->master, s->entry != NULL ? s->entry->master : s->master);
    copy(out->shard, sizeof out->shard, s->shard == NULL ? NULL : s->shard->title);
    copy(out->listener, sizeof out->listener, s->listener->title);
    if (s->relayed) {
        out->store = s->store;
        out->idle_ms = uv_now(home->env.loop) - s->relay.last_active_ms;
        out->bytes_in = s->relay.bytes_from_client;
        out->bytes_out = s->relay.bytes_to_client;
        out->commands = dialog_command_count(&s->relay.dialog);
    }
}

/* One step: some more of the list. */
static void go_through(struct census_part *part)
{
    const struct census *census = part->census;
    const struct session *s;

    part->count = 0;
    for (size_t i = 0; i < VISITS_MAX && part->count < census->step_max; i++) {
        s = phase_walk_next(&part->walk);
        part->over = s == NULL;
        if (part->over)
            return;
        describe(s, &part->found[part->count]);
        if (census->wants == NULL || census->wants(census, &part->found[part->count]))
            part->count++;
    }
}

static void come_back(struct letter *letter, void *receiver);

static void visit(struct letter *letter, void *receiver)
{
    struct census_part *part = (struct census_part *)letter;
    struct census *census = part->census;

    if (!part->begun)
        phase_walk_begin(&part->walk, receiver);
    part->begun = true;
    if (atomic_load(&census->cancelled)) {
        phase_walk_end(&part->walk);
        part->over = true;
    } else {
        go_through(part);
    }
    letter->deliver = come_back;
    inbox_post(&census->control->inbox, letter); /* open until workers have ended */
}

/* --- on the control thread --- */

static void post(struct census_part *part)
{
    part->letter.deliver = visit;
    part->is_away = true;
    workers_post(part->census->control->workers, part->worker, &part->letter);
}

/* The walk is where no worker is any more: nobody follows it. */
static bool workers_have_ended(const struct census *census)
{
    return census->control->workers == NULL;
}

static void end_part(struct census_part *part)
{
    struct census *census = part->census;

    if (--census->parts_left > 0)
        return;
    mem_free(census->parts);
    census->on_done(census);
}

static void come_back(struct letter *letter, void *receiver)
{
    struct census_part *part = (struct census_part *)letter;
    struct census *census = part->census;

    (void)receiver;
    part->is_away = false;
    if (part->count > 0 && !atomic_load(&census->cancelled))
        census->on_sessions(census, part->found, part->count);
    if (part->over || workers_have_ended(census))
        end_part(part);
    else if (!census->paused && !part->is_away)
        post(part);
}

bool census_begin(struct census *census, struct control *control)
{
    census->control = control;
    census->part_count = census->parts_left = workers_count(control->workers);
    census->parts = mem_array(census->part_count, sizeof *census->parts);
    census->step_max = TOGETHER_MAX / census->part_count;
    census->step_max = census->step_max > FOUND_MAX ? FOUND_MAX
                       : census->step_max == 0      ? 1
                                                    : census->step_max;
    census->paused = false;
    atomic_store(&census->cancelled, false);
    for (size_t i = 0; census->parts != NULL && i < census->part_count; i++) {
        census->parts[i].census = census;
        census->parts[i].worker = i;
        post(&census->parts[i]);
    }
    return census->parts != NULL;
}

void census_pause(struct census *census)
{
    census->paused = true;
}

void census_go_on(struct census *census)
{
    if (!census->paused)
        return;
    census->paused = false;
    for (size_t i = 0; i < census->part_count; i++)
        if (!census->parts[i].over && !census->parts[i].is_away)
            post(&census->parts[i]);
}

void census_cancel(struct census *census)
{
    atomic_store(&census->cancelled, true);
    census->paused = true; /* so that those who rest are sent once more, to end */
    census_go_on(census);
}
