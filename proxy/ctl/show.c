/* Owns what results look like to people. */
#include "proxy/ctl/show.h"

#include "proxy/base/buf.h"
#include "proxy/base/mem.h"

#include <stdint.h>

enum { CELL_MAX = 64 * 1024, GAP = 2 };

/* --- texts --- */

/* Does a control character start here: C0, DEL, or one of C1 in UTF-8? How many octets has it? */
static size_t control_len(const char *at)
{
    unsigned char ch = (unsigned char)at[0], next = (unsigned char)(ch == '\0' ? 0 : at[1]);

    if (ch < ' ' || ch == 0x7f)
        return 1;
    return ch == 0xc2 && next >= 0x80 && next < 0xa0 ? 2 : 0;
}

/* A terminal would act upon controls; those in `kept` may stay. */
static void add_text(struct buf *cell, const char *text, const char *kept)
{
    while (*text != '\0') {
        size_t len = control_len(text);

        if (len == 0 || strchr(kept, *text) != NULL)
            buf_append(cell, (struct span){text, len = 1});
        else
            for (size_t i = 0; i < len; i++)
                buf_printf(cell, "\\x%02x", (unsigned char)text[i]);
        text += len;
    }
}

/* In the two largest units: "3d 4h", "12s". */
static void add_duration(struct buf *cell, uint64_t seconds)
{
    static const struct {
        uint64_t seconds;
        char name;
    } units[] = {{86400, 'd'}, {3600, 'h'}, {60, 'm'}, {1, 's'}};
    size_t first = 0;

    while (first < 3 && seconds < units[first].seconds)
        first++;
    buf_printf(cell, "%llu%c", (unsigned long long)(seconds / units[first].seconds),
               units[first].name);
    if (first < 3)
        buf_printf(cell, " %llu%c",
                   (unsigned long long)(seconds % units[first].seconds / units[first + 1].seconds),
                   units[first + 1].name);
}

/* In the largest unit that leaves a whole number before the point: "812.3 MiB". */
static void add_size(struct buf *cell, uint64_t bytes)
{
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB"};
    double amount = (double)bytes;
    size_t unit = 0;

    for (; amount >= 1024 && unit < sizeof units / sizeof *units - 1; unit++)
        amount /= 1024;
    buf_printf(cell, unit == 0 ? "%.0f %s" : "%.1f %s", amount, units[unit]);
}

/* --- cells --- */

/* How a number is shown is told by the end of its name. */
static const struct unit {
    const char *end;
    void (*add)(struct buf *cell, uint64_t amount);
} units[] = {{"_seconds", add_duration}, {"_bytes", add_size}};

/* NULL: it has none. */
static const struct unit *unit_of(const char *name, const json_t *value)
{
    size_t len = strlen(name);

    for (size_t i = 0; i < sizeof units / sizeof *units; i++) {
        size_t end_len = strlen(units[i].end);

        if (len > end_len && strcmp(name + len - end_len, units[i].end) == 0 &&
            json_is_integer(value) && json_integer_value(value) >= 0)
            return &units[i];
    }
    return NULL;
}

static void add_name(struct buf *cell, const char *name, const json_t *value)
{
    const struct unit *unit = unit_of(name, value);
    size_t len = strlen(name) - (unit == NULL ? 0 : strlen(unit->end));

    for (size_t i = 0; i < len; i++)
        buf_printf(cell, "%c", name[i] == '_' ? ' ' : name[i]);
}

static int add_json(const char *bytes, size_t len, void *cell)
{
    return buf_append(cell, (struct span){bytes, len}) ? 0 : -1;
}

static void add_value(struct buf *cell, const char *name, const json_t *value)
{
    const struct unit *unit = unit_of(name, value);

    if (unit != NULL) {
        unit->add(cell, (uint64_t)json_integer_value(value));
    } else if (json_is_string(value)) {
        add_text(cell, json_string_value(value), "");
    } else if (json_is_boolean(value)) {
        buf_append_text(cell, json_is_true(value) ? "yes" : "no");
    } else if (json_is_array(value)) {
        for (size_t i = 0; i < json_array_size(value); i++) {
            buf_append_text(cell, i > 0 ? ", " : "");
            add_value(cell, "", json_array_get(value, i));
        }
    } else if (value != NULL && !json_is_null(value)) {
        json_dump_callback(value, add_json, cell, JSON_ENCODE_ANY | JSON_ENSURE_ASCII);
    }
}

/* Characters, not octets. */
static size_t width_of(const struct buf *cell)
{
    struct span text = buf_span(cell);
    size_t width = 0;

    for (size_t i = 0; i < text.len; i++)
        width += ((unsigned char)text.ptr[i] & 0xc0) != 0x80;
    return width;
}

/* Prints the cell, filled up to this width, and empties it. */
static void print_cell(FILE *out, struct buf *cell, size_t width, bool to_the_right)
{
    size_t own = width_of(cell);
    int fill = (int)(own < width ? width - own : 0);
    struct span text = buf_span(cell);

    fprintf(out, "%*s", to_the_right ? fill : 0, "");
    fwrite(text.ptr, 1, text.len, out);
    fprintf(out, "%*s", to_the_right ? 0 : fill, "");
    buf_release(cell);
}

