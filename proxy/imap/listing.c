/* Owns how LIST, STATUS and NAMESPACE responses are read. */
#include "proxy/imap/listing.h"

enum { DIGITS_MAX = 19, SPACE_LISTS = 3 };

static bool read_list(struct args *args, struct listing *listing);
static bool read_flags(struct args *args, struct listing *listing);
static bool read_separator(struct args *args, char *separator_out);
static bool read_status(struct args *args, struct listing *listing);
static bool read_number(struct span word, uint64_t *number_out);
static bool skip_extensions(struct args *args);

enum listing_kind listing_parse(struct span response, struct listing *listing_out)
{
    struct listing *listing = listing_out;
    struct args args;
    struct span word;

    *listing = (struct listing){0};
    if (response.len < 2 || memcmp(response.ptr, "* ", 2) != 0)
        return LISTING_OTHER;
    args_init(&args, span_after(response, 2));
    if (!args_word(&args, &word) || !args_space(&args))
        return LISTING_OTHER;
    if (span_is(word, "LIST"))
        return read_list(&args, listing) ? LISTING_LIST : LISTING_BAD;
    if (span_is(word, "STATUS"))
        return read_status(&args, listing) ? LISTING_STATUS : LISTING_BAD;
    if (!span_is(word, "NAMESPACE"))
        return LISTING_OTHER;
    listing->spaces = args;
    return LISTING_SPACES;
}

/* What stands behind the name (RFC 5258) is nobody's business here. */
static bool read_list(struct args *args, struct listing *listing)
{
    return read_flags(args, listing) && args_space(args) &&
           read_separator(args, &listing->separator) && args_space(args) &&
           args_astring(args, &listing->mailbox);
}

/* A flag is a backslash and a word, or a word. */
static bool read_flags(struct args *args, struct listing *listing)
{
    struct span word;

    listing->selectable = true;
    if (!args_open(args))
        return false;
    while (!args_close(args)) {
        bool system = args->rest.len > 0 && args->rest.ptr[0] == '\\';

        if (system)
            args->rest = span_after(args->rest, 1);
        if (!args_word(args, &word))
            return false;
        if (system && (span_is(word, "Noselect") || span_is(word, "NonExistent")))
            listing->selectable = false;
        args_space(args);
    }
    return true;
}

static bool read_separator(struct args *args, char *separator_out)
{
    struct arg arg;
    char text[2];

    if (!args_nstring(args, &arg))
        return false;
    if (arg.kind != ARG_NIL && arg_copy(&arg, text, sizeof text) != 1)
        return false;
    *separator_out = arg.kind == ARG_NIL ? '\0' : text[0];
    return true;
}

/* Nothing but numbers was asked for. */
static bool read_status(struct args *args, struct listing *listing)
{
    struct span name, value;
    uint64_t number;

    if (!args_astring(args, &listing->mailbox) || !args_space(args) || !args_open(args))
        return false;
    while (!args_close(args)) {
        if (!args_word(args, &name) || !args_space(args) || !args_word(args, &value) ||
            !read_number(value, &number))
            return false;
        if (span_is(name, "MESSAGES"))
            listing->messages = number;
        else if (span_is(name, "UIDNEXT"))
            listing->uidnext = number;
        else if (span_is(name, "UIDVALIDITY"))
            listing->uidvalidity = number;
        args_space(args);
    }
    return true;
}

static bool read_number(struct span word, uint64_t *number_out)
{
    *number_out = 0;
    if (word.len == 0 || word.len > DIGITS_MAX)
        return false;
    for (size_t i = 0; i < word.len; i++) {
        if (word.ptr[i] < '0' || word.ptr[i] > '9')
            return false;
        *number_out = *number_out * 10 + (uint64_t)(word.ptr[i] - '0');
    }
    return true;
}

enum listing_space listing_space(struct listing *listing, struct arg *prefix_out)
{
    struct args *args = &listing->spaces;
    struct arg separator;

    while (listing->space_list < SPACE_LISTS) {
        if (args->depth == 0) {
            if (listing->space_list > 0 && !args_space(args))
                return LISTING_SPACE_BAD;
            if (args_nstring(args, &separator) && separator.kind == ARG_NIL) {
                listing->space_list++;
                continue;
            }
            if (!args_open(args))
                return LISTING_SPACE_BAD;
        }
        if (args_close(args)) {
            listing->space_list++;
            continue;
        }
        if (!args_open(args) || !args_string(args, prefix_out) || !args_space(args) ||
            !args_nstring(args, &separator) || !skip_extensions(args) || !args_close(args))
            return LISTING_SPACE_BAD;
        return listing->space_list == 0 ? LISTING_OWN : LISTING_FOREIGN;
    }
    return LISTING_SPACE_END;
}

/* string SP "(" string *(SP string) ")", any number of times (RFC 2342 6). */
static bool skip_extensions(struct args *args)
{
    struct arg arg;

    while (args_space(args)) {
        if (!args_string(args, &arg) || !args_space(args) || !args_open(args) ||
            !args_string(args, &arg))
            return false;
        while (args_space(args))
            if (!args_string(args, &arg))
                return false;
        if (!args_close(args))
            return false;
    }
    return true;
}
