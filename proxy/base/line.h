/* Reads a text file line by line, and notices what fgets does not: a NUL. */
#ifndef IMAPMUX_BASE_LINE_H
#define IMAPMUX_BASE_LINE_H

#include <stddef.h>
#include <stdio.h>

enum line_result {
    LINE_READ, /* `line` holds it, without its newline, NUL-terminated */
    LINE_BAD,  /* it holds a NUL, or more than `size` - 1 octets */
    LINE_END   /* there is none, or ferror(file) tells why */
};

/* The last line may lack its newline. */
enum line_result line_read(FILE *file, char *line, size_t size);

#endif
