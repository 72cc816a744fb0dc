/* Owns the judgement of what a session leaves behind at its store. */
#include "proxy/imap/taint.h"

/*
 * Words that leave something behind wherever they stand in a command. For the rest of the
 * connection they switch on CONDSTORE and QRESYNC by all their doors (RFC 7162 3.1), the saved
 * result and contexts of SEARCH (RFC 5182, 5267), UTF-8 (RFC 6855). Keywords that are searched for
 * are noted by Dovecot like those that are stored: see is_keyword.
 */
static const char *const sticky_words[] = {
    "MODSEQ", "CONDSTORE", "QRESYNC", "CHANGEDSINCE", "UNCHANGEDSINCE", "HIGHESTMODSEQ", "VANISHED",
    "SAVE",   "UPDATE",    "CONTEXT", "UTF8",         "KEYWORD",        "UNKEYWORD",
};

static bool word_is(const struct taint *t, const char *word)
{
    return t->word_len <= TAINT_WORD_MAX && span_is((struct span){t->word, t->word_len}, word);
}

static void end_word(struct taint *t)
{
    for (size_t i = 0; i < sizeof sticky_words / sizeof sticky_words[0]; i++)
        if (word_is(t, sticky_words[i]))
            t->tainted = true;
}

static bool is_word_char(char ch)
{
    return (ch >= 'A' && ch <= 'Z') || (ch >= 'a' && ch <= 'z') || (ch >= '0' && ch <= '9') ||
           ch == '_';
}

/*
 * Words count whether they are atoms, quoted or in literals, and with backslashes in them: as a
 * lenient store might read them.
 */
static void read_word(struct taint *t, char ch)
{
    if (ch == '\\')
        return;
    if (is_word_char(ch) && t->word_len < TAINT_WORD_MAX) {
        t->word[t->word_len++] = ch;
    } else if (is_word_char(ch)) {
        t->word_len = TAINT_WORD_MAX + 1;
    } else {
        end_word(t);
        t->word_len = 0;
    }
}

static bool is_blank(char ch)
{
    return ch == ' ' || ch == '\t' || ch == '\r' || ch == '\n';
}

/*
 * Follows the fields "tag [UID] STORE set item flags"; word_len is still that of the field's end.
 */
static void read_field(struct taint *t, char ch)
{
    if (is_blank(ch) && t->in_field && t->field < UINT8_MAX) {
        if (t->field == 2 && t->effect == EFFECT_UID && word_is(t, "STORE"))
            t->flags_from = 5;
        t->field++;
    }
    t->in_field = !is_blank(ch);
    if (t->flags_from > 0 && !t->in_flags &&
        (t->field >= t->flags_from || (t->field + 1 == t->flags_from && ch == '('))) {
        t->in_flags = true;
        t->flag_begins = true;
    }
}

/*
 * Dovecot notes keywords that were to be stored, even if no message took them, and lists them in
 * the FLAGS of the process's later sessions. Flags of the system begin with a backslash.
 */
static bool is_keyword(struct taint *t, char ch)
{
    bool begins = t->flag_begins;

    t->flag_begins = is_blank(ch) || ch == '(' || ch == ')';
    return begins && !t->flag_begins && ch != '\\';
}

void taint_command(struct taint *taint, enum effect effect, bool alone)
{
    taint->effect = (uint8_t)effect;
    taint->field = 0;
    taint->in_field = false;
    taint->flags_from = effect == EFFECT_STORES ? 4 : 0;
    taint->in_flags = false;
    taint->word_len = 0;
    taint->tainted = taint->tainted || effect == EFFECT_UNKNOWN;
    taint->selected = taint->selected || effect == EFFECT_SELECTS;
    taint->unselecting = effect == EFFECT_UNSELECTS && alone;
}

void taint_octets(struct taint *taint, struct span octets)
{
    if (taint->tainted || taint->effect == EFFECT_BULK)
        return;
    for (size_t i = 0; i < octets.len; i++) {
        char ch = octets.ptr[i];

        if (ch == '(' && taint->effect == EFFECT_SELECTS)
            taint->tainted = true; /* all parameters of SELECT switch something on */
        read_field(taint, ch);
        read_word(taint, ch);
        if (taint->in_flags && is_keyword(taint, ch))
            taint->tainted = true;
    }
}

/*
 * Dovecot skips the rest of a line that a command does not read, and takes the octets of a literal
 * that nobody confirmed for commands. APPEND always reads its own.
 */
void taint_literal(struct taint *taint, bool sync)
{
    if (!sync && taint->effect != EFFECT_BULK)
        taint->tainted = true;
}

void taint_answer(struct taint *taint, bool ok, bool to_latest)
{
    if (!ok)
        taint->tainted = true; /* who knows how far it came */
    if (!to_latest)
        return;
    if (ok && taint->unselecting)
        taint->selected = false;
    taint->unselecting = false;
}

void taint_complaint(struct taint *taint)
{
    taint->tainted = true;
}
