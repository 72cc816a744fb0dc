/*
 * What a session leaves at its store, told as what C (client) and S (server) send. Each is offered
 * whole, cut at every byte, and octet by octet; the same must be said of it each time: what the
 * dialog did beyond passing bytes ("[LOGOUT a1]"), and how the session stands in the end:
 *
 *   clean     nothing is left at the store
 *   selected  nothing but a mailbox that is selected
 *   tainted   at rest, but something may be left
 *   busy      not at rest
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <cmocka.h>

#include "proxy/base/mem.h"
#include "proxy/imap/dialog.h"

enum { CLIENT, SERVER };

struct line {
    int side;
    struct span bytes;
};

struct talk {
    struct dialog dialog;
    char held[2][8000]; /* what the caller of dialog_client, dialog_server keeps */
    size_t held_len[2];
    char story[400];
    bool logged_out; /* what follows is dropped */
};

static struct talk talk;
static bool takes_logout;

static void tell(const char *what, struct span tag)
{
    size_t len = strlen(talk.story), room = sizeof talk.story - len;
    int more = snprintf(talk.story + len, room, "[%s%s%.*s] ", what, tag.len > 0 ? " " : "",
                        SPAN_ARG(tag));

    assert_true(more > 0 && (size_t)more < room);
}

/* Does what one step says; false when nothing more is taken for now. */
static bool do_step(int side, struct span in)
{
    struct dialog_step step;

    (side == CLIENT ? dialog_client : dialog_server)(&talk.dialog, in, &step);
    assert_true(step.len <= in.len);
    if (step.action == DIALOG_REFUSE)
        tell("refused", step.tag);
    if (step.action == DIALOG_LOGOUT)
        tell("LOGOUT", step.tag);
    if (step.action == DIALOG_FAREWELL) {
        assert_true(step.len == 0 && span_is((struct span){in.ptr, 5}, "* BYE"));
        tell("farewell", span_of(""));
    }
    if (step.action == DIALOG_BROKEN)
        tell("broken", span_of(""));
    talk.logged_out = talk.logged_out || step.action == DIALOG_LOGOUT;
    talk.held_len[side] -= step.len;
    memmove(talk.held[side], talk.held[side] + step.len, talk.held_len[side]);
    return (step.len > 0 && !talk.logged_out) || step.action == DIALOG_FAREWELL;
}

/* Offers what is held, from memory of exactly its size, until no more of it is taken. */
static void run(int side)
{
    bool taken = !talk.logged_out;

    while (taken) {
        size_t len = talk.held_len[side];
        char *copy = mem_array(len + (len == 0), 1);

        assert_non_null(copy);
        memcpy(copy, talk.held[side], len);
        taken = do_step(side, (struct span){copy, len});
        mem_free(copy);
    }
}

static void offer(int side, struct span bytes)
{
    assert_true(bytes.len <= sizeof talk.held[side] - talk.held_len[side]);
    memcpy(talk.held[side] + talk.held_len[side], bytes.ptr, bytes.len);
    talk.held_len[side] += bytes.len;
    run(side);
}

/* Offers `first` bytes of each line, then the rest of it in chunks of `step`. */
static void play(const struct line *lines, size_t count, size_t first, size_t step)
{
    talk = (struct talk){.logged_out = false};
    dialog_init(&talk.dialog);
    if (takes_logout)
        dialog_take_logout(&talk.dialog);
    for (size_t i = 0; i < count; i++) {
        struct span left = lines[i].bytes;
        size_t len = first < left.len ? first : left.len;

        while (left.len > 0) {
            offer(lines[i].side, (struct span){left.ptr, len});
            left = span_after(left, len);
            len = step < left.len ? step : left.len;
        }
        run(CLIENT); /* it may have waited for this line */
    }
}

static const char *verdict(void)
{
    const struct dialog *d = &talk.dialog;

    assert_true(dialog_is_quiet(d) || !dialog_is_clean(d));
    if (!dialog_is_quiet(d))
        return "busy";
    if (!dialog_is_clean(d))
        return "tainted";
    return dialog_is_selected(d) ? "selected" : "clean";
}

static void check(const struct line *lines, size_t count, const char *expected)
{
    size_t longest = 0;
    char said[sizeof talk.story + 10];

    for (size_t i = 0; i < count; i++)
        longest = lines[i].bytes.len > longest ? lines[i].bytes.len : longest;
    for (size_t cut = 0; cut <= longest; cut++) {
        play(lines, count, cut, cut == 0 ? 1 : longest); /* 0: octet by octet */
        snprintf(said, sizeof said, "%s%s", talk.story, verdict());
        if (strcmp(said, expected) != 0)
            print_error("cut at %zu of \"%.*s\"\n", cut, SPAN_ARG(lines[0].bytes));
        assert_string_equal(said, expected);
    }
}

#define C(text)                                                                                    \
    {                                                                                              \
        CLIENT,                                                                                    \
        {                                                                                          \
            text, sizeof text - 1                                                                  \
        }                                                                                          \
    }
#define S(text)                                                                                    \
    {                                                                                              \
        SERVER,                                                                                    \
        {                                                                                          \
            text, sizeof text - 1                                                                  \
        }                                                                                          \
    }
#define CHECK(expected, ...)                                                                       \
    check((const struct line[]){__VA_ARGS__},                                                      \
          sizeof((const struct line[]){__VA_ARGS__}) / sizeof(struct line), expected)

