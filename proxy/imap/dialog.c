/*
 * Both directions of a relayed session. A command or response is looked at once, when it begins;
 * the scanner then finds its end, and runs of pieces become one step.
 */
#include "proxy/imap/dialog.h"

#include <assert.h>

#include "proxy/imap/args.h"

/* Where the client's next octet belongs. */
enum client_mode {
    MODE_HEAD, /* begins a command */
    MODE_PASS,
    MODE_PASS_IDLE,    /* in an IDLE command */
    MODE_EAT,          /* in a refused command */
    MODE_CONTINUATION, /* in the line that ends IDLE */
};

enum awaited { AWAIT_NOTHING, AWAIT_LITERAL, AWAIT_IDLE };

enum response_kind {
    RESPONSE_OTHER,
    RESPONSE_PLUS,
    RESPONSE_OK,
    RESPONSE_NO,
    RESPONSE_BAD,
    RESPONSE_BYE,
    RESPONSE_PREAUTH,
    RESPONSE_CAPABILITY,
    RESPONSE_COUNT
};

static const char *const response_words[RESPONSE_COUNT] = {
    [RESPONSE_OK] = "OK",   [RESPONSE_NO] = "NO",           [RESPONSE_BAD] = "BAD",
    [RESPONSE_BYE] = "BYE", [RESPONSE_PREAUTH] = "PREAUTH", [RESPONSE_CAPABILITY] = "CAPABILITY",
};

/* What the front of a response says. */
enum shape { SHAPE_SHORT, /* more is needed */ SHAPE_PLAIN, SHAPE_LIST };

struct response {
    struct span tag; /* empty unless it is an answer to a command */
    enum response_kind kind;
    size_t line_len; /* LIST: the three of them */
    size_t list_offset, list_len;
};

static bool recognise_command(struct dialog *d, struct span in);
static bool read_command(struct span in, struct span *tag_out, const struct command **command_out);
static bool is_bare(struct span in);
static void note_command(struct dialog *d, enum effect effect);
static uint64_t tag_hash(struct span tag);
static void eat(struct dialog *d, struct span in, struct dialog_step *step_out);
static ptrdiff_t forward(struct dialog *d, struct span in);
static enum shape read_response(const struct dialog *d, struct span in, struct response *out);
static enum shape read_kind(struct span in, size_t at, struct response *out);
static enum shape find_code(struct span in, size_t at, struct response *out);
static enum shape find_list(struct span in, size_t at, struct response *out);
static bool ends_with_line(const struct dialog *d, struct span line);
static void show_farewell(struct dialog *d, struct span in, struct dialog_step *step_out);
static void rewrite(struct dialog *d, struct span in, const struct response *response,
                    struct dialog_step *step_out);
static void note_response(struct dialog *d, const struct response *response);
static void begin_idling(struct dialog *d);
static void note_plus(struct dialog *d);
static void note_answer(struct dialog *d, const struct response *response);

void dialog_init(struct dialog *dialog)
{
    *dialog = (struct dialog){.mode = MODE_HEAD};
    scan_init(&dialog->client, SCAN_CLIENT, 0, 0);
    scan_init(&dialog->server, SCAN_SERVER, 0, 0);
}

/* ---- client ---- */

void dialog_client(struct dialog *d, struct span in, struct dialog_step *step_out)
{
    size_t passed = 0;

    *step_out = (struct dialog_step){.action = DIALOG_MORE};
    while (passed < in.len && !dialog_client_waits(d) && !d->client_broken) {
        struct span rest = span_after(in, passed);

        if (d->mode == MODE_HEAD && !recognise_command(d, rest))
            break;
        if (d->mode == MODE_EAT) {
            if (passed == 0) {
                eat(d, in, step_out);
                return;
            }
            break;
        }

        ptrdiff_t len = forward(d, rest);

        if (len < 0)
            d->client_broken = true;
        else
            passed += (size_t)len;
    }
    if (passed > 0)
        *step_out = (struct dialog_step){.action = DIALOG_PASS, .len = passed};
    else if (d->client_broken)
        *step_out = (struct dialog_step){.action = DIALOG_BROKEN, .text = "Literal too large"};
    else if (in.len > 0 && dialog_client_waits(d))
        step_out->action = DIALOG_WAIT;
}

