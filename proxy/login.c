/*
 * Owns the client's side of a session before login: cutting its bytes into commands, and answering
 * them.
 */
#include "proxy/login.h"

#include "auth/sasl.h"
#include "proxy/base/mem.h"
#include "proxy/imap/args.h"

#include <assert.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

enum sasl_step { SASL_NONE, SASL_PLAIN_MESSAGE, SASL_LOGIN_USER, SASL_LOGIN_PASSWORD };

struct command {
    const char *name;
    enum login_outcome (*run)(struct login *l, struct args *args);
};

static enum login_outcome do_capability(struct login *l, struct args *args);
static enum login_outcome do_noop(struct login *l, struct args *args);
static enum login_outcome do_logout(struct login *l, struct args *args);
static enum login_outcome do_id(struct login *l, struct args *args);
static enum login_outcome do_starttls(struct login *l, struct args *args);
static enum login_outcome do_login(struct login *l, struct args *args);
static enum login_outcome do_authenticate(struct login *l, struct args *args);

static const struct command commands[] = {
    {"CAPABILITY", do_capability},
    {"NOOP", do_noop},
    {"LOGOUT", do_logout},
    {"ID", do_id},
    {"STARTTLS", do_starttls},
    {"LOGIN", do_login},
    {"AUTHENTICATE", do_authenticate},
};

static void begin_command(struct login *l)
{
    scan_init(&l->scan, SCAN_CLIENT, 0, 0);
    l->scanned = 0;
    l->refusal = NULL;
}

void login_init(struct login *login, const struct conf *conf, const struct conf_listener *listener,
                struct conn *client)
{
    *login = (struct login){
        .conf = conf, .listener = listener, .client = client, .proxy_ttl = LOGIN_PROXY_TTL};
    buf_init(&login->input, LOGIN_INPUT_MAX);
    buf_init(&login->id, LOGIN_ID_MAX);
    begin_command(login);
}

void login_release(struct login *login)
{
    secret_release(&login->password);
    buf_release(&login->input);
    buf_release(&login->id);
}

/* --- writing --- */

/* Writes one or more whole lines. Arguments are ours or were checked to be tags. */
static bool say(struct login *l, const char *format, ...) __attribute__((format(printf, 2, 3)));

static bool say(struct login *l, const char *format, ...)
{
    char line[1024];
    va_list args;

    va_start(args, format);
    int len = vsnprintf(line, sizeof line, format, args);
    va_end(args);
    assert(len > 0 && (size_t)len < sizeof line);
    return conn_write(l->client, (struct span){line, (size_t)len});
}

static bool login_allowed(const struct login *l)
{
    return conn_tls(l->client) != NULL || l->listener->plaintext_login;
}

/*
 * What may be promised before the store is known: what any store worth the name has, and our own.
 */
static const char *capabilities(const struct login *l)
{
    if (conn_tls(l->client) != NULL || l->listener->tls != TLS_STARTTLS)
        return login_allowed(l) ? "IMAP4rev1 SASL-IR LITERAL- ID ENABLE IDLE AUTH=PLAIN AUTH=LOGIN"
                                : "IMAP4rev1 LITERAL- ID ENABLE IDLE LOGINDISABLED";
    return login_allowed(l)
               ? "IMAP4rev1 SASL-IR LITERAL- ID ENABLE IDLE STARTTLS AUTH=PLAIN AUTH=LOGIN"
               : "IMAP4rev1 LITERAL- ID ENABLE IDLE STARTTLS LOGINDISABLED";
}

bool login_greet(struct login *login)
{
    return say(login, "* OK [CAPABILITY %s] %.200s\r\n", capabilities(login),
               login->conf->login.greeting);
}

void login_bye(struct login *login, const char *code, const char *text)
{
    say(login, "* BYE [%s] %s\r\n", code, text);
}

static enum login_outcome turn_down(struct login *l, const char *answer);

static enum login_outcome bad(struct login *l, const char *text)
{
    char answer[128];

    snprintf(answer, sizeof answer, "BAD %s", text);
    return turn_down(l, answer);
}

/* Answers what makes no sense, and counts it; the client is let go after too many. */
static enum login_outcome turn_down(struct login *l, const char *answer)
{
    say(l, "%s %s\r\n", l->tag, answer);
    if (++l->bad_count < (unsigned)l->conf->login.max_bad_commands)
        return LOGIN_MORE;
    say(l, "* BYE Too many bad commands.\r\n");
    l->over = "too many bad commands";
    return LOGIN_OVER;
}

