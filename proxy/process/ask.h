/*
 * Asks every worker something, and answers when all have been asked: a letter to each and back, and
 * nothing that is locked.
 *
 * A question is embedded in its owner, which lives until on_done, come what may: letters cannot be
 * called back. Who wants the answer no more says so in the owner. If the process ends meanwhile,
 * what workers have not read is read by the thread that joins them, so on_done comes still.
 */
#ifndef IMAPMUX_PROCESS_ASK_H
#define IMAPMUX_PROCESS_ASK_H

#include "proxy/process/worker.h"
#include "proxy/session/home.h"

struct ask_letter;

struct ask {
    /*
     * Set by the owner. `visit` runs once on each worker's thread, on several at a time; `number`
     * is the worker's, for a result in a place of its own. It must not touch what the owner changes
     * before on_done.
     */
    void (*visit)(struct ask *ask, struct home *home, size_t number);
    void (*on_done)(struct ask *ask); /* once, on the loop of the inbox; may free the question */

    /* Private. */
    struct inbox *inbox;
    struct ask_letter *letters; /* for each worker */
    size_t outstanding;
};

/*
 * `inbox` is of the loop that asks; on_done comes by it, never inside the call. False without
 * memory: then nobody is asked, and nothing comes. Not once workers_end has begun.
 */
bool ask_workers(struct ask *ask, struct workers *workers, struct inbox *inbox);

#endif
