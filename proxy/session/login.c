/*
 * Owns the client's side of a session before login: cutting its bytes into commands, and answering
 * them.
 */
#include "proxy/session/login.h"

#include "auth/sasl.h"
#include "proxy/base/mem.h"
#include "proxy/imap/args.h"
#include "proxy/net/client_certificate.h"
#include "proxy/session/offer.h"

#include <assert.h>
#include <stdarg.h>
#include <stdio.h>

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
    *login = (struct login){.conf = conf, .listener = listener, .client = client};
    buf_init(&login->input, LOGIN_INPUT_MAX);
    client_id_init(&login->id);
    begin_command(login);
}

void login_release(struct login *login)
{
    secret_release(&login->who.secret);
    buf_release(&login->input);
    client_id_release(&login->id);
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

static struct offer offer_of(const struct login *l)
{
    return (struct offer){.conf = l->conf, .listener = l->listener, .tls = conn_tls(l->client)};
}

static bool is_offered(const struct login *l, const char *mechanism)
{
    const struct offer offer = offer_of(l);

    return offer_has(&offer, mechanism);
}

static bool is_private(const struct login *l)
{
    const struct offer offer = offer_of(l);

    return offer_is_private(&offer);
}

bool login_greet(struct login *login)
{
    const struct offer offer = offer_of(login);
    char text[OFFER_CAPABILITIES_MAX];

    offer_capabilities(&offer, text);
    return say(login, "* OK [CAPABILITY %s] %.200s\r\n", text, login->conf->login.greeting);
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
    bool sasl = l->sasl.mechanism != NULL || is_command(l, "AUTHENTICATE");

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
        if (!is_private(l) && is_command(l, "LOGIN"))
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
        l->sasl.mechanism != NULL ? run_sasl_line(l, command) : run_command(l, command);

    buf_consume(&l->input, command.len);
    begin_command(l);
    if (l->sasl.mechanism != NULL)
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
    if (l->refusal == NULL && l->sasl.mechanism == NULL) /* else its tag has been seen before */
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
    client_id_release(&login->id);
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
    if (!args_tag(&args, &word) || word.len > LOGIN_TAG_MAX || !args_space(&args) ||
        !args_word(&args, &word))
        return bad(l, "Expected a tag and a command.");
    for (size_t i = 0; i < sizeof commands / sizeof commands[0]; i++)
        if (span_is(word, commands[i].name))
            return commands[i].run(l, &args);
    return bad(l, "Unknown command, or one that needs a login first.");
}

static enum login_outcome do_capability(struct login *l, struct args *args)
{
    const struct offer offer = offer_of(l);
    char text[OFFER_CAPABILITIES_MAX];

    if (!args_end(args))
        return bad(l, "CAPABILITY takes no arguments.");
    l->asked_capability = true;
    offer_capabilities(&offer, text);
    say(l, "* CAPABILITY %s\r\n%s OK CAPABILITY completed.\r\n", text, l->tag);
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

static enum login_outcome do_id(struct login *l, struct args *args)
{
    if (!client_id_read(&l->id, args))
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
    if (is_private(l))
        return true;
    say(l, "%s NO [%s] %s\r\n", l->tag, err_response_code(ERR_PRIVACY), err_user_text(ERR_PRIVACY));
    return false;
}

static enum login_outcome no_memory(struct login *l)
{
    l->sasl.mechanism = NULL;
    say(l, "%s NO [%s] %s\r\n", l->tag, err_response_code(ERR_INTERNAL),
        err_user_text(ERR_INTERNAL));
    return LOGIN_MORE;
}

/* What cannot be right is answered like a wrong password, by whoever looks at it next. */
static enum login_outcome cannot_be_right(struct login *l)
{
    l->who.user[0] = l->who.login_as[0] = '\0';
    l->who.proof = AUTH_BY_PASSWORD;
    secret_release(&l->who.secret);
    return LOGIN_IDENTIFIED;
}

/* Copies an argument as a secret. */
static bool keep_password(struct login *l, const struct arg *password)
{
    char *text = mem_new(password->value_len + 1);
    bool kept = text != NULL;

    if (!kept)
        return false;
    arg_copy(password, text, password->value_len + 1);
    kept = secret_set(&l->who.secret, (struct span){text, password->value_len});
    secret_wipe(text, password->value_len);
    mem_free(text);
    return kept;
}

static enum login_outcome do_login(struct login *l, struct args *args)
{
    const struct offer offer = offer_of(l);
    struct arg user, password;

    if (!args_space(args) || !args_astring(args, &user) || !args_space(args) ||
        !args_astring(args, &password) || !args_end(args))
        return bad(l, "LOGIN takes a user name and a password.");
    if (!check_privacy(l))
        return LOGIN_MORE;
    if (!offer_takes_passwords(&offer)) {
        say(l, "%s NO [CANNOT] Logging in with a password is disabled.\r\n", l->tag);
        return LOGIN_MORE;
    }
    l->method = "LOGIN";
    l->who.proof = AUTH_BY_PASSWORD;
    l->who.login_as[0] = '\0';
    if (!keep_password(l, &password))
        return no_memory(l);
    size_t len = arg_copy(&user, l->who.user, sizeof l->who.user);
    if (len >= sizeof l->who.user || memchr(l->who.user, '\0', len) != NULL)
        return cannot_be_right(l);
    return LOGIN_IDENTIFIED;
}

/* "+" and a message of ours; false without memory. */
static bool challenge(struct login *l, const struct buf *message)
{
    struct buf line;
    bool written;

    buf_init(&line, LOGIN_INPUT_MAX);
    written = buf_append_text(&line, "+ ") && sasl_encode_base64(buf_span(message), &line) &&
              buf_append_text(&line, "\r\n");
    if (written)
        conn_write(l->client, buf_span(&line));
    buf_release(&line);
    return written;
}

static enum login_outcome take_decoded(struct login *l, struct span message)
{
    struct buf answer;
    enum login_outcome outcome = LOGIN_MORE;

    buf_init(&answer, LOGIN_INPUT_MAX);
    switch (sasl_server_step(&l->sasl, message, &answer)) {
    case SASL_CHALLENGE:
        if (!challenge(l, &answer))
            outcome = no_memory(l);
        break;
    case SASL_IDENTIFIED:
        outcome = LOGIN_IDENTIFIED;
        break;
    case SASL_REFUSED:
        outcome = cannot_be_right(l);
        break;
    case SASL_NO_MEMORY:
        outcome = no_memory(l);
        break;
    }
    buf_release(&answer);
    return outcome;
}

/* The client's next message, still in base64. */
static enum login_outcome take_message(struct login *l, struct span text)
{
    struct buf message;
    enum login_outcome outcome;

    buf_init(&message, LOGIN_INPUT_MAX);
    if (text.len > 0 && buf_reserve(&message, text.len) == NULL) {
        outcome = no_memory(l);
    } else if (sasl_decode_base64(text, &message)) {
        outcome = take_decoded(l, buf_span(&message));
    } else {
        l->sasl.mechanism = NULL;
        outcome = bad(l, "Invalid base64.");
    }
    buf_release(&message);
    return outcome;
}

/* False without memory. */
static bool start_exchange(struct login *l, const char *name, bool has_initial)
{
    struct buf first;
    bool started;

    l->method = name;
    l->explained = ERR_NONE;
    secret_release(&l->who.secret);
    l->who.user[0] = '\0';
    if (strcmp(name, "EXTERNAL") == 0)
        (void)client_certificate_user(conn_tls(l->client), &l->conf->tls, l->who.user,
                                      sizeof l->who.user);
    buf_init(&first, LOGIN_INPUT_MAX);
    started =
        sasl_server_start(&l->sasl, name, &l->who, &first) && (has_initial || challenge(l, &first));
    buf_release(&first);
    return started;
}

/*
 * The first message of a mechanism may have come with the command (RFC 4959: "=" is an empty one).
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
    const char *name = sasl_mechanism_name(mechanism);
    if (name == NULL || !is_offered(l, name)) {
        say(l, "%s NO [CANNOT] Unsupported authentication mechanism.\r\n", l->tag);
        return LOGIN_MORE;
    }
    if (!start_exchange(l, name, has_initial))
        return no_memory(l);
    return has_initial ? take_message(l, span_is(initial, "=") ? span_of("") : initial)
                       : LOGIN_MORE;
}

static enum login_outcome end_refused(struct login *l);

static enum login_outcome run_sasl_line(struct login *l, struct span line)
{
    while (line.len > 0 && (line.ptr[line.len - 1] == '\n' || line.ptr[line.len - 1] == '\r'))
        line.len--;
    if (l->explained != ERR_NONE)
        return end_refused(l);
    if (span_is(line, "*")) {
        l->sasl.mechanism = NULL;
        return bad(l, "Authentication cancelled.");
    }
    return take_message(l, line);
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
    secret_release(&login->who.secret);
    return written;
}

/* "NO"; false when that was one too many. */
static bool say_refused(struct login *l, enum err_kind kind)
{
    if (!say(l, "%s NO [%s] %s\r\n", l->tag, err_response_code(kind), err_user_text(kind)))
        return false;
    if (++l->bad_count < (unsigned)l->conf->login.max_bad_commands)
        return true;
    say(l, "* BYE Too many failed logins.\r\n");
    return false;
}

/* Says in a challenge why a token is refused; false when there is nothing to say. */
static bool explain(struct login *l)
{
    const struct conf_oauth *conf = &l->conf->oauth;
    struct buf scope, reason;
    bool explained = true;

    buf_init(&scope, LOGIN_INPUT_MAX);
    buf_init(&reason, LOGIN_INPUT_MAX);
    for (size_t i = 0; explained && i < conf->scope.count; i++)
        explained = (i == 0 || buf_append_text(&scope, " ")) &&
                    buf_append_text(&scope, conf->scope.items[i]);
    explained = explained && buf_append(&scope, (struct span){"", 1}) &&
                sasl_server_explain(&l->sasl, l->method, buf_span(&scope).ptr, conf->discovery_url,
                                    &reason) &&
                challenge(l, &reason);
    buf_release(&scope);
    buf_release(&reason);
    return explained;
}

bool login_refuse(struct login *login, const struct err *err)
{
    secret_release(&login->who.secret);
    if (err->kind != ERR_CREDENTIALS || !explain(login)) {
        login->sasl.mechanism = NULL;
        return say_refused(login, err->kind);
    }
    login->explained = err->kind;
    scan_free_line(&login->scan);
    return true;
}

/* The client has heard why its token is refused. */
static enum login_outcome end_refused(struct login *l)
{
    enum err_kind kind = l->explained;

    l->explained = ERR_NONE;
    l->sasl.mechanism = NULL;
    if (say_refused(l, kind))
        return LOGIN_MORE;
    l->over = "too many failed logins";
    return LOGIN_OVER;
}