/* --- cutting the input into commands --- */

enum cut { CUT_NONE, CUT_COMMAND, CUT_REFUSED, CUT_OVER_LONG };

/* Keeps the tag of the command in hand, "*" when it has none. */
static void keep_tag(struct login *l)
{
    struct args args;
    struct span tag;

    args_init(&args, buf_span(&l->input));
    if (!args_tag(&args, &tag) || tag.len > LOGIN_TAG_MAX)
        tag = span_of("*");
    memcpy(l->tag, tag.ptr, tag.len);
    l->tag[tag.len] = '\0';
}

/* Whether the command in hand has this name, as far as it has come. */
static bool is_command(const struct login *l, const char *name)
{
    struct args args;
    struct span word;

    args_init(&args, buf_span(&l->input));
    return args_tag(&args, &word) && args_space(&args) && args_word(&args, &word) &&
           span_is(word, name);
}

/* Long lines are for SASL alone: OAuth tokens and Kerberos tickets. */
static size_t line_limit(const struct login *l)
{
    bool sasl = l->sasl != SASL_NONE || is_command(l, "AUTHENTICATE");

    return sasl ? l->conf->login.max_sasl_line : l->conf->login.max_line;
}

/*
 * Decides about an announced literal: go on, or refuse. A refused one that comes anyway ("{n+}") is
 * eaten.
 */
static enum cut meet_literal(struct login *l, const struct piece *piece)
{
    size_t room = l->conf->login.max_line + 2 * l->conf->login.max_literal;
    if (l->refusal == NULL) {
        keep_tag(l);
        if (!login_allowed(l) && is_command(l, "LOGIN"))
            l->refusal = "NO [PRIVACYREQUIRED] Log in over an encrypted connection.";
        else if (piece->literal_size > l->conf->login.max_literal ||
                 l->scanned + piece->literal_size > room)
            l->refusal = "BAD [LIMIT] Literal too large.";
    }
    if (l->refusal == NULL && piece->literal_sync)
        say(l, "+ OK\r\n");
    if (l->refusal == NULL || !piece->literal_sync)
        return CUT_NONE;
    scan_cancel_literal(&l->scan);
    return CUT_REFUSED;
}

static void eat(struct login *l)
{
    buf_consume(&l->input, l->scanned);
    l->scanned = 0;
}

/*
 * Looks for the end of the command in hand: CUT_COMMAND when it is the first l->scanned octets of
 * the input.
 */
static enum cut cut_command(struct login *l)
{
    while (l->scanned < buf_len(&l->input)) {
        struct piece piece;
        size_t line_bytes = l->scan.line_bytes; /* the scanner forgets it at the end of the line */
        ptrdiff_t count = scan_next(&l->scan, span_after(buf_span(&l->input), l->scanned), &piece);
        enum cut cut = CUT_NONE;

        if (count <= 0)
            return CUT_OVER_LONG;
        l->scanned += (size_t)count;
        if (piece.kind == PIECE_TEXT)
            line_bytes += (size_t)count;
        if (l->refusal == NULL && line_bytes > line_limit(l))
            return CUT_OVER_LONG;
        if (piece.kind == PIECE_TEXT && piece.opens_literal)
            cut = meet_literal(l, &piece);
        else if (piece.kind == PIECE_TEXT && piece.ends_line)
            cut = l->refusal != NULL ? CUT_REFUSED : CUT_COMMAND;
        if (l->refusal != NULL)
            eat(l);
        if (cut != CUT_NONE)
            return cut;
    }
    return CUT_NONE;
}

static enum login_outcome run_command(struct login *l, struct span command);
static enum login_outcome run_sasl_line(struct login *l, struct span line);

/* Handles the command that is the first l->scanned octets of the input, and takes it off. */
static enum login_outcome take_command(struct login *l)
{
    struct span command = {buf_span(&l->input).ptr, l->scanned};
    enum login_outcome outcome =
        l->sasl != SASL_NONE ? run_sasl_line(l, command) : run_command(l, command);

    buf_consume(&l->input, command.len);
    begin_command(l);
    if (l->sasl != SASL_NONE)
        scan_free_line(&l->scan);
    return outcome;
}

static enum login_outcome refuse_literal(struct login *l)
{
    const char *refusal = l->refusal;