/* One command of several lines, perhaps, and its answer. The server asks for each literal. */
static void check_command(const char *command, const char *answer, const char *expected)
{
    char text[1000], reply[100];
    struct line lines[12];
    size_t count = 0;
    int len = snprintf(text, sizeof text, "t1 %s\r\n", command);

    assert_in_range(len, 0, (int)sizeof text - 1);
    for (char *start = text, *end; *start != '\0'; start = end) {
        end = strstr(start, "}\r\n");
        end = end == NULL ? start + strlen(start) : end + 3;
        assert_true(count + 3 < sizeof lines / sizeof lines[0]);
        lines[count++] = (struct line){CLIENT, {start, (size_t)(end - start)}};
        if (*end != '\0' && end[-4] != '+')
            lines[count++] = (struct line)S("+ \r\n");
    }
    snprintf(reply, sizeof reply, "t1 %s\r\n", answer);
    lines[count++] = (struct line){SERVER, span_of(reply)};
    check(lines, count, expected);
}

/* "... %s ..." with the word, a literal's size in the place of "%zu" before it. */
static void check_word(const char *form, const char *word, const char *expected)
{
    char command[800], size[24];
    const char *at = strchr(form, '%');
    size_t len = 0;

    snprintf(size, sizeof size, "%zu", strlen(word));
    for (; at != NULL; at = strchr(form, '%')) {
        len += (size_t)snprintf(command + len, sizeof command - len, "%.*s%s", (int)(at - form),
                                form, at[1] == 'z' ? size : word);
        form = at + (at[1] == 'z' ? 3 : 2);
    }
    snprintf(command + len, sizeof command - len, "%s", form);
    check_command(command, "OK", expected);
}

/* ---- commands ---- */

static const struct {
    const char *word;
    enum effect effect;
} known[] = {
    {"CAPABILITY", EFFECT_NONE},
    {"NOOP", EFFECT_NONE},
    {"CHECK", EFFECT_NONE},
    {"SELECT", EFFECT_SELECTS},
    {"EXAMINE", EFFECT_SELECTS},
    {"CLOSE", EFFECT_UNSELECTS},
    {"UNSELECT", EFFECT_UNSELECTS},
    {"IDLE", EFFECT_IDLES},
    {"LOGOUT", EFFECT_ENDS},
    {"UID", EFFECT_UID},
    {"FETCH", EFFECT_NONE},
    {"STORE", EFFECT_STORES},
    {"SEARCH", EFFECT_NONE},
    {"SORT", EFFECT_NONE},
    {"THREAD", EFFECT_NONE},
    {"COPY", EFFECT_NONE},
    {"MOVE", EFFECT_NONE},
    {"EXPUNGE", EFFECT_NONE},
    {"APPEND", EFFECT_BULK},
    {"LIST", EFFECT_NONE},
    {"LSUB", EFFECT_NONE},
    {"STATUS", EFFECT_NONE},
    {"CREATE", EFFECT_NONE},
    {"DELETE", EFFECT_NONE},
    {"RENAME", EFFECT_NONE},
    {"SUBSCRIBE", EFFECT_NONE},
    {"UNSUBSCRIBE", EFFECT_NONE},
    {"NAMESPACE", EFFECT_NONE},
    {"GETQUOTA", EFFECT_NONE},
    {"GETQUOTAROOT", EFFECT_NONE},
    {"SETQUOTA", EFFECT_NONE},
    {"GETACL", EFFECT_NONE},
    {"SETACL", EFFECT_NONE},
    {"DELETEACL", EFFECT_NONE},
    {"LISTRIGHTS", EFFECT_NONE},
    {"MYRIGHTS", EFFECT_NONE},
    {"GETMETADATA", EFFECT_NONE},
    {"SETMETADATA", EFFECT_NONE},
    {"STARTTLS", EFFECT_REFUSED},
    {"LOGIN", EFFECT_REFUSED},
    {"AUTHENTICATE", EFFECT_REFUSED},
    {"COMPRESS", EFFECT_REFUSED},
    {"UNAUTHENTICATE", EFFECT_REFUSED},
};

static bool is_known(struct span name)
{
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++)
        if (span_is(name, known[i].word))
            return true;
    return false;
}

static void names_are_found_once_they_are_complete(void **state)
{
    const struct command *command;

    (void)state;
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++) {
        char name[32];

        snprintf(name, sizeof name, "%s1", known[i].word);
        for (size_t len = 0; len <= strlen(known[i].word); len++) {
            struct span part = {name, len};

            assert_false(command_find(part, false, &command)); /* it may become this one */
            assert_true(command_find(part, true, &command));
            assert_int_equal(command->effect != EFFECT_UNKNOWN, is_known(part));
            if (len > 0)
                name[len - 1] |= 0x20; /* to lower case, one by one */
        }
        assert_int_equal(command->effect, known[i].effect);
        assert_string_equal(command->word, known[i].word);
        assert_int_equal(command->refusal != NULL, known[i].effect == EFFECT_REFUSED);
        assert_true(command_find(span_of(name), false, &command)); /* too long for any */
        assert_int_equal(command->effect, EFFECT_UNKNOWN);
    }
}