/*
 * Decides what the command that begins here is and what becomes of it; false if more of it is
 * needed.
 */
static bool recognise_command(struct dialog *d, struct span in)
{
    struct span tag;
    const struct command *command;

    if (!read_command(in, &tag, &command))
        return false;
    d->tag_len = 0;
    d->answered = false;
    d->early_plus = false;
    if (tag.len <= DIALOG_TAG_MAX && args_is_tag(tag)) {
        d->tag_len = (uint8_t)tag.len;
        memcpy(d->tag, tag.ptr, tag.len);
    }
    d->refused = command;
    if (command->effect == EFFECT_REFUSED ||
        (command->effect == EFFECT_ENDS && d->takes_logout && !d->taint.tainted && is_bare(in))) {
        d->mode = MODE_EAT;
    } else {
        note_command(d, command->effect);
        d->mode = command->effect == EFFECT_IDLES ? MODE_PASS_IDLE : MODE_PASS;
    }
    return true;
}

static bool is_blank(char ch)
{
    return ch == ' ' || ch == '\t' || ch == '\r';
}

static bool is_name_char(char ch)
{
    return (ch >= 'A' && ch <= 'Z') || (ch >= 'a' && ch <= 'z') || (ch >= '0' && ch <= '9') ||
           ch == '-' || ch == '_' || ch == '.';
}

/*
 * Reads "tag SP name" off the front; false while undecided. More generous with blanks than the
 * grammar: what a lenient store might take for STARTTLS must not get past here. The answer depends
 * on the first DIALOG_HEAD_MAX octets only.
 */
static bool read_command(struct span in, struct span *tag_out, const struct command **command_out)
{
    size_t limit = in.len < DIALOG_HEAD_MAX ? in.len : DIALOG_HEAD_MAX;
    size_t at = 0;

    while (at < limit && is_blank(in.ptr[at]))
        at++;

    size_t tag_start = at;

    while (at < limit && !is_blank(in.ptr[at]) && in.ptr[at] != '\n')
        at++;
    *tag_out = (struct span){in.ptr + tag_start, at - tag_start};
    while (at < limit && is_blank(in.ptr[at]))
        at++;

    size_t name_start = at;

    while (at < limit && is_name_char(in.ptr[at]))
        at++;

    struct span name = {in.ptr + name_start, at - name_start};

    if (tag_out->len > DIALOG_TAG_MAX || !command_find(name, at < limit, command_out)) {
        *command_out = &command_over_long;
        return tag_out->len > DIALOG_TAG_MAX || limit == DIALOG_HEAD_MAX;
    }
    if ((*command_out)->effect != EFFECT_ENDS)
        return true;
    while (at < limit && is_blank(in.ptr[at])) /* whether it is bare must be seen, too */
        at++;
    return at < limit || limit == DIALOG_HEAD_MAX;
}

/* "tag LOGOUT" and the line end: nothing that a store could object to. */
static bool is_bare(struct span in)
{
    const char *end = memchr(in.ptr, '\n', in.len < DIALOG_HEAD_MAX ? in.len : DIALOG_HEAD_MAX);
    struct args args;
    struct span word;

    if (end == NULL)
        return false;
    args_init(&args, (struct span){in.ptr, (size_t)(end - in.ptr) + 1});
    return args_tag(&args, &word) && args_space(&args) && args_word(&args, &word) &&
           span_is(word, "LOGOUT") && args_end(&args);
}

/* A command without a legal tag is not counted: its answer cannot carry one. */
static void note_command(struct dialog *d, enum effect effect)
{
    taint_command(&d->taint, d->tag_len == 0 ? EFFECT_UNKNOWN : effect, d->open_count == 0);
    if (effect == EFFECT_ENDS)
        d->logout_seen = true;
    if (d->tag_len == 0)
        return;
    d->command_count++;
    d->open_count++;
    d->open_sum += tag_hash((struct span){d->tag, d->tag_len});
}

/* FNV-1a */
static uint64_t tag_hash(struct span tag)
{
    uint64_t hash = 0xcbf29ce484222325u;

    for (size_t i = 0; i < tag.len; i++)
        hash = (hash ^ (uint8_t)tag.ptr[i]) * 0x100000001b3u;
    return hash;
}

