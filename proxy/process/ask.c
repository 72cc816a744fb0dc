/* Owns the letters of a question, each of which goes to a worker and comes back. */
#include "proxy/process/ask.h"

#include "proxy/base/mem.h"

#include <assert.h>

struct ask_letter {
    struct letter letter; /* first member */
    struct ask *ask;
};

/* On the loop that asks: the last letter answers. */
static void come_back(struct letter *letter, void *receiver)
{
    struct ask *ask = ((struct ask_letter *)letter)->ask;

    (void)receiver;
    if (--ask->outstanding > 0)
        return;
    mem_free(ask->letters);
    ask->on_done(ask);
}

/* On the worker's thread. After the post the letter, and what it points to, is the asker's. */
static void visit(struct letter *letter, void *receiver)
{
    struct ask_letter *own = (struct ask_letter *)letter;
    struct ask *ask = own->ask;

    ask->visit(ask, receiver, (size_t)(own - ask->letters));
    letter->deliver = come_back;
    bool posted = inbox_post(ask->inbox, letter);
    assert(posted);
    (void)posted;
}

bool ask_workers(struct ask *ask, struct workers *workers, struct inbox *inbox)
{
    size_t count = workers_count(workers);

    ask->letters = mem_array(count, sizeof *ask->letters);
    if (ask->letters == NULL)
        return false;
    ask->inbox = inbox;
    ask->outstanding = count;
    for (size_t i = 0; i < count; i++) {
        ask->letters[i] = (struct ask_letter){.letter.deliver = visit, .ask = ask};
        workers_post(workers, i, &ask->letters[i].letter);
    }
    return true;
}