    begin_command(l);
    return turn_down(l, refusal);
}

static enum login_outcome end_over_long(struct login *l)
{
    keep_tag(l);
    say(l, "%s BAD [LIMIT] Command line too long.\r\n* BYE Command line too long.\r\n", l->tag);
    l->over = "command line too long";
    return LOGIN_OVER;
}

bool login_feed(struct login *login, struct span bytes)
{
    return buf_append(&login->input, bytes);
}

enum login_outcome login_run(struct login *login)
{
    enum login_outcome outcome = LOGIN_MORE;

    while (outcome == LOGIN_MORE) {
        switch (cut_command(login)) {
        case CUT_NONE:
            return LOGIN_MORE;
        case CUT_COMMAND:
            outcome = take_command(login);
            break;
        case CUT_REFUSED:
            outcome = refuse_literal(login);
            break;
        case CUT_OVER_LONG:
            outcome = end_over_long(login);
            break;
        }
    }
    return outcome;
}

void login_restart(struct login *login)
{
    buf_release(&login->input);
    buf_release(&login->id);
    login->proxy_ttl = LOGIN_PROXY_TTL;
    login->asked_capability = false;
    begin_command(login);
}

struct buf *login_rest(struct login *login)
{
    return &login->input;
}

/* --- the commands --- */

static enum login_outcome run_command(struct login *l, struct span command)
{
    struct args args;
    struct span word;

    keep_tag(l);
    args_init(&args, command);
    if (!args_tag(&args, &word) || !args_space(&args) || !args_word(&args, &word))
        return bad(l, "Expected a tag and a command.");
    for (size_t i = 0; i < sizeof commands / sizeof commands[0]; i++)
        if (span_is(word, commands[i].name))
            return commands[i].run(l, &args);
    return bad(l, "Unknown command, or one that needs a login first.");
}

static enum login_outcome do_capability(struct login *l, struct args *args)
{
    if (!args_end(args))
        return bad(l, "CAPABILITY takes no arguments.");
    l->asked_capability = true;
    say(l, "* CAPABILITY %s\r\n%s OK CAPABILITY completed.\r\n", capabilities(l), l->tag);
    return LOGIN_MORE;
}

static enum login_outcome do_noop(struct login *l, struct args *args)
{
    if (!args_end(args))
        return bad(l, "NOOP takes no arguments.");
    say(l, "%s OK NOOP completed.\r\n", l->tag);
    return LOGIN_MORE;
}

static enum login_outcome do_logout(struct login *l, struct args *args)
{
    if (!args_end(args))
        return bad(l, "LOGOUT takes no arguments.");
    say(l, "* BYE Logging out.\r\n%s OK LOGOUT completed.\r\n", l->tag);
    l->over = "logout";
    return LOGIN_OVER;
}

/* Adds `"text"` with what must be escaped escaped; false if it cannot stand in a quoted string. */
static bool add_quoted(struct buf *out, const char *text, size_t len)
{
    if (!buf_append_text(out, "\""))
        return false;
    for (size_t i = 0; i < len; i++) {
        if ((unsigned char)text[i] < ' ' || (unsigned char)text[i] > '~')
            return false;
        if ((text[i] == '"' || text[i] == '\\') && !buf_append_text(out, "\\"))
            return false;
        if (!buf_append(out, (struct span){text + i, 1}))
            return false;
    }
    return buf_append_text(out, "\"");
}

/*
 * The client is a proxy itself, and tells how many may follow it: one less may follow us. Whoever
 * lies about it only locks itself out.
 */
static void note_proxy_ttl(struct login *l, const char *text)
{
    unsigned long told = strtoul(text, NULL, 10);

    if (told <= LOGIN_PROXY_TTL)
        l->proxy_ttl = told == 0 ? 0 : (unsigned)told - 1;
}

/*
 * Keeps one field for the store, unless it would pretend to be ours or does not fit (RFC 2971 3.3:
 * 30 and 1024 octets).
 */
