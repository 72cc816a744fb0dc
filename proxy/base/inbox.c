/*
 * Owns the queue between threads: a list under a mutex and the async handle that wakes the
 * receiver. Wake-ups merge, so each takes the whole list.
 */
#include "proxy/base/inbox.h"

#include <assert.h>
#include <stddef.h>

static void on_wake(uv_async_t *wake);
static struct letter *take_first(struct inbox *inbox);
static void on_closed(uv_handle_t *handle);

bool inbox_open(struct inbox *inbox, uv_loop_t *loop, void *receiver)
{
    *inbox = (struct inbox){.receiver = receiver};
    inbox->last = &inbox->first;
    if (uv_mutex_init(&inbox->lock) != 0)
        return false;
    if (uv_async_init(loop, &inbox->wake, on_wake) != 0) {
        uv_mutex_destroy(&inbox->lock);
        return false;
    }
    inbox->wake.data = inbox;
    return true;
}

bool inbox_post(struct inbox *inbox, struct letter *letter)
{
    uv_mutex_lock(&inbox->lock);
    bool open = !inbox->closed;
    if (open) {
        letter->next = NULL;
        *inbox->last = letter;
        inbox->last = &letter->next;
        uv_async_send(&inbox->wake); /* under the lock, so that inbox_close cannot come between */
    }
    uv_mutex_unlock(&inbox->lock);
    return open;
}

struct letter *inbox_close(struct inbox *inbox)
{
    uv_mutex_lock(&inbox->lock);
    assert(!inbox->closed);
    struct letter *left = inbox->first;
    inbox->closed = true;
    inbox->first = NULL;
    inbox->last = &inbox->first;
    uv_mutex_unlock(&inbox->lock);
    uv_close((uv_handle_t *)&inbox->wake, on_closed);
    return left;
}

/*
 * Delivers what has come until now, one by one, for a letter may close the inbox; what comes
 * meanwhile waits for the wake-up that it has caused, so that two loops that answer each other do
 * not stop everything else.
 */
static void on_wake(uv_async_t *wake)
{
    struct inbox *inbox = wake->data;

    uv_mutex_lock(&inbox->lock);
    struct letter *const *end = inbox->last;
    uv_mutex_unlock(&inbox->lock);
    for (bool more = true; more;) {
        struct letter *letter = take_first(inbox);

        if (letter == NULL)
            return;
        more = &letter->next != end;
        letter->deliver(letter, inbox->receiver);
    }
}

static struct letter *take_first(struct inbox *inbox)
{
    uv_mutex_lock(&inbox->lock);
    struct letter *letter = inbox->first;
    if (letter != NULL)
        inbox->first = letter->next;
    if (inbox->first == NULL)
        inbox->last = &inbox->first;
    uv_mutex_unlock(&inbox->lock);
    return letter;
}

static void on_closed(uv_handle_t *handle)
{
    struct inbox *inbox = handle->data;

    uv_mutex_destroy(&inbox->lock);
    if (inbox->on_closed != NULL)
        inbox->on_closed(inbox->receiver);
}
