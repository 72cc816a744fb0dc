/* Owns what of a session's stream a person may read. */
#include "proxy/imap/transcript.h"

#include <stdio.h>
#include <string.h>
#include <strings.h>

struct teller {
    void (*on_line)(void *owner, struct span line);
    void *owner;
};

void transcript_init(struct transcript *transcript, bool shows_bodies)
{
    /* What has begun before may be a response with mail. */
    *transcript =
        (struct transcript){.shows_bodies = shows_bodies, .hides = !shows_bodies, .judged = true};
}

/* --- the line --- */

static void put(struct transcript *t, const char *bytes, size_t len)
{
    size_t room = TRANSCRIPT_LINE_MAX - t->len;

    if (t->len >= TRANSCRIPT_LINE_MAX)
        room = 0;
    if (len > room)
        t->cut = true;
    len = len < room ? len : room;
    memcpy(t->line + t->len, bytes, len);
    t->len += len;
}

/* It fits always: the line has room for it beyond its limit. */
static void put_hidden(struct transcript *t)
{
    if (!t->cut && t->hidden > 0)
        t->len += (size_t)snprintf(t->line + t->len, sizeof t->line - t->len, "(%llu octets)",
                                   (unsigned long long)t->hidden);
    t->hidden = 0;
}

static bool ends_url(char ch)
{
    return ch == ' ' || ch == '"' || ch == ')' || ch == '(';
}

/* Of ";URLAUTH=access:mechanism:token" nothing behind the "=" is left. */
static void hide_tokens(struct transcript *t)
{
    static const char word[] = "urlauth=";
    size_t word_len = sizeof word - 1, to = 0;

    for (size_t from = 0; from < t->len;) {
        if (t->len - from < word_len || strncasecmp(t->line + from, word, word_len) != 0) {
            t->line[to++] = t->line[from++];
            continue;
        }
        memmove(t->line + to, t->line + from, word_len);
        to += word_len;
        from += word_len;
        while (from < t->len && !ends_url(t->line[from]))
            from++;
    }
    t->len = to;
}

static void tell(struct transcript *t, const struct teller *teller)
{
    while (t->len > 0 && (t->line[t->len - 1] == '\r' || t->line[t->len - 1] == '\n'))
        t->len--;
    hide_tokens(t);
    if (t->len == 0 && t->in_rest)
        return;
    if (t->cut) {
        memcpy(t->line + t->len, "...", 3);
        t->len += 3;
    }
    teller->on_line(teller->owner, (struct span){t->line, t->len});
    t->len = 0;
    t->cut = false;
}

/* --- text --- */

/* "* 12 FETCH", "* 12 UIDFETCH" (RFC 9586), "* URLFETCH": by what there is of the line. */
static bool brings_mail(const struct transcript *t)
{
    size_t at = 2;

    if (t->len < 2 || memcmp(t->line, "* ", 2) != 0)
        return false;
    while (at < t->len && t->line[at] >= '0' && t->line[at] <= '9')
        at++;
    at += at > 2 && at < t->len && t->line[at] == ' ';

    const char *word = t->line + at;
    size_t left = t->len - at;

    return (left >= 5 && strncasecmp(word, "FETCH", 5) == 0) ||
           (left >= 8 && strncasecmp(word, "UIDFETCH", 8) == 0) ||
           (left >= 8 && strncasecmp(word, "URLFETCH", 8) == 0);
}

/* A quoted string that is hidden: its octets are counted. */
static void hide_quoted(struct transcript *t, char ch)
{
    if (ch == '\r' || ch == '\n' || (ch == '"' && !t->escaped)) {
        put_hidden(t);
        put(t, &ch, 1);
        t->in_quotes = false;
        return;
    }
    t->escaped = ch == '\\' && !t->escaped;
    t->hidden++;
}

/* Of the front of a response, before the first thing that may have to be hidden. */
static void judge(struct transcript *t)
{
    if (!t->judged)
        t->hides = !t->shows_bodies && brings_mail(t);
    t->judged = true;
}

static void add_text(struct transcript *t, const struct piece *piece)
{
    for (size_t i = 0; i < piece->bytes.len; i++) {
        char ch = piece->bytes.ptr[i];

        if (t->in_quotes) {
            hide_quoted(t, ch);
            continue;
        }
        if (ch == '"')
            judge(t);
        put(t, &ch, 1);
        t->in_quotes = ch == '"' && t->hides;
        t->escaped = false;
    }
}

/* --- literals --- */

static void add_literal(struct transcript *t, struct span bytes, const struct teller *teller)
{
    for (size_t i = 0; i < bytes.len; i++) {
        if (!t->shows_bodies || t->shown >= TRANSCRIPT_BODY_MAX) {
            t->hidden += bytes.len - i;
            return;
        }
        t->shown++;
        put(t, bytes.ptr + i, 1);
        if (bytes.ptr[i] == '\n')
            tell(t, teller);
    }
}

static void end_literal(struct transcript *t, const struct teller *teller)
{
    put_hidden(t);
    if (t->len > 0)
        tell(t, teller);
    t->shown = 0;
    t->in_rest = true;
}

/* --- the stream --- */

static void begin_response(struct transcript *t, const struct teller *teller)
{
    if (t->len > 0 || t->hidden > 0) { /* of a command that was refused in its middle */
        put_hidden(t);
        tell(t, teller);
    }
    t->hides = t->judged = t->in_quotes = t->escaped = t->in_rest = false;
    t->shown = 0;
}

void transcript_add(struct transcript *transcript, const struct scan *at, struct span bytes,
                    void (*on_line)(void *owner, struct span line), void *owner)
{
    const struct teller teller = {on_line, owner};
    struct scan scan = *at;

    while (bytes.len > 0) {
        struct piece piece;

        if (scan_at_start(&scan))
            begin_response(transcript, &teller);

        ptrdiff_t len = scan_next(&scan, bytes, &piece);

        if (len <= 0)
            return;
        if (piece.kind == PIECE_LITERAL) {
            add_literal(transcript, piece.bytes, &teller);
            if (piece.ends_literal)
                end_literal(transcript, &teller);
        } else {
            add_text(transcript, &piece);
            if (piece.opens_literal)
                judge(transcript);
            if (piece.ends_line || piece.opens_literal)
                tell(transcript, &teller);
        }
        bytes = span_after(bytes, (size_t)len);
    }
}
