/*
 * A relayed session. The input is a sequence of turns: an octet that says whose and how many
 * octets, then those. It is played as it is, and octet by octet: the same must come out. What the
 * server says must come out unchanged, and what passes of the client must hold no command that a
 * slow, obvious reader would take for one of those refused.
 */
#include <assert.h>
#include <stdint.h>

#include "proxy/imap/dialog.h"

#define BYTES_MAX 8192

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct side {
    char in[BYTES_MAX]; /* all that was offered */
    size_t in_len, taken;
    char out[2 * BYTES_MAX]; /* all that passed, and marks */
    size_t out_len;
};

struct play {
    struct dialog dialog;
    struct side sides[2]; /* client, server */
};

static void put(struct side *side, struct span bytes)
{
    assert(bytes.len <= sizeof side->out - side->out_len);
    memcpy(side->out + side->out_len, bytes.ptr, bytes.len);
    side->out_len += bytes.len;
}

/* Whether the first line of the bytes is a command that must not pass. */
static bool is_refused(struct span bytes)
{
    static const char *const refused[] = {"STARTTLS", "LOGIN", "AUTHENTICATE", "COMPRESS",
                                          "UNAUTHENTICATE"};
    char text[512] = "";
    char *name = text;

    for (size_t i = 0; i < bytes.len && i < sizeof text - 1 && bytes.ptr[i] != '\n'; i++)
        text[i] = bytes.ptr[i] == '\0' ? '?' : bytes.ptr[i];
    name += strspn(name, " \t\r");
    name += strcspn(name, " \t\r");
    name += strspn(name, " \t\r");
    name[strcspn(name, " \t\r")] = '\0';
    for (size_t i = 0; i < sizeof refused / sizeof refused[0]; i++) {
        if (strcasecmp(name, refused[i]) == 0)
            return true;
    }
    return false;
}

static bool is_letter(char ch)
{
    return (ch >= 'a' && ch <= 'z') || (ch >= 'A' && ch <= 'Z') || (ch >= '0' && ch <= '9') ||
           ch == '_';
}

/* Whether none of what passed looks as if it had left something at the store. */
static bool looks_clean(const struct side *side)
{
    static const char *const sticky[] = {"MODSEQ",         "CONDSTORE", "QRESYNC",
                                         "UNCHANGEDSINCE", "CONTEXT",   "UTF8"};
    const char *text = side->out;
    bool appends = false, found = false;

    for (size_t at = 0; at < side->out_len; at++) {
        for (size_t i = 0; i < sizeof sticky / sizeof sticky[0]; i++) {
            size_t len = strlen(sticky[i]);

            found = found || (at + len < side->out_len && (at == 0 || !is_letter(text[at - 1])) &&
                              strncasecmp(text + at, sticky[i], len) == 0 && text[at + len] == ' ');
        }
        appends = appends || strncasecmp(text + at, "APPEND", side->out_len - at < 6 ? 1 : 6) == 0;
    }
    return appends || !found;
}

static void check_step(const struct play *play, int who, struct span in,
                       const struct dialog_step *step)
{
    assert(step->len <= in.len);
    switch (step->action) {
    case DIALOG_PASS:
    case DIALOG_EAT:
        assert(step->len > 0);
        break;
    case DIALOG_REFUSE:
        assert(who == 0 && step->len > 0 && step->text != NULL && step->tag.len > 0);
        break;
    case DIALOG_LOGOUT:
        assert(who == 0 && step->len > 0 && step->tag.len > 0);
        break;
    case DIALOG_FAREWELL:
        assert(who == 1 && step->len == 0);
        break;
    case DIALOG_REWRITE:
        assert(who == 1 && step->list_len > 0 && in.ptr[step->len - 1] == '\n');
        assert(step->list_offset + step->list_len < step->len);
        assert(dialog_server_at_line_start(&play->dialog));
        break;
    case DIALOG_MORE:
        assert(step->len == 0);
        assert(in.len < (who == 0 ? (size_t)DIALOG_HEAD_MAX : (size_t)DIALOG_LINE_MAX));
        break;
    case DIALOG_WAIT:
        assert(who == 0 && step->len == 0 && dialog_client_waits(&play->dialog));
        break;
    case DIALOG_BROKEN:
        assert(step->len == 0 && step->text != NULL);
        break;
    }
}

/* Offers what is there until no more of it is taken. */
static void run(struct play *play, int who)
{
    struct side *side = &play->sides[who];

    for (;;) {
        struct span in = {side->in + side->taken, side->in_len - side->taken};
        bool at_start = dialog_client_at_start(&play->dialog);
        struct dialog_step step;

        (who == 0 ? dialog_client : dialog_server)(&play->dialog, in, &step);
        check_step(play, who, in, &step);
        if (step.action == DIALOG_PASS || step.action == DIALOG_REWRITE)
            put(side, (struct span){in.ptr, step.len});
        if (step.action == DIALOG_PASS && who == 0 && at_start && memchr(in.ptr, '\n', step.len))
            assert(!is_refused(in));
        if (step.action == DIALOG_REFUSE || step.action == DIALOG_LOGOUT)
            put(side, span_of(step.action == DIALOG_REFUSE ? "#" : "%"));
        side->taken += step.len;
        if (step.len == 0 && step.action != DIALOG_FAREWELL)
            return;
    }
}

static void play_all(struct play *play, const uint8_t *data, size_t size, bool by_octet)
{
    memset(play, 0, sizeof *play);
    dialog_init(&play->dialog);
    dialog_take_logout(&play->dialog);
    for (size_t at = 0; at < size;) {
        int who = data[at] & 1;
        size_t len = data[at] >> 1;
        struct side *side = &play->sides[who];

        at++;
        len = len < size - at ? len : size - at;
        for (size_t end = at + len; at < end;) {
            size_t step = by_octet ? 1 : len;

            memcpy(side->in + side->in_len, data + at, step);
            side->in_len += step;
            at += step;
            run(play, who);
        }
        run(play, 0);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct play whole, octets;

    if (size > BYTES_MAX)
        return 0;
    play_all(&whole, data, size, false);
    play_all(&octets, data, size, true);
    for (int who = 0; who < 2; who++) {
        struct side *a = &whole.sides[who], *b = &octets.sides[who];

        if (who == 0 ? whole.dialog.client_broken : whole.dialog.server_broken)
            continue; /* how much of the bad line still passed depends on the cut */
        assert(a->out_len == b->out_len && memcmp(a->out, b->out, a->out_len) == 0);
    }
    assert(whole.sides[1].out_len == whole.sides[1].taken);
    assert(memcmp(whole.sides[1].out, whole.sides[1].in, whole.sides[1].taken) == 0);
    assert(whole.dialog.open_count == octets.dialog.open_count);
    assert(whole.dialog.client_broken == octets.dialog.client_broken);
    assert(whole.dialog.server_broken == octets.dialog.server_broken);
    assert(dialog_is_quiet(&whole.dialog) == dialog_is_quiet(&octets.dialog));
    assert(dialog_is_clean(&whole.dialog) == dialog_is_clean(&octets.dialog));
    assert(!dialog_is_clean(&whole.dialog) || looks_clean(&whole.sides[0]));
    return 0;
}
