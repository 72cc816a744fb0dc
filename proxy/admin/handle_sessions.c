/*
 * Owns the command `sessions`: which ones are wanted, their order, and how they are told as the
 * client takes them.
 */
#include "proxy/admin/handlers.h"

#include "auth/username.h"
#include "proxy/base/mem.h"
#include "proxy/fleet/census.h"

#include <stdlib.h>

enum {
    QUEUE_MAX = 256 * 1024, /* of items that the client has not taken; then it is waited for */
    SORTED_MAX = 10000,     /* those that come first in the order, of all */
    LIMIT_MAX = 1000000
};

typedef int compare_sessions(const void *a, const void *b);

struct sessions {
    struct census census;    /* first member */
    struct admin_call *call; /* NULL: nobody waits for the answer any more */
    /* Which ones; read by workers, too, so nothing of it changes. */
    char user[USERNAME_MAX + 1];
    const char *shard, *listener; /* NULL: any; borrowed from the call, so copied, */
    char *texts[2];               /* here */
    char phase[16];
    struct network network;
    bool by_address;
    /* In which order, and how many. */
    compare_sessions *compare; /* NULL: as they come */
    size_t limit;
    bool has_limit;
    struct census_session *sorted; /* the first ones so far, and behind them some that are not */
    size_t sorted_count, sorted_room;
    size_t told;
    bool is_counted; /* the census is over */
    bool is_cut;
    bool out_of_memory;
};

/* --- on workers' threads --- */

static bool wants(const struct census *census, const struct census_session *session)
{
    const struct sessions *sessions = (const struct sessions *)census;

    return (*sessions->user == '\0' || strcmp(session->user, sessions->user) == 0) &&
           (sessions->shard == NULL || strcmp(session->shard, sessions->shard) == 0) &&
           (sessions->listener == NULL || strcmp(session->listener, sessions->listener) == 0) &&
           (*sessions->phase == '\0' || strcmp(session->phase, sessions->phase) == 0) &&
           (!sessions->by_address || network_contains(&sessions->network, &session->peer));
}

/* --- the order --- */

/* The larger one first. */
static int compare_numbers(uint64_t a, uint64_t b)
{
    return (a < b) - (a > b);
}

static int by_age(const void *a, const void *b)
{
    return compare_numbers(((const struct census_session *)a)->age_ms,
                           ((const struct census_session *)b)->age_ms);
}

static int by_idle(const void *a, const void *b)
{
    return compare_numbers(((const struct census_session *)a)->idle_ms,
                           ((const struct census_session *)b)->idle_ms);
}

static int by_bytes(const void *a, const void *b)
{
    const struct census_session *one = a, *other = b;

    return compare_numbers(one->bytes_in + one->bytes_out, other->bytes_in + other->bytes_out);
}

static int by_user(const void *a, const void *b)
{
    const struct census_session *one = a, *other = b;
    int order = strcmp(one->user, other->user);

    return order != 0 ? order : by_age(a, b);
}

static compare_sessions *order_of(const char *word)
{
    static const struct {
        const char *word;
        compare_sessions *compare;
    } orders[] = {{"age", by_age}, {"idle", by_idle}, {"bytes", by_bytes}, {"user", by_user}};

    for (size_t i = 0; word != NULL && i < sizeof orders / sizeof *orders; i++)
        if (strcmp(word, orders[i].word) == 0)
            return orders[i].compare;
    return NULL;
}

/* Puts the first ones in order, and forgets those that are none of them. */
static void sort(struct sessions *sessions)
{
    if (sessions->sorted_count > 0)
        qsort(sessions->sorted, sessions->sorted_count, sizeof *sessions->sorted,
              sessions->compare);
    if (sessions->sorted_count > sessions->limit) {
        sessions->sorted_count = sessions->limit;
        sessions->is_cut = !sessions->has_limit;
    }
}

