/*
 * Whether anything of a session is left at the store that its next session could notice. A plain
 * value, zeroed: clean. In doubt it is tainted, and stays so: only commands that are known to leave
 * nothing behind, and were answered OK, keep it clean.
 */
#ifndef IMAPMUX_IMAP_TAINT_H
#define IMAPMUX_IMAP_TAINT_H

#include "proxy/imap/command.h"

#include <stdint.h>

enum { TAINT_WORD_MAX = 14 }; /* octets of the longest word that is looked for */

struct taint {
    bool tainted;     /* something may be left beyond a selected mailbox */
    bool selected;    /* a mailbox may be selected */
    bool unselecting; /* the latest command may end that */
    bool stores;      /* the latest command is STORE or UID STORE */
    bool escaped;     /* a backslash stands before the word that is being read */
    uint8_t effect;   /* enum effect of the latest command */
    uint8_t word_number;
    uint8_t word_len; /* TAINT_WORD_MAX + 1: a longer one */
    char word[TAINT_WORD_MAX];
};

/* A command begins; `alone` when no other is under way, so that its answer can be told. */
void taint_command(struct taint *taint, enum effect effect, bool alone);

/* Octets of that command, from its tag on, literals included. */
void taint_octets(struct taint *taint, struct span octets);

/* A tagged answer: OK or not, to the latest command or to another. */
void taint_answer(struct taint *taint, bool ok, bool to_latest);

#endif