/*
 * Drops octets of the refused command. A synchronising literal ends it: the refusal is the verdict
 * on that.
 */
static void eat(struct dialog *d, struct span in, struct dialog_step *step_out)
{
    size_t eaten = 0;

    while (eaten < in.len) {
        struct piece piece;
        ptrdiff_t len = scan_next(&d->client, span_after(in, eaten), &piece);

        if (len < 0) {
            d->client_broken = true;
            break;
        }
        eaten += (size_t)len;
        if (!piece.ends_line && !piece.literal_sync)
            continue;
        scan_cancel_literal(&d->client);
        d->mode = MODE_HEAD;
        *step_out = (struct dialog_step){
            .action = d->refused->effect == EFFECT_ENDS ? DIALOG_LOGOUT : DIALOG_REFUSE,
            .len = eaten,
            .tag = {d->tag, d->tag_len},
            .text = d->refused->refusal};
        if (d->tag_len == 0)
            step_out->tag = span_of("*");
        return;
    }
    if (eaten > 0)
        *step_out = (struct dialog_step){.action = DIALOG_EAT, .len = eaten};
    else
        *step_out = (struct dialog_step){.action = DIALOG_BROKEN, .text = "Literal too large"};
}

/* Moves over the next piece of what passes; its length, or SCAN_BAD. */
static ptrdiff_t forward(struct dialog *d, struct span in)
{
    struct piece piece;
    ptrdiff_t len = scan_next(&d->client, in, &piece);

    if (len < 0)
        return len;
    taint_octets(&d->taint, piece.bytes);
    if (piece.opens_literal)
        taint_literal(&d->taint, piece.literal_sync);
    if (piece.ends_line) {
        bool idle = d->mode == MODE_PASS_IDLE && !d->answered;

        d->idling = false;
        d->mode = MODE_HEAD;
        if (idle && d->early_plus)
            begin_idling(d);
        else if (idle)
            d->awaits = AWAIT_IDLE;
        d->early_plus = false;
    } else if (piece.literal_sync && d->early_plus) {
        d->early_plus = false;
    } else if (piece.literal_sync && !d->answered) {
        d->awaits = AWAIT_LITERAL;
    } else if (piece.literal_sync) {
        scan_cancel_literal(&d->client); /* the verdict came before the question */
        d->mode = MODE_HEAD;
    }
    return len;
}

static void begin_idling(struct dialog *d)
{
    scan_free_line(&d->client);
    d->mode = MODE_CONTINUATION;
    d->idling = true;
}

bool dialog_client_waits(const struct dialog *d)
{
    return d->awaits != AWAIT_NOTHING;
}

bool dialog_client_at_start(const struct dialog *d)
{
    return d->mode == MODE_HEAD && d->awaits == AWAIT_NOTHING && !d->client_broken;
}

bool dialog_client_idles(const struct dialog *d)
{
    return d->idling;
}

/* ---- server ---- */

void dialog_server(struct dialog *d, struct span in, struct dialog_step *step_out)
{
    size_t passed = 0;

    *step_out = (struct dialog_step){.action = DIALOG_MORE};
    while (passed < in.len && !d->server_broken) {
        struct span rest = span_after(in, passed);

        if (scan_at_start(&d->server)) {
            struct response response;
            enum shape shape = read_response(d, rest, &response);

            if (shape == SHAPE_SHORT && rest.len < DIALOG_LINE_MAX)
                break;
            if (shape == SHAPE_SHORT ||
                (shape == SHAPE_LIST && response.line_len > DIALOG_LINE_MAX)) {
                d->server_broken = true;
                break;
            }
            if (shape == SHAPE_LIST) {
                if (passed == 0) {
                    rewrite(d, in, &response, step_out);
                    return;
                }
                break;
            }
            if (response.kind == RESPONSE_BYE && response.tag.len == 0 && !d->farewell_shown &&
                !d->logout_seen) {
                if (passed == 0)
                    show_farewell(d, rest, step_out);
                break;
            }
            note_response(d, &response);
        }

        struct piece piece;
        ptrdiff_t len = scan_next(&d->server, rest, &piece);

        if (len < 0)
            d->server_broken = true;
        else
            passed += (size_t)len;
    }
    d->server_holds = passed == 0 && in.len > 0;
    if (step_out->action == DIALOG_FAREWELL)
        return;
    if (passed > 0)
        *step_out = (struct dialog_step){.action = DIALOG_PASS, .len = passed};
    else if (d->server_broken)
        *step_out = (struct dialog_step){.action = DIALOG_BROKEN, .text = "Response too long"};
}

