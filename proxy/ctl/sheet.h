/*
 * A sheet of so many lines and columns of ASCII, each character with a style: what a screen shows,
 * or a page that is printed. What would not fit is cut off.
 */
#ifndef IMAPMUX_CTL_SHEET_H
#define IMAPMUX_CTL_SHEET_H

#include <stdbool.h>
#include <stdio.h>

enum sheet_style {
    SHEET_PLAIN,
    SHEET_HEAD,  /* of a table */
    SHEET_LABEL, /* the name of what stands beside it */
    SHEET_GOOD,
    SHEET_WARNING,
    SHEET_ALARM
};

enum { SHEET_LINES_MAX = 500, SHEET_COLUMNS_MAX = 400 };

struct sheet {
    int lines, columns;
    int line, column; /* where sheet_put goes on */
    char text[SHEET_LINES_MAX][SHEET_COLUMNS_MAX];
    unsigned char styles[SHEET_LINES_MAX][SHEET_COLUMNS_MAX];
};

/* Empties it. At the most as large as the arrays are. */
void sheet_clear(struct sheet *sheet, int lines, int columns);

void sheet_move(struct sheet *sheet, int line, int column);

/* Writes, and moves on; octets that are no printable ASCII become "?". */
void sheet_put(struct sheet *sheet, enum sheet_style style, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* Fills the rest of the line with blanks of this style. */
void sheet_fill(struct sheet *sheet, enum sheet_style style);

/* The lines that have something, without styles. */
void sheet_print(const struct sheet *sheet, FILE *out);

#endif
