/* Owns the requests that keep a wave: a row of `waves`, and a hash of its users. */
#include "proxy/ctl/wave_store.h"

#include "proxy/base/mem.h"
#include "proxy/ctl/exchange.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

enum { ANSWER_MS = 10000, PATIENCE_MS = 60000, CHUNK_MAX = 24 * 1024 };

/* Takes over the arguments. The answer is to be released in any case. */
static bool ask(const struct wave_store *store, const char *command, json_t *arguments,
                struct answer *answer_out, struct err *err)
{
    struct exchange request = {.socket = store->socket,
                               .command = command,
                               .arguments = arguments,
                               .limit_ms = ANSWER_MS,
                               .patience_ms = PATIENCE_MS};

    exchange(&request, answer_out);
    json_decref(arguments);
    return answer_out->kind == ANSWER_DONE || err_set(err, ERR_PEER, "%s", answer_out->why);
}

/* A request of which only counts whether it was carried out. */
static bool tell(const struct wave_store *store, const char *command, json_t *arguments,
                 struct err *err)
{
    struct answer answer;
    bool done = ask(store, command, arguments, &answer, err);

    answer_release(&answer);
    return done;
}

/* --- life --- */

static bool prepare(struct wave_store *store, const char *socket, struct err *err)
{
    char host[32] = "";
    uint32_t random;

    *store = (struct wave_store){.socket = socket};
    gethostname(host, sizeof host - 1);
    if (getrandom(&random, sizeof random, 0) != sizeof random)
        return err_set(err, ERR_INTERNAL, "there are no random octets");
    snprintf(store->id, sizeof store->id, "%08" PRIx32, random);
    snprintf(store->owner, sizeof store->owner, "%s:%d:%s", host, (int)getpid(), store->id);
    return true;
}

bool wave_store_open(struct wave_store *store, const char *socket, const char *id, struct err *err)
{
    if (!prepare(store, socket, err))
        return false;
    if (strlen(id) != WAVE_ID_DIGITS || strspn(id, "0123456789abcdef") != WAVE_ID_DIGITS)
        return err_set(err, ERR_PEER, "there is no wave \"%.40s\"", id);
    memcpy(store->id, id, WAVE_ID_DIGITS);
    return true;
}

bool wave_store_create(struct wave_store *store, const char *socket, const json_t *parameters,
                       struct err *err)
{
    if (!prepare(store, socket, err))
        return false;
    char *text = json_dumps(parameters, JSON_COMPACT);
    bool done =
        tell(store, "wave create",
             json_pack("{s:s, s:s}", "wave", store->id, "record", text == NULL ? "" : text), err);
    mem_free(text);
    return done;
}

bool wave_store_hold(const struct wave_store *store, struct err *err)
{
    return tell(store, "wave hold",
                json_pack("{s:s, s:s}", "wave", store->id, "owner", store->owner), err);
}

void wave_store_release(const struct wave_store *store)
{
    tell(store, "wave hold",
         json_pack("{s:s, s:s, s:s}", "wave", store->id, "owner", store->owner, "release", "yes"),
         NULL);
}

/* --- users --- */

static bool put_chunk(const struct wave_store *store, json_t *chunk, struct err *err)
{
    char *text = json_dumps(chunk, JSON_COMPACT);
    bool done =
        text == NULL ||
        tell(store, "wave add", json_pack("{s:s, s:s}", "wave", store->id, "record", text), err);

    mem_free(text);
    json_object_clear(chunk);
    return done;
}

bool wave_store_put(const struct wave_store *store, const json_t *users, struct err *err)
{
    json_t *chunk = json_object(), *value;
    size_t size = 0;
    bool good = true;
    const char *name;

    json_object_foreach ((json_t *)users, name, value) {
        json_object_set(chunk, name, value);
        size += strlen(name) + json_dumpb(value, NULL, 0, JSON_COMPACT);
        if (good && size > CHUNK_MAX) {
            good = put_chunk(store, chunk, err);
            size = 0;
        }
    }
    good = good && (json_object_size(chunk) == 0 || put_chunk(store, chunk, err));
    json_decref(chunk);
    return good;
}

bool wave_store_read(const struct wave_store *store, json_t **parameters_out, json_t **users_out,
                     struct err *err)
{
    struct answer answer;
    bool good = ask(store, "wave show", json_pack("{s:s}", "wave", store->id), &answer, err);

    *users_out = json_object();
    for (size_t i = 0; good && i < json_array_size(answer.items); i++) {
        json_t *item = json_array_get(answer.items, i);
        const char *user = json_string_value(json_object_get(item, "user"));

        if (user != NULL)
            json_object_set(*users_out, user, item);
    }
    *parameters_out = good ? json_incref(answer.result) : NULL;
    answer_release(&answer);
    return good;
}