static const char *const harmless[] = {
    "CAPABILITY",
    "NOOP",
    "noop",
    "CHECK",
    "UID FETCH 1:* (FLAGS BODY.PEEK[HEADER.FIELDS (SUBJECT)])",
    "UID SEARCH CHARSET UTF-8 BODY {3}\r\none UNSEEN",
    "UID EXPUNGE 1:*",
    "FETCH 1 (UID RFC822.SIZE ENVELOPE)",
    "STORE 1 +FLAGS (\\Seen)",
    "SEARCH RETURN (MIN MAX COUNT ALL) SEEN",
    "SORT (REVERSE DATE) UTF-8 ALL",
    "THREAD REFERENCES US-ASCII ALL",
    "COPY 1 Archive",
    "MOVE 1:3 \"a b\"",
    "EXPUNGE",
    "APPEND INBOX (\\Seen keyword) {3}\r\n(\r\n",
    "LIST (SUBSCRIBED) \"\" (\"*\" \"%\") RETURN (CHILDREN STATUS (MESSAGES))",
    "LSUB \"\" \"*\"",
    "STATUS INBOX (MESSAGES UIDNEXT UIDVALIDITY UNSEEN)",
    "CREATE new (USE (\\Drafts))",
    "DELETE {3}\r\nnew",
    "RENAME {3}\r\none {3}\r\ntwo",
    "SUBSCRIBE INBOX",
    "UNSUBSCRIBE INBOX",
    "NAMESPACE",
    "GETQUOTA \"\"",
    "GETQUOTAROOT INBOX",
    "SETQUOTA \"\" (STORAGE 512)",
    "GETACL INBOX",
    "SETACL INBOX ann lrs",
    "DELETEACL INBOX ann",
    "LISTRIGHTS INBOX ann",
    "MYRIGHTS INBOX",
    "GETMETADATA INBOX (/private/comment)",
    "SETMETADATA INBOX (/private/comment \"my own\")",
    "CLOSE",
    "UNSELECT",
};

static void what_leaves_nothing_stays_clean_if_answered_ok(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof harmless / sizeof harmless[0]; i++) {
        check_command(harmless[i], "OK", "clean");
        check_command(harmless[i], "ok [READ-ONLY] done {3}", "clean");
    }
}

static void no_and_bad_taint(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof harmless / sizeof harmless[0]; i++) {
        check_command(harmless[i], "NO [TRYCREATE] there is none", "tainted");
        check_command(harmless[i], "bad syntax", "tainted");
    }
    check_command("SELECT x", "NO", "tainted");
    /* of any command, and whatever comes later */
    CHECK("tainted", C("a1 NOOP\r\na2 NOOP\r\na3 NOOP\r\n"),
          S("a1 OK\r\na2 NO\r\na3 OK\r\n* 1 EXISTS\r\n"), C("a4 NOOP\r\n"), S("a4 OK\r\n"));
    CHECK("tainted", C("a1 APPEND x {3}\r\n"), S("a1 NO\r\n"), C("a2 NOOP\r\n"), S("a2 OK\r\n"));
}

static void other_answers_do_not(void **state)
{
    (void)state;
    CHECK("clean", C("a1 NOOP\r\n"), S("* NO not so well\r\n* OK\r\na1 OK\r\n"));
    CHECK("clean", C("a1 NOOP\r\na2 FETCH 1 FLAGS\r\n"), S("a2 OK\r\n* 1 EXISTS\r\na1 OK\r\n"));
    CHECK("clean", C("a1 FETCH 1 BODY[]\r\n"),
          S("* 1 FETCH (BODY[] {21}\r\na1 NO\r\n* BYE\r\nMODSEQ)\r\na1 OK\r\n"));
    CHECK("clean", S("* OK\r\n"));
    CHECK("clean", C("a NOOP\r\na NOOP\r\n"), S("a OK\r\na OK\r\n"));
}

static void unknown_commands_taint(void **state)
{
    static const char *const commands[] = {"ID NIL",           "ID (\"name\" \"x\")",
                                           "ENABLE CONDSTORE", "NOTIFY NONE",
                                           "LANGUAGE DE",      "XLIST \"\" \"*\"",
                                           "NONSENSE",         "NOOPS",
                                           "X-NOOP",           "NO OP",
                                           "UIDFETCH 1 UID",   "GETQUOTAROOTS",
                                           "CANCELUPDATE x"};

    (void)state;
    for (size_t i = 0; i < sizeof commands / sizeof commands[0]; i++)
        check_command(commands[i], "OK", "tainted");
    /* those whose answer cannot be told, having no tag */
    CHECK("tainted", C("\r\n"));
    CHECK("tainted", C("* NOOP\r\n"), S("* OK\r\n"));
    CHECK("tainted", C("a+1 NOOP\r\n"));
    CHECK("tainted", C("\0 NOOP\r\n"));
}

static void what_never_reaches_the_store_leaves_nothing(void **state)
{
    (void)state;
    CHECK("[refused a1] clean", C("a1 LOGIN ann MODSEQ\r\n"));
    CHECK("[refused a1] [refused a2] [refused a3] clean",
          C("a1 STARTTLS\r\na2 COMPRESS DEFLATE\r\na3 AUTHENTICATE {6+}\r\nMODSEQ\r\n"));
    CHECK("[refused a1] clean", C("a1 UNAUTHENTICATE\r\na2 NOOP\r\n"), S("a2 OK\r\n"));
}

/* A store that could not read what it got says so without a tag, for it knows of none. */
static void an_untagged_bad_taints(void **state)
{
    (void)state;
    CHECK("tainted", S("* BAD\r\n"));
    CHECK("tainted", C("a1 NOOP\r\n"), S("* bad syntax {3}\r\na1 OK\r\n"), C("a2 NOOP\r\n"),
          S("a2 OK\r\n"));
    CHECK("busy", C("a1 NOOP\r\n"), S("* BAD\r\n"));
    CHECK("clean", S("* BADLY\r\n* 1 FETCH (X {7}\r\n* BAD\r\n)\r\n*  BAD\r\n"));
}