static void keep_id_field(struct login *l, const struct arg *name, const struct arg *value)
{
    char key[31], text[1025];
    struct buf quoted;

    if (value->kind == ARG_NIL || name->value_len >= sizeof key || value->value_len >= sizeof text)
        return;
    arg_copy(name, key, sizeof key);
    arg_copy(value, text, sizeof text);
    if (strcasecmp(key, "x-proxy-ttl") == 0)
        note_proxy_ttl(l, text);
    if (strncasecmp(key, "x-", 2) == 0)
        return;
    buf_init(&quoted, LOGIN_ID_MAX);
    if (add_quoted(&quoted, key, name->value_len) && buf_append_text(&quoted, " ") &&
        add_quoted(&quoted, text, value->value_len) &&
        buf_len(&quoted) + 1 + buf_len(&l->id) <= l->id.ceiling) {
        if (buf_len(&l->id) > 0)
            buf_append_text(&l->id, " ");
        buf_append(&l->id, buf_span(&quoted));
    }
    buf_release(&quoted);
}

static enum login_outcome do_id(struct login *l, struct args *args)
{
    struct arg name, value;
    enum args_id more = ARGS_ID_BAD;

    buf_release(&l->id);
    if (args_space(args))
        for (bool started = false; (more = args_id(args, started, &name, &value)) == ARGS_ID_PAIR;
             started = true)
            keep_id_field(l, &name, &value);
    if (more == ARGS_ID_BAD || !args_end(args))
        return bad(l, "ID takes a list of strings, or NIL.");
    say(l, "* ID (\"name\" \"imapmux\")\r\n%s OK ID completed.\r\n", l->tag);
    return LOGIN_MORE;
}

static enum login_outcome do_starttls(struct login *l, struct args *args)
{
    if (!args_end(args))
        return bad(l, "STARTTLS takes no arguments.");
    if (conn_tls(l->client) != NULL)
        return bad(l, "TLS is already on.");
    if (l->listener->tls != TLS_STARTTLS)
        return bad(l, "STARTTLS is not available here.");
    say(l, "%s OK Begin TLS now.\r\n", l->tag);
    return LOGIN_START_TLS;
}

/* --- who the user is --- */

/* False, with the answer given, when passwords may not be sent on this connection. */
static bool check_privacy(struct login *l)
{
    if (login_allowed(l))
        return true;
    say(l, "%s NO [%s] %s\r\n", l->tag, err_response_code(ERR_PRIVACY), err_user_text(ERR_PRIVACY));
    return false;
}

/*
 * A name that does not fit or holds a NUL cannot exist: it becomes "", which is refused like a
 * wrong password.
 */
static void keep_user(struct login *l, struct span user)
{
    if (user.len >= sizeof l->user || memchr(user.ptr, '\0', user.len) != NULL)
        user.len = 0;
    memcpy(l->user, user.ptr, user.len);
    l->user[user.len] = '\0';
}

static enum login_outcome identified(struct login *l, const char *method, struct span user,
                                     struct span password)
{
    l->method = method;
    keep_user(l, user);
    if (!secret_set(&l->password, password)) { /* an empty one would be refused as a wrong one */
        say(l, "%s NO [SERVERBUG] Out of memory.\r\n", l->tag);
        return LOGIN_MORE;
    }
    return LOGIN_IDENTIFIED;
}

static enum login_outcome do_login(struct login *l, struct args *args)
{
    struct arg user, password;
    char user_text[LOGIN_USER_MAX];

    if (!args_space(args) || !args_astring(args, &user) || !args_space(args) ||
        !args_astring(args, &password) || !args_end(args))
        return bad(l, "LOGIN takes a user name and a password.");
    if (!check_privacy(l))
        return LOGIN_MORE;
    char *password_text = mem_new(password.value_len + 1);
    if (password_text == NULL)
        return bad(l, "[SERVERBUG] Out of memory.");
    size_t user_len = arg_copy(&user, user_text, sizeof user_text);
    arg_copy(&password, password_text, password.value_len + 1);
    enum login_outcome outcome =
        identified(l, "LOGIN", (struct span){user_text, user_len < sizeof user_text ? user_len : 0},
                   (struct span){password_text, password.value_len});
    secret_wipe(password_text, password.value_len);
    mem_free(password_text);
    return outcome;
}

/* Decodes one base64 message into `out` (secret; the caller releases it). */
static bool decode(struct span text, struct buf *out)
{
    buf_init(out, LOGIN_INPUT_MAX);
    return sasl_decode_base64(text, out);
}

static enum login_outcome take_plain(struct login *l, struct span text)
{
    struct buf message;
    struct sasl_plain plain;
    enum login_outcome outcome;