/* --- shapes --- */

/* Its own lines and table are shown below the others, under its name. */
static bool is_section(const json_t *value)
{
    return json_is_object(value) || json_is_object(json_array_get(value, 0));
}

static void show_pairs(FILE *out, const json_t *object, int indent)
{
    struct buf cell;
    size_t width = 0;
    const char *name;
    json_t *value;

    buf_init(&cell, CELL_MAX);
    json_object_foreach ((json_t *)object, name, value) {
        if (is_section(value))
            continue;
        add_name(&cell, name, value);
        width = width_of(&cell) > width ? width_of(&cell) : width;
        buf_release(&cell);
    }
    json_object_foreach ((json_t *)object, name, value) {
        if (is_section(value))
            continue;
        fprintf(out, "%*s", indent, "");
        add_name(&cell, name, value);
        print_cell(out, &cell, width + GAP, false);
        add_value(&cell, name, value);
        print_cell(out, &cell, 0, false);
        fputc('\n', out);
    }
}

static void show_table(FILE *out, const json_t *rows, int indent);

static void show_object(FILE *out, const json_t *object)
{
    struct buf cell;
    const char *name;
    json_t *value;

    buf_init(&cell, CELL_MAX);
    show_pairs(out, object, 0);
    json_object_foreach ((json_t *)object, name, value) {
        if (!is_section(value) || json_object_size(value) + json_array_size(value) == 0)
            continue;
        fputc('\n', out);
        add_name(&cell, name, value);
        print_cell(out, &cell, 0, false);
        fputc('\n', out);
        if (json_is_object(value))
            show_pairs(out, value, GAP);
        else
            show_table(out, value, GAP);
    }
}

/* The columns: all that some row has. Their values are those of the first that has it. */
static json_t *make_head(const json_t *rows)
{
    json_t *head = json_object();

    for (size_t i = 0; i < json_array_size(rows); i++)
        json_object_update_missing(head, json_array_get(rows, i));
    return head;
}

/* Row 0 is the head. */
static void add_cell(struct buf *cell, const json_t *rows, size_t row, const char *name,
                     const json_t *first)
{
    if (row == 0)
        add_name(cell, name, first);
    else
        add_value(cell, name, json_object_get(json_array_get(rows, row - 1), name));
}

/* Numbers stand to the right; what is a number in the first row is one in all of them. */
static void print_row(FILE *out, const json_t *rows, const json_t *head, size_t row,
                      const size_t *widths, int indent)
{
    struct buf cell;
    const char *name;
    json_t *first;
    size_t column = 0, columns = json_object_size(head);

    buf_init(&cell, CELL_MAX);
    fprintf(out, "%*s", indent, "");
    json_object_foreach ((json_t *)head, name, first) {
        bool to_the_right = json_is_number(first);
        bool is_last = ++column == columns;

        add_cell(&cell, rows, row, name, first);
        print_cell(out, &cell, is_last && !to_the_right ? 0 : widths[column - 1], to_the_right);
        fputs(is_last ? "\n" : "  ", out);
    }
}

static void show_table(FILE *out, const json_t *rows, int indent)
{
    struct buf cell;
    const char *name;
    json_t *first, *head = make_head(rows);
    size_t *widths = mem_array(json_object_size(head), sizeof *widths);

    buf_init(&cell, CELL_MAX);
    for (size_t row = 0; widths != NULL && row <= json_array_size(rows); row++) {
        size_t column = 0;

        json_object_foreach (head, name, first) {
            add_cell(&cell, rows, row, name, first);
            widths[column] = width_of(&cell) > widths[column] ? width_of(&cell) : widths[column];
            column++;
            buf_release(&cell);
        }
    }
    for (size_t row = 0; widths != NULL && row <= json_array_size(rows); row++)
        print_row(out, rows, head, row, widths, indent);
    mem_free(widths);
    json_decref(head);
}

void show_text(FILE *out, const char *text)
{
    struct buf cell;
    size_t len = strlen(text);

    buf_init(&cell, BUF_CEILING_MAX);
    add_text(&cell, text, "\n\t");
    print_cell(out, &cell, 0, false);
    if (len > 0 && text[len - 1] != '\n')
        fputc('\n', out);
}

void show_prefixed(FILE *out, const char *prefix, struct span text)
{
    char *line = NULL;

    if (asprintf(&line, "%s: %.*s", prefix, SPAN_ARG(text)) >= 0)
        show_text(out, line);
    mem_free(line);
}

static void show_line(FILE *out, const json_t *value)
{
    struct buf cell;

    buf_init(&cell, CELL_MAX);
    add_value(&cell, "", value);
    print_cell(out, &cell, 0, false);
    fputc('\n', out);
}

void show_result(FILE *out, const json_t *result)
{
    if (json_is_string(result)) {
        show_text(out, json_string_value(result));
    } else if (json_is_object(result)) {
        show_object(out, result);
    } else if (json_is_object(json_array_get(result, 0))) {
        show_table(out, result, 0);
    } else if (json_is_array(result)) {
        for (size_t i = 0; i < json_array_size(result); i++)
            show_line(out, json_array_get(result, i));
    } else if (!json_is_null(result)) {
        show_line(out, result);
    }
}