/* The store may take the octets of a literal for commands if it did not ask for them. */
static void literals_that_do_not_wait_taint_but_in_append(void **state)
{
    static const char *const commands[] = {
        "SEARCH {3+}\r\nabc",   "SEARCH BODY {1}\r\nx FROM {0+}\r\n",
        "LIST {1+}\r\nx \"*\"", "SELECT {5+}\r\nINBOX",
        "NOOP ~{1+}\r\nx",
    };

    (void)state;
    for (size_t i = 0; i < sizeof commands / sizeof commands[0]; i++)
        check_command(commands[i], "OK", "tainted");
    check_command("APPEND {5+}\r\nINBOX {3+}\r\nabc ~{1+}\r\nx", "OK", "clean");
    check_command("SEARCH {3}\r\nabc FROM \"{3+}\"", "OK", "clean");
}

/* ---- words ---- */

static const char *const sticky[] = {
    "MODSEQ", "CONDSTORE", "QRESYNC", "CHANGEDSINCE", "UNCHANGEDSINCE", "HIGHESTMODSEQ", "VANISHED",
    "SAVE",   "UPDATE",    "CONTEXT", "UTF8",         "KEYWORD",        "UNKEYWORD",
};

static void mix_case(const char *word, char out[32])
{
    size_t len = strlen(word);

    for (size_t i = 0; i <= len; i++)
        out[i] = i % 2 == 0 && word[i] >= 'A' ? (char)(word[i] | 0x20) : word[i];
}

static void sticky_words_taint_in_any_form(void **state)
{
    static const char *const forms[] = {
        "FETCH 1 %s",
        "UID FETCH 1:* (FLAGS) (%s 5)",
        "SEARCH RETURN (%s) ALL",
        "STATUS INBOX (MESSAGES %s)",
        "SEARCH \"%s\"",
        "SEARCH BODY \"a\\\"b\" NOT \"(%s)\"",
        "SEARCH {%zu}\r\n%s",
        "SEARCH {%zu}\r\n%s NOT {1}\r\nx",
        "SEARCH {1}\r\nx {%zu}\r\n%s",
        "LIST \"\" \"*\" RETURN (%s=1)",
        "STORE 1 (%s 5) FLAGS ()",
        "SELECT x %s",
        "SELECT %s",
        "CLOSE %s",
        "IDLE %s",
        "NOOP\t%s",
        "NOOP %s\r",
        "NOOP \\%s",
        "FETCH 1 RFC822.%s",
    };
    char mixed[32];

    (void)state;
    for (size_t i = 0; i < sizeof sticky / sizeof sticky[0]; i++) {
        mix_case(sticky[i], mixed);
        for (size_t j = 0; j < sizeof forms / sizeof forms[0]; j++) {
            check_word(forms[j], sticky[i], "tainted");
            check_word(forms[j], mixed, "tainted");
        }
    }
    check_command("SEARCH \"MOD\\SEQ\"", "OK", "tainted"); /* as a lenient store might read it */
    check_command("SEARCH {3}\r\nMODSEQ 1", "OK", "tainted");
}

static void longer_and_shorter_words_do_not(void **state)
{
    static const char *const forms[] = {"SEARCH X%s",          "SEARCH %sX", "SEARCH \"%s_\"",
                                        "SEARCH {%zu}\r\n%s1", "SEARCH 1%s", "SEARCH %s12345678"};

    (void)state;
    for (size_t i = 0; i < sizeof sticky / sizeof sticky[0]; i++) {
        char shorter[32];

        snprintf(shorter, sizeof shorter, "%.*s", (int)strlen(sticky[i]) - 1, sticky[i]);
        check_word("SEARCH %s", shorter, "clean");
        check_word("SEARCH %s", sticky[i] + 1, "clean");
        for (size_t j = 0; j < sizeof forms / sizeof forms[0]; j++)
            check_word(forms[j], sticky[i], "clean");
    }
    check_command("SEARCH CHARSET UTF-8 ALL", "OK", "clean");
    check_command("SEARCH MOD SEQ MOD-SEQ \"MOD\xffSEQ\"", "OK", "clean");
}

static void a_word_may_be_of_any_length(void **state)
{
    char word[560];

    (void)state;
    memset(word, 'x', sizeof word - 1);
    word[sizeof word - 1] = '\0';
    for (size_t len = 1; len < sizeof word; len += len < 30 ? 1 : 127) {
        check_word("SEARCH %s", word + sizeof word - 1 - len, "clean");
        check_word("STORE 1 FLAGS %s", word + sizeof word - 1 - len, "tainted");
    }
    memcpy(word + sizeof word - 1 - 6, "MODSEQ", 6);
    for (size_t len = 7; len < 300; len++)
        check_word("SEARCH %s", word + sizeof word - 1 - len, "clean");
}