    l->sasl = SASL_NONE;
    if (!decode(text, &message))
        outcome = bad(l, "Invalid base64.");
    else if (!sasl_parse_plain(buf_span(&message), &plain) ||
             (plain.authzid.len > 0 && !span_equal(plain.authzid, plain.authcid)))
        outcome = identified(l, "PLAIN", span_of(""), span_of(""));
    else
        outcome = identified(l, "PLAIN", plain.authcid, plain.password);
    buf_release(&message);
    return outcome;
}

static enum login_outcome take_login_user(struct login *l, struct span text)
{
    struct buf message;
    bool decoded = decode(text, &message);

    if (decoded)
        keep_user(l, buf_span(&message));
    buf_release(&message);
    if (!decoded) {
        l->sasl = SASL_NONE;
        return bad(l, "Invalid base64.");
    }
    l->sasl = SASL_LOGIN_PASSWORD;
    say(l, "+ UGFzc3dvcmQ6\r\n"); /* "Password:" */
    return LOGIN_MORE;
}

static enum login_outcome take_login_password(struct login *l, struct span text)
{
    struct buf message;
    char user[LOGIN_USER_MAX];
    enum login_outcome outcome;

    l->sasl = SASL_NONE;
    memcpy(user, l->user, sizeof user);
    if (!decode(text, &message))
        outcome = bad(l, "Invalid base64.");
    else
        outcome = identified(l, "LOGIN", span_of(user), buf_span(&message));
    buf_release(&message);
    return outcome;
}

/*
 * The first message of a mechanism, which may have come with the command (RFC 4959: "=" is an empty
 * one).
 */
static enum login_outcome do_authenticate(struct login *l, struct args *args)
{
    struct span mechanism, initial = {"", 0};
    bool has_initial = false;

    if (!args_space(args) || !args_word(args, &mechanism))
        return bad(l, "AUTHENTICATE takes a mechanism.");
    if (args_space(args)) {
        has_initial = args_word(args, &initial);
        if (!has_initial)
            return bad(l, "Expected base64 or \"=\".");
    }
    if (!args_end(args))
        return bad(l, "Too many arguments.");
    if (!check_privacy(l))
        return LOGIN_MORE;
    if (span_is(initial, "="))
        initial.len = 0;
    if (span_is(mechanism, "PLAIN")) {
        if (has_initial)
            return take_plain(l, initial);
        l->sasl = SASL_PLAIN_MESSAGE;
        say(l, "+ \r\n");
        return LOGIN_MORE;
    }
    if (span_is(mechanism, "LOGIN")) {
        if (has_initial)
            return take_login_user(l, initial);
        l->sasl = SASL_LOGIN_USER;
        say(l, "+ VXNlcm5hbWU6\r\n"); /* "Username:" */
        return LOGIN_MORE;
    }
    say(l, "%s NO [CANNOT] Unsupported authentication mechanism.\r\n", l->tag);
    return LOGIN_MORE;
}

static enum login_outcome run_sasl_line(struct login *l, struct span line)
{
    while (line.len > 0 && (line.ptr[line.len - 1] == '\n' || line.ptr[line.len - 1] == '\r'))
        line.len--;
    if (span_is(line, "*")) {
        l->sasl = SASL_NONE;
        return bad(l, "Authentication cancelled.");
    }
    switch (l->sasl) {
    case SASL_PLAIN_MESSAGE:
        return take_plain(l, line);
    case SASL_LOGIN_USER:
        return take_login_user(l, line);
    default:
        return take_login_password(l, line);
    }
}

/* --- the answer to it --- */

bool login_accept(struct login *login, struct span capability_list, struct span text)
{
    struct buf answer;
    bool written;

    buf_init(&answer, 64 * 1024);
    if (login->asked_capability)
        buf_printf(&answer, "* CAPABILITY %.*s\r\n", SPAN_ARG(capability_list));
    written = buf_printf(&answer, "%s OK [CAPABILITY %.*s] %.*s\r\n", login->tag,
                         SPAN_ARG(capability_list), SPAN_ARG(text)) &&
              conn_write(login->client, buf_span(&answer));
    buf_release(&answer);
    secret_release(&login->password);
    return written;
}

bool login_refuse(struct login *login, const struct err *err)
{
    secret_release(&login->password);
    if (!say(login, "%s NO [%s] %s\r\n", login->tag, err_response_code(err->kind),
             err_user_text(err->kind)))
        return false;
    if (++login->bad_count < (unsigned)login->conf->login.max_bad_commands)
        return true;
    say(login, "* BYE Too many failed logins.\r\n");
    return false;
}
