/*
 * The little of IMAP that both ends of the benchmark need, written apart from the proxy's own
 * parser: it checks the proxy's work. A `wire_in` cuts what comes into lines and literals, a
 * `wire_out` holds one answer or command until the peer has taken it.
 */
#ifndef IMAPMUX_BENCH_WIRE_H
#define IMAPMUX_BENCH_WIRE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

enum { WIRE_LINE_MAX = 1024, WIRE_HEAD_MAX = 640, WIRE_TAIL_MAX = 128, WIRE_PARTS = 3 };

struct wire_in {
    char bytes[WIRE_LINE_MAX];
    size_t begin, end;
    uint64_t literal;     /* octets of a literal still to come; they are counted, not kept */
    bool literal_is_sync; /* the sender waits for "+" */
};

/*
 * Where the next octets are to be read to, and how many at the most. That is 0 if a line is longer
 * than any that should come here.
 */
char *wire_in_space(struct wire_in *in, size_t *size_out);

/* So many octets have been put there. */
void wire_in_filled(struct wire_in *in, size_t count);

/*
 * The next line without its CRLF, ended by NUL, or NULL if it is not there yet. It is valid until
 * the next call with `in`. If it announces a literal, `literal` says how long that is; the line
 * after it, which may be empty, is what follows the literal.
 */
char *wire_in_line(struct wire_in *in);

/* A text, then a body of so many octets, then another text. */
struct wire_out {
    char head[WIRE_HEAD_MAX], tail[WIRE_TAIL_MAX];
    size_t head_begin, head_end, tail_begin, tail_end;
    uint64_t body;
};

/* Appends to the head. Nothing with a body may be waiting. False if it does not fit. */
bool wire_out_text(struct wire_out *out, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

/* Sets what comes behind the head. */
void wire_out_body(struct wire_out *out, uint64_t octets, const char *tail);

bool wire_out_is_empty(const struct wire_out *out);

/* What may be written now, in so many parts; 0 if nothing is left. */
int wire_out_parts(struct wire_out *out, struct iovec parts[WIRE_PARTS]);

/* So many octets of these parts have been written. */
void wire_out_sent(struct wire_out *out, size_t count);

#endif
