/* One server line, taken apart. */
#include "proxy/imap/reply.h"

#include "proxy/imap/args.h"

static const struct {
    const char *word;
    enum reply_kind kind;
    bool is_status; /* has a response code and human text, and may be tagged */
} kinds[] = {
    {"OK", REPLY_OK, true},           {"NO", REPLY_NO, true},
    {"BAD", REPLY_BAD, true},         {"BYE", REPLY_BYE, true},
    {"PREAUTH", REPLY_PREAUTH, true}, {"CAPABILITY", REPLY_CAPABILITY, false},
    {"ID", REPLY_ID, false},
};

static struct span without_line_end(struct span line);
static struct span word_of(struct span text);
static struct span skip_space(struct span text);
static void read_kind(struct span text, struct reply *reply);
static void read_code(struct reply *reply);
static size_t code_len(struct span text);

bool reply_parse(struct span line, struct reply *reply_out)
{
    line = without_line_end(line);
    if (line.len == 0 || memchr(line.ptr, '\0', line.len) != NULL)
        return false;
    *reply_out = (struct reply){.kind = REPLY_OTHER};
    reply_out->code = reply_out->code_args = (struct span){line.ptr, 0};
    if (line.ptr[0] == '+') {
        reply_out->kind = REPLY_CONTINUE;
        reply_out->tag = (struct span){line.ptr, 1};
        reply_out->text = skip_space(span_after(line, 1));
        return true;
    }
    reply_out->tag = word_of(line);
    if (!span_is(reply_out->tag, "*") && !args_is_tag(reply_out->tag))
        return false;
    read_kind(skip_space(span_after(line, reply_out->tag.len)), reply_out);
    return true;
}

static struct span without_line_end(struct span line)
{
    if (line.len > 0 && line.ptr[line.len - 1] == '\n')
        line.len--;
    if (line.len > 0 && line.ptr[line.len - 1] == '\r')
        line.len--;
    return line;
}

/* What stands before the first space. */
static struct span word_of(struct span text)
{
    const char *space = text.len == 0 ? NULL : memchr(text.ptr, ' ', text.len);

    return (struct span){text.ptr, space == NULL ? text.len : (size_t)(space - text.ptr)};
}

static struct span skip_space(struct span text)
{
    return text.len > 0 && text.ptr[0] == ' ' ? span_after(text, 1) : text;
}

/* Sorts by the word behind the tag and sets what follows it. */
static void read_kind(struct span text, struct reply *reply)
{
    struct span word = word_of(text);
    bool tagged = !reply_is_untagged(reply);

    reply->text = text;
    for (size_t i = 0; i < sizeof kinds / sizeof kinds[0]; i++) {
        if (!span_is(word, kinds[i].word) || (tagged && !kinds[i].is_status))
            continue;
        reply->kind = kinds[i].kind;
        reply->text = skip_space(span_after(text, word.len));
        if (kinds[i].is_status)
            read_code(reply);
        return;
    }
}

/* Moves "[name args]" from the front of the text to where it belongs. */
static void read_code(struct reply *reply)
{
    size_t len = code_len(reply->text);

    if (len == 0)
        return;

    struct span inside = {reply->text.ptr + 1, len - 2};

    reply->code = word_of(inside);
    reply->code_args = skip_space(span_after(inside, reply->code.len));
    reply->text = skip_space(span_after(reply->text, len));
}

/*
 * Length of the bracketed code at the front, 0 if there is none. Brackets in brackets and in quoted
 * strings do not end it (an IPv6 address in a REFERRAL); where that finds no end, the first "]"
 * does.
 */
static size_t code_len(struct span text)
{
    size_t depth = 0;
    bool quoted = false;

    if (text.len == 0 || text.ptr[0] != '[')
        return 0;
    for (size_t i = 0; i < text.len; i++) {
        char ch = text.ptr[i];

        if (quoted && ch == '\\')
            i++;
        else if (ch == '"')
            quoted = !quoted;
        else if (!quoted && ch == '[')
            depth++;
        else if (!quoted && ch == ']' && --depth == 0)
            return i + 1;
    }

    const char *end = memchr(text.ptr, ']', text.len);

    return end == NULL ? 0 : (size_t)(end - text.ptr) + 1;
}
