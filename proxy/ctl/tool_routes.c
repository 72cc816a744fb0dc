/* Owns the commands `import` and `export`: routes from and to files of comma-separated values. */
#include "proxy/base/buf.h"
#include "proxy/base/mem.h"
#include "proxy/ctl/exchange.h"
#include "proxy/ctl/show.h"
#include "proxy/ctl/tool.h"

#include <errno.h>

/* A chunk grows when it is written as JSON, and a request has at most 64 KiB. */
enum { CHUNK_MAX = 24 * 1024, CHUNK_LINES_MAX = 1000, LINE_MAX_BYTES = 2048 };

/* --- export --- */

/* As RFC 4180 has it: in quotes where it must be, or import would take it for a comment. */
static void print_field(const char *text)
{
    if (strpbrk(text, ",\"\r\n# \t") == NULL) {
        fputs(text, stdout);
        return;
    }
    putchar('"');
    for (; *text != '\0'; text++) {
        if (*text == '"')
            putchar('"');
        putchar(*text);
    }
    putchar('"');
}

static void print_csv_line(void *owner, const json_t *item)
{
    const char *user = json_string_value(json_object_get(item, "user")),
               *shard = json_string_value(json_object_get(item, "shard")),
               *backend_user = json_string_value(json_object_get(item, "backend_user"));

    (void)owner;
    if (user == NULL || shard == NULL)
        return;
    print_field(user);
    putchar(',');
    print_field(shard);
    if (backend_user != NULL && *backend_user != '\0' && strcmp(backend_user, user) != 0) {
        putchar(',');
        print_field(backend_user);
    }
    putchar('\n');
}

static enum ctl_status export_csv(const struct tool *tool, json_t *arguments)
{
    struct exchange request = {.socket = tool->socket,
                               .command = "routes export",
                               .arguments = arguments,
                               .limit_ms = tool_limit(tool, "routes export"),
                               .on_item = print_csv_line};
    struct answer answer;

    exchange(&request, &answer);
    enum ctl_status status =
        tool_finish(answer.kind == ANSWER_DONE ? CTL_DONE : tool_complain_of(&answer));
    answer_release(&answer);
    return status;
}

enum ctl_status tool_export(const struct tool *tool, const struct ctl_request *request)
{
    const char *shard = ctl_request_argument(request, "shard");
    json_t *arguments = shard == NULL ? json_object() : json_pack("{s:s}", "shard", shard);
    enum ctl_status status = ctl_request_argument(request, "csv") != NULL
                                 ? export_csv(tool, arguments)
                                 : tool_ask(tool, "routes export", arguments);

    json_decref(arguments);
    return status;
}

/* --- import --- */

struct import {
    const struct tool *tool;
    const struct ctl_request *request;
    const char *name;              /* of the file */
    struct buf chunk;              /* lines that are to be sent */
    size_t line_count;             /* of them, */
    size_t lines[CHUNK_LINES_MAX]; /* and their places in the file */
    json_t *totals;                /* numbers by action */
};

static void count(struct import *import, const char *action)
{
    json_int_t before = json_integer_value(json_object_get(import->totals, action));

    json_object_set_new(import->totals, action, json_integer(before + 1));
}

/* "+ ann -> green", "~ bob blue -> green", "! carol: why (users.csv:12)"; nothing of what is so. */
static void print_difference(const struct import *import, const json_t *item, size_t line)
{
    const char *action = answer_text(item, "action"), *user = answer_text(item, "user");
    const char *from = answer_text(item, "from"), *to = answer_text(item, "to");
    char *text = NULL;
    int len = 0;

    if (strcmp(action, "new") == 0)
        len = asprintf(&text, "+ %s -> %s", user, to);
    else if (strcmp(action, "changed") == 0)
        len = asprintf(&text, "~ %s %s -> %s", user, from, to);
    else if (strcmp(action, "refused") == 0)
        len = asprintf(&text, "! %s: %s (%s:%zu)", user, answer_text(item, "why"), import->name,
                       line);
    if (len > 0)
        show_text(stdout, text);
    mem_free(text);
}