/* Shows the server's own BYE before it passes, as soon as its line is whole. */
static void show_farewell(struct dialog *d, struct span in, struct dialog_step *step_out)
{
    if (memchr(in.ptr, '\n', in.len) == NULL && in.len < DIALOG_LINE_MAX)
        return; /* MORE */
    d->farewell_shown = true;
    step_out->action = DIALOG_FAREWELL;
}

/*
 * Reads the front of a response: all that is wanted of it can be told from "tag SP word SP
 * [CAPABILITY SP". A tag longer than any we forward answers nothing.
 */
static enum shape read_response(const struct dialog *d, struct span in, struct response *out)
{
    size_t at = 0;

    *out = (struct response){.kind = RESPONSE_OTHER};
    if (in.ptr[0] == '+') {
        out->kind = RESPONSE_PLUS;
        return SHAPE_PLAIN;
    }
    while (at < in.len && at <= DIALOG_TAG_MAX && in.ptr[at] != ' ' && in.ptr[at] != '\n')
        at++;
    if (at > DIALOG_TAG_MAX)
        return SHAPE_PLAIN;
    if (at == in.len)
        return SHAPE_SHORT;
    if (at == 0 || in.ptr[at] == '\n')
        return SHAPE_PLAIN;
    if (at > 1 || in.ptr[0] != '*')
        out->tag = (struct span){in.ptr, at};

    enum shape shape = read_kind(in, at + 1, out);

    if (shape == SHAPE_LIST && !ends_with_line(d, (struct span){in.ptr, out->line_len}))
        shape = SHAPE_PLAIN;
    return shape;
}

/* Reads the word behind the tag, which begins at `at`. */
static enum shape read_kind(struct span in, size_t at, struct response *out)
{
    size_t start = at;

    while (at < in.len && at - start <= strlen("CAPABILITY") && is_name_char(in.ptr[at]))
        at++;

    struct span word = {in.ptr + start, at - start};

    for (int kind = RESPONSE_OK; kind < RESPONSE_COUNT; kind++) {
        const char *known = response_words[kind];

        if (at == in.len && word.len <= strlen(known) &&
            strncasecmp(word.ptr, known, word.len) == 0)
            return SHAPE_SHORT;
        if (at < in.len && span_is(word, known))
            out->kind = (enum response_kind)kind;
    }
    if (out->kind == RESPONSE_OTHER || in.ptr[at] != ' ')
        return SHAPE_PLAIN;
    if (out->kind == RESPONSE_CAPABILITY)
        return out->tag.len == 0 ? find_list(in, at + 1, out) : SHAPE_PLAIN;
    return find_code(in, at + 1, out);
}

/* Looks for "[CAPABILITY " at `at`. */
static enum shape find_code(struct span in, size_t at, struct response *out)
{
    static const char opening[] = "[CAPABILITY ";
    size_t len = sizeof opening - 1;
    size_t left = in.len - at;

    if (strncasecmp(in.ptr + at, opening, left < len ? left : len) != 0)
        return SHAPE_PLAIN;
    return left < len ? SHAPE_SHORT : find_list(in, at + len, out);
}

/* Delimits the list that begins at `at`: up to "]" in a response code, else to the line end. */
static enum shape find_list(struct span in, size_t at, struct response *out)
{
    const char *line_end = memchr(in.ptr + at, '\n', in.len - at);

    if (line_end == NULL)
        return SHAPE_SHORT;
    out->line_len = (size_t)(line_end - in.ptr) + 1;

    size_t end = out->line_len - 1;

    if (out->kind == RESPONSE_CAPABILITY) {
        if (end > at && in.ptr[end - 1] == '\r')
            end--;
    } else {
        const char *bracket = memchr(in.ptr + at, ']', end - at);

        if (bracket == NULL)
            return SHAPE_PLAIN; /* no response code then */
        end = (size_t)(bracket - in.ptr);
    }
    out->list_offset = at;
    out->list_len = end - at;
    return out->list_len > 0 ? SHAPE_LIST : SHAPE_PLAIN;
}

