/*
 * The commands of IMAP after login, by name, and what each may leave behind at the store
 * (RFC 9051 6, RFC 3501 6, RFC 2087, 3691, 4314, 5256, 5464, 6851). Pure functions.
 */
#ifndef IMAPMUX_IMAP_COMMAND_H
#define IMAPMUX_IMAP_COMMAND_H

#include "proxy/base/span.h"

/* What a command may leave behind at the store, and what becomes of it here. */
enum effect {
    EFFECT_UNKNOWN, /* anything: it is not known, or switches something on */
    EFFECT_NONE,    /* nothing, unless it has one of the words that taint.c knows */
    EFFECT_BULK,    /* nothing, whatever is in it: its literals are mail */
    EFFECT_STORES,  /* nothing, if it stores no keywords */
    EFFECT_UID,     /* as the command does whose name follows */
    EFFECT_SELECTS,
    EFFECT_UNSELECTS,
    EFFECT_IDLES,
    EFFECT_ENDS,
    EFFECT_REFUSED /* it never reaches the store */
};

struct command {
    const char *word;
    enum effect effect;
    const char *refusal; /* REFUSED: why, a constant without line end */
};

/* A command that could be any, and one whose head is not decided within its limit. */
extern const struct command command_unknown, command_over_long;

/*
 * Looks a name up, in any case. False if it is not `complete` and may still become a known one;
 * else *command_out lives for ever.
 */
bool command_find(struct span name, bool complete, const struct command **command_out);

#endif