/* An item for each line, in their order. */
static void take_items(struct import *import, const json_t *items)
{
    for (size_t i = 0; i < json_array_size(items); i++) {
        const json_t *item = json_array_get(items, i);

        count(import, answer_text(item, "action"));
        if (import->tool->json)
            tool_show(import->tool, item);
        else
            print_difference(import, item, i < import->line_count ? import->lines[i] : 0);
    }
}

static enum ctl_status send_chunk(struct import *import)
{
    struct span text = buf_span(&import->chunk);
    json_t *arguments = json_pack("{s:s%}", "csv", text.ptr, text.len);
    struct exchange request = {
        .socket = import->tool->socket, .command = "routes import", .arguments = arguments};
    struct answer answer;

    if (ctl_request_argument(import->request, "replace") != NULL)
        json_object_set_new(arguments, "replace", json_string(CTL_SET));
    if (ctl_request_argument(import->request, "dry-run") != NULL)
        json_object_set_new(arguments, "dry-run", json_string(CTL_SET));
    exchange(&request, &answer);
    take_items(import, answer.items);
    enum ctl_status status = answer.kind == ANSWER_DONE ? CTL_DONE : tool_complain_of(&answer);
    answer_release(&answer);
    json_decref(arguments);
    buf_release(&import->chunk);
    import->line_count = 0;
    return status;
}

static const char blanks[] = " \t\r\n";

/* Adds a line, unless it is empty or a comment; sends what is complete. */
static enum ctl_status add_line(struct import *import, const char *line, size_t len, size_t number)
{
    json_t *text = json_stringn(line, len); /* NULL if it is no UTF-8 */
    bool good = text != NULL && strlen(line) == len && len <= LINE_MAX_BYTES;

    json_decref(text);
    if (!good)
        return tool_complain(CTL_FAILED, "%s:%zu: this is no line of text, or too long a one",
                             import->name, number);
    if (line[strspn(line, blanks)] == '\0' || line[strspn(line, blanks)] == '#')
        return CTL_DONE;
    if ((buf_len(&import->chunk) + len >= CHUNK_MAX || import->line_count == CHUNK_LINES_MAX)) {
        enum ctl_status status = send_chunk(import);

        if (status != CTL_DONE)
            return status;
    }
    import->lines[import->line_count++] = number;
    return buf_append(&import->chunk, (struct span){line, len}) &&
                   buf_append_text(&import->chunk, "\n")
               ? CTL_DONE
               : tool_complain(CTL_FAILED, "out of memory");
}

static enum ctl_status import_all(struct import *import, FILE *in)
{
    enum ctl_status status = CTL_DONE;
    char *line = NULL;
    size_t size = 0, number = 0;
    ssize_t len;

    while (status == CTL_DONE && (len = getline(&line, &size, in)) >= 0) {
        while (len > 0 && (line[len - 1] == '\n' || line[len - 1] == '\r'))
            line[--len] = '\0';
        status = add_line(import, line, (size_t)len, ++number);
    }
    mem_free(line);
    if (status == CTL_DONE && ferror(in))
        status = tool_complain(CTL_FAILED, "%s: it cannot be read", import->name);
    if (status == CTL_DONE && import->line_count > 0)
        status = send_chunk(import);
    return status;
}

/* What was sent before a failure has been done: the totals tell. */
enum ctl_status tool_import(const struct tool *tool, const struct ctl_request *request)
{
    struct import import = {
        .tool = tool, .request = request, .name = ctl_request_argument(request, "file")};
    FILE *in = strcmp(import.name, "-") == 0 ? stdin : fopen(import.name, "r");

    if (in == NULL)
        return tool_complain(CTL_FAILED, "%s: %s", import.name, strerrordesc_np(errno));
    buf_init(&import.chunk, CHUNK_MAX + LINE_MAX_BYTES);
    import.totals =
        json_pack("{s:i, s:i, s:i, s:i}", "new", 0, "changed", 0, "same", 0, "refused", 0);
    enum ctl_status status = import_all(&import, in);
    if (in != stdin)
        fclose(in);
    tool_show(tool, import.totals);
    json_int_t refused = json_integer_value(json_object_get(import.totals, "refused"));
    json_decref(import.totals);
    buf_release(&import.chunk);
    if (status == CTL_DONE && refused > 0)
        status = tool_complain(CTL_FAILED, "not all were taken");
    return tool_finish(status);
}
