/* Owns the order and the time of ticket keys. */
#include "proxy/process/ticket_ring.h"

#include <string.h>

static void remove_at(struct ticket_ring *ring, size_t index)
{
    secret_release(&ring->keys[index].key);
    ring->count--;
    memmove(&ring->keys[index], &ring->keys[index + 1],
            (ring->count - index) * sizeof ring->keys[0]);
}

/* The oldest goes if there is no room. */
static void insert(struct ticket_ring *ring, const struct ring_key *key)
{
    size_t at = 0;

    if (ring->count == TICKET_KEYS_MAX)
        remove_at(ring, ring->count - 1);
    while (at < ring->count && ring->keys[at].made_ms > key->made_ms)
        at++;
    memmove(&ring->keys[at + 1], &ring->keys[at], (ring->count - at) * sizeof ring->keys[0]);
    ring->keys[at] = *key;
    ring->count++;
}

static void limit(struct ring_key *key, int64_t until_ms)
{
    if (key->until_ms > until_ms)
        key->until_ms = until_ms;
}

bool ticket_ring_make(struct ticket_ring *ring, int64_t now_ms, int64_t keep_ms, struct err *err)
{
    struct ring_key made = {.made_ms = now_ms, .until_ms = INT64_MAX};

    if (!ticket_key_make(&made.key, err))
        return false;
    for (size_t i = 0; i < ring->count; i++)
        limit(&ring->keys[i], now_ms + keep_ms);
    insert(ring, &made);
    return true;
}

static void forget_same(struct ticket_ring *ring, const struct secret *key)
{
    for (size_t i = 0; i < ring->count; i++) {
        if (span_equal(secret_span(&ring->keys[i].key), secret_span(key))) {
            remove_at(ring, i);
            return;
        }
    }
}

void ticket_ring_merge(struct ticket_ring *ring, struct ring_key *shared, size_t count,
                       int64_t now_ms, int64_t keep_ms)
{
    for (size_t i = 0; i < count; i++)
        forget_same(ring, &shared[i].key);
    for (size_t i = 0; i < ring->count; i++)
        limit(&ring->keys[i], now_ms + keep_ms);
    for (size_t i = 0; i < count; i++) {
        shared[i].until_ms = INT64_MAX;
        shared[i].shared = true;
        insert(ring, &shared[i]);
        shared[i] = (struct ring_key){0};
    }
}

void ticket_ring_expire(struct ticket_ring *ring, int64_t now_ms)
{
    for (size_t i = ring->count; i > 0; i--)
        if (ring->keys[i - 1].until_ms <= now_ms)
            remove_at(ring, i - 1);
}

/* A shared one, if there is any; the newest that is old enough, else the oldest. */
static size_t for_new_tickets(const struct ticket_ring *ring, int64_t now_ms, int64_t lead_ms)
{
    size_t chosen = 0;
    bool found = false;

    for (size_t i = 0; i < ring->count; i++) {
        if (!ring->keys[i].shared)
            continue;
        chosen = i;
        found = true;
        if (ring->keys[i].made_ms + lead_ms <= now_ms)
            break;
    }
    return found ? chosen : 0;
}

bool ticket_ring_keys(const struct ticket_ring *ring, int64_t now_ms, int64_t lead_ms,
                      struct ticket_keys *out)
{
    size_t chosen = for_new_tickets(ring, now_ms, lead_ms);

    *out = (struct ticket_keys){0};
    for (size_t i = 0; i < ring->count; i++) {
        /* The chosen one, then all others in their order. */
        size_t at = i == 0 ? chosen : i <= chosen ? i - 1 : i;

        if (!secret_set(&out->keys[out->count], secret_span(&ring->keys[at].key))) {
            ticket_keys_release(out);
            return false;
        }
        out->count++;
    }
    return out->count > 0;
}

void ticket_ring_release(struct ticket_ring *ring)
{
    while (ring->count > 0)
        remove_at(ring, ring->count - 1);
}