/* Room for twice as many as are wanted is made use of, so that sorting does not come too often. */
static bool make_room(struct sessions *sessions)
{
    size_t room = sessions->sorted_room < 128 ? 128 : 2 * sessions->sorted_room;
    struct census_session *sorted;

    if (sessions->sorted_count < sessions->sorted_room)
        return true;
    if (sessions->sorted_room >= 2 * sessions->limit) {
        sort(sessions);
        return true;
    }
    sorted = mem_resize(sessions->sorted, room * sizeof *sorted);
    if (sorted == NULL)
        return false;
    sessions->sorted = sorted;
    sessions->sorted_room = room;
    return true;
}

static void keep(struct sessions *sessions, const struct census_session *session)
{
    if (make_room(sessions))
        sessions->sorted[sessions->sorted_count++] = *session;
    else
        sessions->out_of_memory = true;
}

/* --- telling --- */

static json_t *address_or_null(const union address *address)
{
    char text[ADDRESS_TEXT_MAX];

    if (address->any.sa_family == AF_UNSPEC)
        return json_null();
    address_text(address, text);
    return json_string(text);
}

static json_t *text_or_null(const char *text)
{
    return *text == '\0' ? json_null() : admin_text(text);
}

static json_t *number_if(bool known, uint64_t number)
{
    return known ? json_integer((json_int_t)number) : json_null();
}

static void tell(struct sessions *sessions, const struct census_session *s)
{
    sessions->told++;
    admin_item(
        sessions->call,
        json_pack("{s:s, s:o, s:o, s:o, s:s, s:o, s:o, s:o, s:s, s:o, s:I, s:o, s:o, s:o, s:o}",
                  "session", s->id, "user", text_or_null(s->user), "peer",
                  address_or_null(&s->peer), "listener", admin_text(s->listener), "phase", s->phase,
                  "shard", text_or_null(s->shard), "store", address_or_null(&s->store), "lease",
                  text_or_null(s->lease), "tls", s->tls, "method", text_or_null(s->method),
                  "age_seconds", (json_int_t)(s->age_ms / 1000), "idle_seconds",
                  number_if(s->is_relayed, s->idle_ms / 1000), "in_bytes",
                  number_if(s->is_relayed, s->bytes_in), "out_bytes",
                  number_if(s->is_relayed, s->bytes_out), "commands",
                  number_if(s->is_relayed, s->commands)));
}

static void release(struct sessions *sessions)
{
    mem_free(sessions->sorted);
    mem_free(sessions->texts[0]);
    mem_free(sessions->texts[1]);
    mem_free(sessions);
}

/* The census is over, and all has been told. */
static void answer(struct sessions *sessions)
{
    if (sessions->out_of_memory)
        admin_answer(sessions->call, NULL);
    else if (sessions->is_cut)
        admin_refuse(sessions->call, "there are more than these: say --limit, or ask about less");
    else
        admin_answer(sessions->call, json_null());
    release(sessions);
}

/* As much as the client takes. */
static void tell_sorted(struct sessions *sessions)
{
    while (sessions->told < sessions->sorted_count && admin_queued(sessions->call) < QUEUE_MAX)
        tell(sessions, &sessions->sorted[sessions->told]);
    if (sessions->told == sessions->sorted_count)
        answer(sessions);
}

static void on_sessions(struct census *census, const struct census_session *list, size_t count)
{
    struct sessions *sessions = (struct sessions *)census;

    for (size_t i = 0; i < count; i++) {
        if (sessions->compare != NULL) {
            keep(sessions, &list[i]);
        } else if (sessions->told < sessions->limit) {
            tell(sessions, &list[i]);
        } else {
            census_cancel(census);
            return;
        }
    }
    if (sessions->compare == NULL && admin_queued(sessions->call) >= QUEUE_MAX)
        census_pause(census);
}

static void on_done(struct census *census)
{
    struct sessions *sessions = (struct sessions *)census;

    sessions->is_counted = true;
    if (sessions->call == NULL) {
        release(sessions);
    } else if (sessions->compare == NULL) {
        answer(sessions);
    } else {
        sort(sessions);
        tell_sorted(sessions);
    }
}