static void mail_may_contain_any_words(void **state)
{
    static const char *const forms[] = {
        "APPEND INBOX {%zu}\r\n%s",      "append INBOX (\\Seen) {%zu+}\r\n%s",
        "APPEND \"%s\" {3}\r\nabc",      "APPEND INBOX {1}\r\nx {%zu}\r\n%s {1+}\r\ny",
        "APPEND INBOX ~{%zu+}\r\n%s ()",
    };

    (void)state;
    for (size_t i = 0; i < sizeof sticky / sizeof sticky[0]; i++)
        for (size_t j = 0; j < sizeof forms / sizeof forms[0]; j++)
            check_word(forms[j], sticky[i], "clean");
    /* but what follows it may not */
    CHECK("tainted", C("a1 APPEND x {3+}\r\nabc\r\na2 FETCH 1 MODSEQ\r\n"),
          S("a1 OK\r\na2 OK\r\n"));
    CHECK("tainted", C("a1 APPEND x {3}\r\na2 SEARCH MODSEQ 1\r\n"), S("a1 BAD\r\n"),
          S("a2 OK\r\n"));
}

static void keywords_that_are_stored_taint(void **state)
{
    static const char *const keywords[] = {
        "STORE 1 +FLAGS (label)",
        "STORE 1 FLAGS label",
        "STORE 1:* -FLAGS.SILENT ($Forwarded)",
        "store 1 flags (\\Seen NonJunk \\Deleted)",
        "UID STORE 1 +FLAGS (\\Seen $Junk)",
        "uid Store 1,3:* flags.silent (k)",
        "STORE 1 FLAGS (\\Seen a)",
        "STORE 1 FLAGS (x\\Seen)",
        "STORE 1 FLAGS ({5}\r\nlabel)",
        "STORE 1 FLAGS {5}\r\nlabel",
        "STORE 1 FLAGS (\"\\Seen\")",
        "STORE 1 FLAGS {5}\r\n\\Seen",
        "STORE 1 FLAGS (\\Seen)x",
        "STORE 1 FLAGS (\\Seen) x",
        "STORE 1 FLAGS(x)",
        "STORE\t1  FLAGS\t(\\Seen\tx)",
        /* whatever they look like */
        "STORE 1 FLAGS (123)",
        "STORE 1 FLAGS ($)",
        "STORE 1 FLAGS ($1 \\Seen)",
        "STORE 1 FLAGS (\\Seen +-)",
        "UID STORE 1 FLAGS _",
        "STORE 1 FLAGS (\xc3\xa4)",
        "STORE 1 +FLAGS (Silent)",
        "UID STORE 1 -FLAGS (flags)",
    };
    static const char *const flags[] = {
        "STORE 1 +FLAGS (\\Seen)",
        "STORE 1 FLAGS ()",
        "store 1:* -flags.silent (\\Seen \\Answered \\Flagged \\Deleted \\Draft)",
        "UID STORE 1,3:*,12 Flags.Silent (\\deleted)",
        "STORE $ FLAGS \\Seen",
        /* neither STORE nor its flags */
        "UID FETCH 1 (FLAGS label)",
        "UID SEARCH HEADER STORE x",
        "SEARCH HEADER STORE label",
        "COPY 1 STOREFRONT",
    };

    (void)state;
    for (size_t i = 0; i < sizeof keywords / sizeof keywords[0]; i++)
        check_command(keywords[i], "OK", "tainted");
    for (size_t i = 0; i < sizeof flags / sizeof flags[0]; i++)
        check_command(flags[i], "OK", "clean");
    /* of each command for itself */
    CHECK("tainted", C("a1 SEARCH BODY x\r\na2 STORE 1 FLAGS (k)\r\n"), S("a1 OK\r\na2 OK\r\n"));
    CHECK("tainted", C("a1 SEARCH ALL\r\na2 UID STORE 1 FLAGS (k)\r\n"), S("a1 OK\r\na2 OK\r\n"));
    CHECK("clean", C("a1 SEARCH ALL\r\na2 STORE 1 FLAGS (\\Seen)\r\n"), S("a1 OK\r\na2 OK\r\n"));
    CHECK("clean", C("a1 STORE 1 FLAGS (\\Seen)\r\na2 FETCH 1 (BODY[])\r\n"),
          S("a1 OK\r\na2 OK\r\n"));
}

