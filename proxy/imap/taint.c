/* Owns the judgement of what a session leaves behind at its store. */
#include "proxy/imap/taint.h"

/*
 * Words that switch something on for the rest of the connection, wherever they stand in a command:
 * CONDSTORE and QRESYNC by all their doors (RFC 7162 3.1), the saved result and contexts of SEARCH
 * (RFC 5182, 5267), UTF-8 (RFC 6855).
 */
static const char *const sticky_words[] = {
    "MODSEQ",   "CONDSTORE", "QRESYNC", "CHANGEDSINCE", "UNCHANGEDSINCE", "HIGHESTMODSEQ",
    "VANISHED", "SAVE",      "UPDATE",  "CONTEXT",      "UTF8",
};

static bool is_one_of(struct span word, const char *const *words, size_t count)
{
    for (size_t i = 0; i < count; i++)
        if (span_is(word, words[i]))
            return true;
    return false;
}

static bool is_number(struct span word)
{
    for (size_t i = 0; i < word.len; i++)
        if (word.ptr[i] < '0' || word.ptr[i] > '9')
            return false;
    return true;
}

/*
 * Dovecot remembers keywords that were to be stored, even if no message took them, and lists them in
 * the FLAGS of the process's later sessions.
 */
static bool is_keyword(const struct taint *t, struct span word)
{
    static const char *const others[] = {"FLAGS", "SILENT"};

    return t->stores && !t->escaped && !is_number(word) && !is_one_of(word, others, 2);
}

static void end_word(struct taint *t)
{
    struct span word = {t->word, t->word_len};

    if (word.len > TAINT_WORD_MAX)
        word = span_of("?");
    if (word.len > 0) {
        if (is_one_of(word, sticky_words, sizeof sticky_words / sizeof sticky_words[0]) ||
            is_keyword(t, word))
            t->tainted = true;
        if ((t->word_number == 1 || t->word_number == 2) && span_is(word, "STORE"))
            t->stores = true;
        if (t->word_number < 3)
            t->word_number++;
    }
    t->word_len = 0;
    t->escaped = false;
}

static bool is_word_char(char ch)
{
    return (ch >= 'A' && ch <= 'Z') || (ch >= 'a' && ch <= 'z') || (ch >= '0' && ch <= '9') ||
           ch == '_';
}

void taint_command(struct taint *taint, enum effect effect, bool alone)
{
    taint->effect = (uint8_t)effect;
    taint->stores = false;
    taint->word_number = 0;
    taint->word_len = 0;
    taint->tainted = taint->tainted || effect == EFFECT_UNKNOWN;
    taint->selected = taint->selected || effect == EFFECT_SELECTS;
    taint->unselecting = effect == EFFECT_UNSELECTS && alone;
}

/*
 * Words count whether they are atoms, quoted or in literals, and with backslashes in them: as a
 * lenient store might read them.
 */
void taint_octets(struct taint *taint, struct span octets)
{
    if (taint->tainted || taint->effect == EFFECT_BULK)
        return;
    for (size_t i = 0; i < octets.len; i++) {
        char ch = octets.ptr[i];

        if (ch == '(' && taint->effect == EFFECT_SELECTS)
            taint->tainted = true; /* all parameters of SELECT switch something on */
        if (ch == '\\')
            taint->escaped = taint->escaped || taint->word_len == 0;
        else if (!is_word_char(ch))
            end_word(taint);
        else if (taint->word_len < TAINT_WORD_MAX)
            taint->word[taint->word_len++] = ch;
        else
            taint->word_len = TAINT_WORD_MAX + 1;
    }
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