static void on_drained(struct admin_call *call)
{
    struct sessions *sessions = call->state;

    if (!sessions->is_counted)
        census_go_on(&sessions->census);
    else
        tell_sorted(sessions);
}

static void cancel(struct admin_call *call)
{
    struct sessions *sessions = call->state;

    sessions->call = NULL;
    if (sessions->is_counted)
        release(sessions);
    else
        census_cancel(&sessions->census);
}

/* --- requests --- */

bool admin_read_limit(struct admin_call *call, size_t none, size_t *limit_out)
{
    const char *text = admin_argument(call, "limit");
    char *end = NULL;
    unsigned long limit = text == NULL ? none : strtoul(text, &end, 10);

    *limit_out = limit;
    if (text == NULL ||
        (*text >= '0' && *text <= '9' && *end == '\0' && limit >= 1 && limit <= LIMIT_MAX))
        return true;
    admin_refuse(call, "\"limit\" is \"%.40s\", expected a number from 1 to %d", text, LIMIT_MAX);
    return false;
}

/* False when the call has been refused. */
static bool read_filters(struct sessions *sessions, struct admin_call *call)
{
    const struct conf *conf = ((const struct control *)call->context)->env.conf;
    const char *user = admin_argument(call, "user"), *address = admin_argument(call, "address"),
               *shard = admin_argument(call, "shard"), *phase = admin_argument(call, "phase");

    if (user != NULL && !username_normalise(&conf->username, span_of(user), sessions->user)) {
        admin_refuse(call, "this cannot be the name of a user");
        return false;
    }
    sessions->by_address = address != NULL;
    if (address != NULL && !network_parse(address, &sessions->network)) {
        admin_refuse(call, "\"%.100s\" is no address", address);
        return false;
    }
    if (shard != NULL && conf_find_shard(conf, shard) == NULL) {
        admin_refuse(call, "there is no shard \"%.63s\"", shard);
        return false;
    }
    if (phase != NULL) {
        snprintf(sessions->phase, sizeof sessions->phase, "%s", phase);
        char *dash = strchr(sessions->phase, '-'); /* "proxy-header" is one word */
        if (dash != NULL)
            *dash = ' ';
    }
    return true;
}

/* The call may be over before the last worker has read them. False without memory. */
static bool copy_texts(struct sessions *sessions, const struct admin_call *call)
{
    const char *texts[2] = {admin_argument(call, "shard"), admin_argument(call, "listener")};

    for (size_t i = 0; i < 2; i++)
        if (texts[i] != NULL &&
            (sessions->texts[i] = mem_copy_text(texts[i], strlen(texts[i]))) == NULL)
            return false;
    sessions->shard = sessions->texts[0];
    sessions->listener = sessions->texts[1];
    return true;
}

void run_sessions(struct admin_call *call)
{
    struct sessions *sessions = mem_new(sizeof *sessions);

    if (sessions == NULL) {
        admin_answer(call, NULL);
        return;
    }
    sessions->census =
        (struct census){.wants = wants, .on_sessions = on_sessions, .on_done = on_done};
    sessions->compare = order_of(admin_argument(call, "sort"));
    sessions->has_limit = admin_argument(call, "limit") != NULL;
    if (!read_filters(sessions, call) ||
        !admin_read_limit(call, sessions->compare == NULL ? SIZE_MAX : SORTED_MAX,
                          &sessions->limit)) {
        release(sessions);
        return;
    }
    if (sessions->compare != NULL && sessions->limit > SORTED_MAX) {
        sessions->limit = SORTED_MAX;
        sessions->has_limit = false; /* whoever is left out was wanted */
    }
    if (!copy_texts(sessions, call) || !census_begin(&sessions->census, call->context)) {
        release(sessions);
        admin_answer(call, NULL);
        return;
    }
    sessions->call = call;
    call->state = sessions;
    call->cancel = cancel;
    call->on_drained = on_drained;
}