/* A tag may look like several words, and like those that are looked for. */
static void store_is_found_behind_any_tag(void **state)
{
    static const char *const tags[] = {"a",   "1.2", "1.2.3", ".", "a-b_c:d",
                                       "#1#", "UID", "STORE", "]"};
    static const struct {
        const char *command, *expected;
    } cases[] = {
        {"STORE 1 FLAGS (x)", "tainted"},    {"UID STORE 1 FLAGS (x)", "tainted"},
        {"STORE 1 FLAGS (\\Seen)", "clean"}, {"UID STORE 1 FLAGS (\\Seen)", "clean"},
        {"UID FETCH 1 (FLAGS x)", "clean"},  {"FETCH 1 (FLAGS x)", "clean"},
        {"COPY STORE 1 x (y)", "clean"},     {"UID COPY 1 x", "clean"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof tags / sizeof tags[0]; i++) {
        for (size_t j = 0; j < sizeof cases / sizeof cases[0]; j++) {
            char command[100], answer[30];

            snprintf(command, sizeof command, "%s %s\r\n", tags[i], cases[j].command);
            snprintf(answer, sizeof answer, "%s OK\r\n", tags[i]);
            check((struct line[]){{CLIENT, span_of(command)}, {SERVER, span_of(answer)}}, 2,
                  cases[j].expected);
        }
    }
}

/* ---- a selected mailbox ---- */

static void a_selected_mailbox_is_all_that_is_left(void **state)
{
    (void)state;
    check_command("SELECT INBOX", "OK [READ-WRITE]", "selected");
    check_command("examine \"a b\"", "OK", "selected");
    check_command("SELECT {5}\r\nINBOX", "OK", "selected");
    CHECK("selected", C("a1 SELECT x\r\na2 FETCH 1 FLAGS\r\n"), S("a1 OK\r\na2 OK\r\n"),
          C("a3 NOOP\r\n"), S("a3 OK\r\n"));
    CHECK("selected", C("a1 SELECT x\r\n"), S("a1 OK\r\n"), C("a2 SELECT y\r\n"), S("a2 OK\r\n"));
}

static void parameters_of_select_taint(void **state)
{
    static const char *const commands[] = {
        "SELECT INBOX (CONDSTORE)",         "SELECT INBOX(X)", "EXAMINE {5}\r\nINBOX (X)",
        "select \"x\" (QRESYNC (1 1 1:8))", "SELECT (",        "SELECT INBOX ()"};

    (void)state;
    for (size_t i = 0; i < sizeof commands / sizeof commands[0]; i++)
        check_command(commands[i], "OK", "tainted");
    /* of SELECT only */
    CHECK("selected", C("a1 SELECT x\r\na2 FETCH 1 (FLAGS)\r\n"), S("a1 OK\r\na2 OK\r\n"));
}

#define SELECTED C("a1 SELECT x\r\n"), S("a1 OK\r\n")

static void close_and_unselect_alone_unselect(void **state)
{
    (void)state;
    CHECK("clean", SELECTED, C("a2 CLOSE\r\n"), S("a2 OK\r\n"));
    CHECK("clean", SELECTED, C("a2 unselect\r\n"), S("* OK [CLOSED]\r\na2 OK\r\n"));
    CHECK("clean", SELECTED, C("a2 CLOSE\r\n"), S("a2 OK\r\n"), C("a3 NOOP\r\n"), S("a3 OK\r\n"));
    CHECK("selected", SELECTED, C("a2 CLOSE\r\n"), S("a2 OK\r\n"), C("a3 SELECT y\r\n"),
          S("a3 OK\r\n"));
    CHECK("tainted", SELECTED, C("a2 CLOSE\r\n"), S("a2 NO\r\n"));
    assert_true(dialog_is_selected(&talk.dialog));
    CHECK("busy", SELECTED, C("a2 CLOSE\r\n"));
    assert_true(dialog_is_selected(&talk.dialog));
}

static void pipelined_ones_do_not(void **state)
{
    (void)state;
    CHECK("selected", C("a1 SELECT x\r\na2 CLOSE\r\n"), S("a1 OK\r\na2 OK\r\n"));
    CHECK("selected", C("a1 SELECT x\r\na2 CLOSE\r\n"), S("a2 OK\r\na1 OK\r\n"));
    CHECK("selected", SELECTED, C("a2 CLOSE\r\na3 SELECT y\r\n"), S("a2 OK\r\na3 OK\r\n"));
    CHECK("selected", SELECTED, C("a2 CLOSE\r\na3 SELECT y\r\n"), S("a3 OK\r\na2 OK\r\n"));
    CHECK("selected", SELECTED, C("a2 UNSELECT\r\na3 NOOP\r\n"), S("a2 OK\r\na3 OK\r\n"));
    CHECK("selected", C("a SELECT x\r\na CLOSE\r\n"), S("a OK\r\na OK\r\n"));
    /* the next one may */
    CHECK("clean", C("a1 SELECT x\r\na2 CLOSE\r\n"), S("a1 OK\r\na2 OK\r\n"), C("a3 CLOSE\r\n"),
          S("a3 OK\r\n"));
}

/* ---- at rest ---- */

static void what_is_not_finished_is_not_clean(void **state)
{
    (void)state;
    CHECK("busy", C("a1 NOOP\r\n"));
    CHECK("busy", C("a1 NOOP "));
    CHECK("clean", C("a1 NOOP")); /* not yet known: whoever holds these octets must know of them */
    CHECK("busy", C("a1 NOOP\r\na2 NOOP\r\n"), S("a1 OK\r\n"));
    CHECK("busy", C("a1 NOOP\r\na2 FETCH 1"), S("a1 OK\r\n"));
    CHECK("busy", C("a1 SEARCH {3}\r\n"));
    CHECK("busy", C("a1 SEARCH {3}\r\n"), S("+ \r\n"), C("ab"));
    CHECK("busy", C("a1 SEARCH {3}\r\n"), S("+ \r\n"), C("abc"));
    CHECK("busy", C("a1 SEARCH {3}\r\n"), S("+ \r\n"), C("abc\r\n"));
    CHECK("clean", C("a1 SEARCH {3}\r\n"), S("+ \r\n"), C("abc\r\n"), S("a1 OK\r\n"));
    CHECK("busy", C("a1 SEARCH {3+}\r\nab"));
    CHECK("busy", C("a1 APPEND x {3+}\r\n"), S("a1 OK\r\n"));
    CHECK("busy", C("a1 NOOP\r\n"), S("a1 OK\r\n* 1 EXISTS"));
    CHECK("busy", C("a1 NOOP\r\n"), S("a1 OK\r\n* 1 FETCH (BODY[] {3}\r\nab"));
    CHECK("busy", C("a1 NOOP\r\n"), S("a1 OK"));
    CHECK("busy", C("a1 NOOP\r\n"), S("a1 OK\r\n* CAPABILITY X")); /* held, to be rewritten */
}

static void idle_is_clean_once_it_is_over(void **state)
{
    (void)state;
    CHECK("busy", C("a1 IDLE\r\n"));
    CHECK("busy", C("a1 IDLE\r\n"), S("+ idling\r\n"));
    CHECK("busy", C("a1 IDLE\r\n"), S("+ idling\r\n"), C("DONE"));
    CHECK("busy", C("a1 IDLE\r\n"), S("+ idling\r\n"), C("DONE\r\n"));
    CHECK("clean", C("a1 IDLE\r\n"), S("+ idling\r\n"), C("DONE\r\n"), S("a1 OK\r\n"));
    CHECK("clean", C("a1 IDLE\r\nDONE\r\n"), S("+ \r\n* 1 EXISTS\r\n"), S("a1 OK\r\n"));
    CHECK("clean", C("a1 IDLE\r\nDONE\r\na2 NOOP\r\n"), S("+ \r\n"), S("a1 OK\r\na2 OK\r\n"));
    CHECK("selected", SELECTED, C("a2 IDLE\r\n"), S("+ \r\n"), C("DONE\r\n"), S("a2 OK\r\n"));
    CHECK("tainted", C("a1 IDLE\r\n"), S("a1 BAD\r\n"));
    CHECK("tainted", C("a1 IDLE\r\n"), S("+ \r\n"), C("MODSEQ\r\n"), S("a1 OK\r\n"));
}

static void answers_with_a_wrong_tag_are_not_clean(void **state)
{
    (void)state;
    CHECK("busy", C("a1 NOOP\r\n"), S("a2 OK\r\n"));
    CHECK("busy", C("a1 NOOP\r\n"), S("a1 OK\r\na1 OK\r\n"));
    CHECK("busy", C("a1 NOOP\r\n"), S("A1 OK\r\n"));
    CHECK("busy", C("a1 NOOP\r\na2 NOOP\r\n"), S("a1 OK\r\na1 OK\r\n"));
    CHECK("busy", S("a1 OK\r\n"));
    CHECK("busy", S("a1 OK\r\n"), C("a1 NOOP\r\n"));
    CHECK("busy", S("a1 OK\r\n"), C("a1 NOOP\r\n"), S("a1 OK\r\n"));
    CHECK("busy", S("x OK\r\n"), C("a1 NOOP\r\n"), S("a1 OK\r\n"));
}

static void untagged_junk_answers_nothing(void **state)
{
    static const struct line junk[] = {
        S("* 7 EXISTS\r\n"), S("* X {7}\r\na1 OK\r\n\r\n"),
        S("junk\r\n"),       S("\r\n"),
        S("* * *\n"),        S("a1 OKAY\r\n"),
        S(" a1 OK\r\n"),     S("a1  OK\r\n"),
        S("+ more\r\n"),     S("\0\xff\r\n"),
        S("* a1 OK\r\n"),    S("a1\r\n"),
    };

    (void)state;
    for (size_t i = 0; i < sizeof junk / sizeof junk[0]; i++) {
        check(&junk[i], 1, "clean");
        check((struct line[]){C("a1 NOOP\r\n"), junk[i]}, 2, "busy");
        check((struct line[]){C("a1 NOOP\r\n"), junk[i], S("a1 OK\r\n")}, 3, "clean");
    }
}

/* ---- the end ---- */

static int take_logout(void **state)
{
    (void)state;
    takes_logout = true;
    return 0;
}

static int leave_logout(void **state)
{
    (void)state;
    takes_logout = false;
    return 0;
}

static void logout_passes_unless_it_is_to_be_taken(void **state)
{
    (void)state;
    CHECK("busy", C("a1 LOGOUT\r\n"));
    assert_true(dialog_logout_seen(&talk.dialog));
    CHECK("busy", C("a1 LOGOUT\r\n"), S("* BYE\r\na1 OK\r\n")); /* no farewell: it was asked for */
    assert_true(dialog_logout_seen(&talk.dialog) && dialog_bye_seen(&talk.dialog));
}

static void a_bare_logout_is_taken(void **state)
{
    (void)state;
    CHECK("[LOGOUT a1] clean", C("a1 LOGOUT\r\n"));
    assert_false(dialog_logout_seen(&talk.dialog));
    assert_int_equal(dialog_open_count(&talk.dialog), 0);
    CHECK("[LOGOUT a1] clean", C("a1 logout\n"));
    CHECK("[LOGOUT A.1]~] clean", C("A.1]~ LogOut \r\n"));
    CHECK("[LOGOUT a3] clean", C("a1 NOOP\r\na2 FETCH 1 FLAGS\r\n"), S("a1 OK\r\na2 OK\r\n"),
          C("a3 LOGOUT\r\n"));
    CHECK("[LOGOUT a2] selected", SELECTED, C("a2 LOGOUT\r\na3 FETCH 1 MODSEQ\r\n"));
    CHECK("[LOGOUT a2] clean", C("a1 IDLE\r\nDONE\r\n"), S("+ \r\n"), S("a1 OK\r\n"),
          C("a2 LOGOUT\r\n"));
    CHECK("[refused a1] [LOGOUT a2] clean", C("a1 LOGIN x y\r\na2 LOGOUT\r\n"));
    /* behind others, which the store has yet to answer */
    CHECK("[LOGOUT a2] busy", C("a1 NOOP\r\na2 LOGOUT\r\n"));
    talk.logged_out = false;
    offer(SERVER, span_of("a1 OK\r\n"));
    assert_string_equal(verdict(), "clean");
}

static void any_other_logout_is_the_stores(void **state)
{
    static const char *const others[] = {
        "a1 LOGOUT x\r\n", "a1 LOGOUT {3}\r\n", "a1 LOGOUT \"\"\r\n", " a1 LOGOUT\r\n",
        "a1  LOGOUT\r\n",  "a1\tLOGOUT\r\n",    "a1 LOGOUT\t\r\n",    "a1 LOGOUT\r\r\n",
        "a1 LOGOUT (\r\n", "+ LOGOUT\r\n",      "a1 LOGOUT \r \r\n",  "a+ LOGOUT\r\n",
    };

    (void)state;
    for (size_t i = 0; i < sizeof others / sizeof others[0]; i++) {
        check((struct line[]){{CLIENT, span_of(others[i])}}, 1, "busy");
        assert_true(dialog_logout_seen(&talk.dialog));
    }
    check_command("LOGOUTS", "OK", "tainted");
    assert_false(dialog_logout_seen(&talk.dialog));
}

static void logout_of_a_tainted_session_is_the_stores(void **state)
{
    (void)state;
    CHECK("busy", C("a1 ENABLE CONDSTORE\r\na2 LOGOUT\r\n"));
    CHECK("busy", C("a1 FETCH 1 MODSEQ\r\n"), S("a1 OK\r\n"), C("a2 LOGOUT\r\n"));
    CHECK("busy", C("a1 NOOP\r\n"), S("a1 NO\r\n"), C("a2 LOGOUT\r\n"), S("* BYE\r\na2 OK\r\n"));
    assert_true(dialog_logout_seen(&talk.dialog));
}

static void a_bye_of_the_server_is_a_farewell(void **state)
{
    (void)state;
    CHECK("[farewell] busy", S("* BYE\r\n"));
    assert_true(dialog_bye_seen(&talk.dialog));
    CHECK("[farewell] busy", S("* bye [UNAVAILABLE] shutting down {3}\r\n"));
    CHECK("[farewell] busy", S("* OK\r\n* BYE\r\n* BYE again\r\n"));
    CHECK("[farewell] busy", C("a1 NOOP\r\n"), S("* BYE\r\na1 OK\r\n"));
    CHECK("[farewell] busy", C("a1 IDLE\r\n"), S("+ \r\n* BYE\r\n"));
    CHECK("busy", S("* BYE")); /* not whole */
    assert_false(dialog_bye_seen(&talk.dialog));
    CHECK("clean", S("* BYES\r\n* 1 FETCH (X {7}\r\n* BYE\r\n)\r\na BYE\r\n"));
}

/* The farewell is shown before it passes, with what came before it out of the way. */
static void a_farewell_takes_nothing(void **state)
{
    static const char text[] = "* 1 EXISTS\r\n* BYE x\r\n";
    struct span in = {text, sizeof text - 1};
    struct dialog d;
    struct dialog_step step;

    (void)state;
    dialog_init(&d);
    dialog_server(&d, in, &step);
    assert_int_equal(step.action, DIALOG_PASS);
    assert_int_equal(step.len, 12);
    in = span_after(in, step.len);
    dialog_server(&d, in, &step);
    assert_int_equal(step.action, DIALOG_FAREWELL);
    assert_int_equal(step.len, 0);
    assert_false(dialog_bye_seen(&d));
    dialog_server(&d, in, &step);
    assert_int_equal(step.action, DIALOG_PASS);
    assert_int_equal(step.len, in.len);
    assert_true(dialog_bye_seen(&d));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(names_are_found_once_they_are_complete),
        cmocka_unit_test(what_leaves_nothing_stays_clean_if_answered_ok),
        cmocka_unit_test(no_and_bad_taint),
        cmocka_unit_test(other_answers_do_not),
        cmocka_unit_test(unknown_commands_taint),
        cmocka_unit_test(what_never_reaches_the_store_leaves_nothing),
        cmocka_unit_test(an_untagged_bad_taints),
        cmocka_unit_test(literals_that_do_not_wait_taint_but_in_append),
        cmocka_unit_test(sticky_words_taint_in_any_form),
        cmocka_unit_test(longer_and_shorter_words_do_not),
        cmocka_unit_test(a_word_may_be_of_any_length),
        cmocka_unit_test(mail_may_contain_any_words),
        cmocka_unit_test(keywords_that_are_stored_taint),
        cmocka_unit_test(store_is_found_behind_any_tag),
        cmocka_unit_test(a_selected_mailbox_is_all_that_is_left),
        cmocka_unit_test(parameters_of_select_taint),
        cmocka_unit_test(close_and_unselect_alone_unselect),
        cmocka_unit_test(pipelined_ones_do_not),
        cmocka_unit_test(what_is_not_finished_is_not_clean),
        cmocka_unit_test(idle_is_clean_once_it_is_over),
        cmocka_unit_test(answers_with_a_wrong_tag_are_not_clean),
        cmocka_unit_test(untagged_junk_answers_nothing),
        cmocka_unit_test(logout_passes_unless_it_is_to_be_taken),
        cmocka_unit_test_setup_teardown(a_bare_logout_is_taken, take_logout, leave_logout),
        cmocka_unit_test_setup_teardown(any_other_logout_is_the_stores, take_logout, leave_logout),
        cmocka_unit_test_setup_teardown(logout_of_a_tainted_session_is_the_stores, take_logout,
                                        leave_logout),
        cmocka_unit_test(a_bye_of_the_server_is_a_farewell),
        cmocka_unit_test(a_farewell_takes_nothing),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
