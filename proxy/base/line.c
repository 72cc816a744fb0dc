/* Owns nothing: the file and the line are the caller's. */
#include "proxy/base/line.h"

enum line_result line_read(FILE *file, char *line, size_t size)
{
    size_t len = 0;
    int octet;

    while ((octet = getc(file)) != EOF && octet != '\n') {
        if (octet == '\0' || len == size - 1)
            return LINE_BAD;
        line[len++] = (char)octet;
    }
    line[len] = '\0';
    return octet == EOF && (len == 0 || ferror(file)) ? LINE_END : LINE_READ;
}
