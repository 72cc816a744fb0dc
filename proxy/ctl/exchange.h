/*
 * One request to imapmux, and its answer, over a connection of its own or over one that is kept. It
 * blocks; several threads may have one each.
 */
#ifndef IMAPMUX_CTL_EXCHANGE_H
#define IMAPMUX_CTL_EXCHANGE_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

/* Whoever waits is asked at least so often whether to go on. */
enum { EXCHANGE_WAIT_MS = 100 };

struct exchange {
    const char *socket;
    const char *command;
    json_t *arguments;    /* an object, borrowed */
    uint64_t limit_ms;    /* without a word from imapmux; 0: none */
    uint64_t patience_ms; /* how long it is tried again while there is none; 0: not at all */
    bool (*on_wait)(void *owner);                     /* false: waits no more; NULL: always true */
    void (*on_again)(void *owner, const char *why);   /* is about to be tried again; NULL: nobody */
    void (*on_item)(void *owner, const json_t *item); /* NULL: items are kept in the answer */
    void *owner;
};

enum answer_kind {
    ANSWER_DONE,
    ANSWER_REFUSED,
    ANSWER_NO_CONNECTION, /* nobody listens, or not to us */
    ANSWER_AGAIN,         /* refused for a reason that passes */
    ANSWER_LOST,          /* it may have been carried out, or not */
    ANSWER_LATE,          /* the same: nothing was said within the limit */
    ANSWER_STOPPED        /* by on_wait; as LOST */
};

struct answer {
    long pid; /* of who has answered; 0: nobody, or out of sight */
    enum answer_kind kind;
    json_t *items;  /* an array: the pieces, in order, also of what was refused in the end */
    json_t *result; /* of DONE */
    char why[512];  /* of all others: a text in UTF-8, as it came; show_text makes it harmless */
};

/*
 * The same for several requests over one connection, one after the other: a descriptor, which the
 * caller closes, or -1 with the reason in the answer. After an answer that is neither DONE, REFUSED
 * nor AGAIN it is of no use any more.
 */
int exchange_connect(const char *socket, struct answer *answer_out);
void exchange_over(int fd, const struct exchange *exchange, struct answer *answer_out);

/* Fills the answer; answer_release releases it. */
void exchange(const struct exchange *exchange, struct answer *answer_out);

void answer_release(struct answer *answer);

/* A member's text, borrowed from the object; "" if it has none. */
const char *answer_text(const json_t *object, const char *name);

#endif