/*
 * Whether the scanner, too, takes this for a whole response; one that goes on with a literal is no
 * list.
 */
static bool ends_with_line(const struct dialog *d, struct span line)
{
    struct scan probe = d->server;
    struct piece piece;

    return scan_next(&probe, line, &piece) == (ptrdiff_t)line.len && piece.ends_line;
}

static void rewrite(struct dialog *d, struct span in, const struct response *response,
                    struct dialog_step *step_out)
{
    struct piece piece;
    ptrdiff_t len = scan_next(&d->server, in, &piece);

    assert(len == (ptrdiff_t)response->line_len && piece.ends_line);
    (void)len;
    note_response(d, response);
    d->server_holds = false;
    *step_out = (struct dialog_step){.action = DIALOG_REWRITE,
                                     .len = response->line_len,
                                     .list_offset = response->list_offset,
                                     .list_len = response->list_len};
}

/* Called once for each response, when it passes. */
static void note_response(struct dialog *d, const struct response *response)
{
    if (response->kind == RESPONSE_PLUS)
        note_plus(d);
    else if (response->tag.len > 0 && response->kind >= RESPONSE_OK &&
             response->kind <= RESPONSE_BAD)
        note_answer(d, response);
    else if (response->tag.len == 0 && response->kind == RESPONSE_BYE)
        d->bye_seen = true;
    else if (response->tag.len == 0 && response->kind == RESPONSE_BAD)
        taint_complaint(&d->taint);
}

/* Dovecot answers "{3}" before it has seen the line end, so "+" may come before we have, too. */
static void note_plus(struct dialog *d)
{
    if (d->awaits == AWAIT_IDLE)
        begin_idling(d);
    else if (d->awaits == AWAIT_NOTHING && (d->mode == MODE_PASS || d->mode == MODE_PASS_IDLE))
        d->early_plus = true;
    d->awaits = AWAIT_NOTHING;
}

static void note_answer(struct dialog *d, const struct response *response)
{
    bool to_latest = span_equal(response->tag, (struct span){d->tag, d->tag_len});

    if (d->open_count > 0)
        d->open_count--;
    d->open_sum -= tag_hash(response->tag);
    if (d->open_count == 0 && d->open_sum != 0)
        taint_complaint(&d->taint); /* it answers what was not asked */
    taint_answer(&d->taint, response->kind == RESPONSE_OK, to_latest);
    if (!to_latest)
        return;
    if (d->awaits == AWAIT_LITERAL && response->kind == RESPONSE_OK)
        return; /* cannot be about a command that is not complete: the client uses a tag twice */
    d->answered = true;
    if (d->awaits == AWAIT_LITERAL || (d->mode == MODE_CONTINUATION && scan_at_start(&d->client))) {
        scan_cancel_literal(&d->client);
        d->mode = MODE_HEAD;
    }
    d->awaits = AWAIT_NOTHING;
    d->idling = false;
}

bool dialog_server_at_line_start(const struct dialog *d)
{
    return scan_at_start(&d->server) && !d->server_holds && !d->server_broken;
}

uint64_t dialog_command_count(const struct dialog *d)
{
    return d->command_count;
}

uint64_t dialog_open_count(const struct dialog *d)
{
    return d->open_count;
}

bool dialog_is_quiet(const struct dialog *d)
{
    return dialog_client_at_start(d) && dialog_server_at_line_start(d) && d->open_count == 0 &&
           d->open_sum == 0 && !d->bye_seen && !d->logout_seen;
}

bool dialog_is_clean(const struct dialog *d)
{
    return dialog_is_quiet(d) && !d->taint.tainted;
}

void dialog_take_logout(struct dialog *d)
{
    d->takes_logout = true;
}

bool dialog_is_selected(const struct dialog *d)
{
    return d->taint.selected;
}

bool dialog_bye_seen(const struct dialog *d)
{
    return d->bye_seen;
}

bool dialog_logout_seen(const struct dialog *d)
{
    return d->logout_seen;
}
