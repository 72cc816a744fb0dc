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
    bool tainted;       /* something may be left beyond a selected mailbox */
    bool selected;      /* a mailbox may be selected */
    bool unselecting;   /* the latest command may end that */
    bool in_flags;      /* the flags of a STORE are being read */
    bool flag_begins;   /* and the next octet is the first of one */
    bool in_field;      /* not between two fields */
    uint8_t effect;     /* enum effect of the latest command */
    uint8_t field;      /* number of the field that is being read: 0 tag, 1 name, ... */
    uint8_t flags_from; /* the number of a STORE's first field of flags; 0: it is none */
    uint8_t word_len;   /* TAINT_WORD_MAX + 1: a longer one */
    char word[TAINT_WORD_MAX];
};

/* A command begins; `alone` when no other is under way, so that its answer can be told. */
void taint_command(struct taint *taint, enum effect effect, bool alone);

/* Octets of that command, from its tag on, literals included. */
void taint_octets(struct taint *taint, struct span octets);

/* Among them a literal is announced; `sync` if the store must confirm it. */
void taint_literal(struct taint *taint, bool sync);

/* A tagged answer: OK or not, to the latest command or to another. */
void taint_answer(struct taint *taint, bool ok, bool to_latest);

/* The store complains of octets that it takes for no command. */
void taint_complaint(struct taint *taint);

#endif
