/* Owns the characters of a sheet. */
#include "proxy/ctl/sheet.h"

#include <stdarg.h>
#include <string.h>

void sheet_clear(struct sheet *sheet, int lines, int columns)
{
    sheet->lines = lines < SHEET_LINES_MAX ? lines : SHEET_LINES_MAX;
    sheet->columns = columns < SHEET_COLUMNS_MAX ? columns : SHEET_COLUMNS_MAX;
    sheet->line = sheet->column = 0;
    memset(sheet->text, ' ', sizeof sheet->text);
    memset(sheet->styles, SHEET_PLAIN, sizeof sheet->styles);
}

void sheet_move(struct sheet *sheet, int line, int column)
{
    sheet->line = line;
    sheet->column = column;
}

static void put(struct sheet *sheet, char ch, enum sheet_style style)
{
    if (sheet->line < sheet->lines && sheet->column < sheet->columns) {
        sheet->text[sheet->line][sheet->column] = ch >= ' ' && ch <= '~' ? ch : '?';
        sheet->styles[sheet->line][sheet->column] = (unsigned char)style;
    }
    sheet->column++;
}

void sheet_put(struct sheet *sheet, enum sheet_style style, const char *format, ...)
{
    char text[SHEET_COLUMNS_MAX];
    va_list args;

    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    for (const char *at = text; *at != '\0'; at++)
        put(sheet, *at, style);
}

void sheet_fill(struct sheet *sheet, enum sheet_style style)
{
    while (sheet->column < sheet->columns)
        put(sheet, ' ', style);
}

static int length_of(const struct sheet *sheet, int line)
{
    int len = sheet->columns;

    while (len > 0 && sheet->text[line][len - 1] == ' ')
        len--;
    return len;
}

void sheet_print(const struct sheet *sheet, FILE *out)
{
    int lines = sheet->lines;

    while (lines > 0 && length_of(sheet, lines - 1) == 0)
        lines--;
    for (int line = 0; line < lines; line++)
        fprintf(out, "%.*s\n", length_of(sheet, line), sheet->text[line]);
}
