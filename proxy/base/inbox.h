/*
 * Letters from any thread to one loop. A letter is embedded in what it carries: whoever posts it
 * gives it away, and `deliver`, which runs on the receiver's loop, owns it from then on. Nothing is
 * allocated. Letters of one sender arrive in the order in which they were posted.
 */
#ifndef IMAPMUX_BASE_INBOX_H
#define IMAPMUX_BASE_INBOX_H

#include <stdbool.h>
#include <uv.h>

struct letter {
    struct letter *next; /* private while posted */
    void (*deliver)(struct letter *letter,
                    void *receiver); /* may free the letter, may post and close */
};

struct inbox {
    uv_async_t wake;
    uv_mutex_t lock; /* guards the members below */
    struct letter *first, **last;
    bool closed;
    void *receiver;
    void (*on_closed)(void *receiver); /* NULL, or set by the owner before inbox_close */
};

/* On the owner's thread, before anybody posts. False when the loop has no descriptor left. */
bool inbox_open(struct inbox *inbox, uv_loop_t *loop, void *receiver);

/*
 * From any thread, until the loop has run once more after inbox_close. False after inbox_close:
 * then the letter is still the caller's.
 */
bool inbox_post(struct inbox *inbox, struct letter *letter);

/*
 * On the owner's loop, once: nothing is delivered any more, also when called from within `deliver`.
 * Returns the letters that were not delivered, linked by `next`, which the caller now owns (NULL
 * when there are none). The memory is the caller's and must stay until the loop has run once more,
 * which is when on_closed is called.
 */
struct letter *inbox_close(struct inbox *inbox);

#endif
