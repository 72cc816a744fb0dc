/*
 * What this process has to say to a question that goes to all proxies: its workers are asked, and
 * what they say becomes pieces of text, each small enough for one message. On the control thread.
 *
 *     {"what":"who", "by":"user"|"address"|"shard", "value":...}     items: sessions; without
 *                                                                    `by`: all of them
 *     {"what":"kick", "user":... or "session":...}                   one item: {"sessions":N}
 *     {"what":"trace", "user":..., "trace":id, "bodies":bool, "end":bool}
 *                                                                    items: lines since the last
 *                                                                    time; see proxy/session/traces.h
 */
#ifndef IMAPMUX_FLEET_ANSWER_H
#define IMAPMUX_FLEET_ANSWER_H

#include "proxy/process/control.h"

#include <jansson.h>

enum {
    ANSWER_PIECE_MAX = 40 * 1024,
    ANSWER_BYTES_MAX = 4 * 1024 * 1024 /* of one process; and of all that one has asked, together */
};

struct answer;

/*
 * `on_done` follows, never inside the call, and the answer is then the callee's to free; it cannot
 * be called back. `id` is the process's, for the items; it is borrowed until then. Of more than
 * `bytes_max` octets the rest is left out. NULL with *err set when the question is not understood,
 * the process ends, or memory is short.
 */
struct answer *answer_start(struct control *control, const json_t *question, const char *id,
                            size_t bytes_max, void (*on_done)(void *owner, struct answer *answer),
                            void *owner, struct err *err);

/*
 * The next piece, items in JSON with commas between them; good until the answer is freed. False
 * when there is none. The last one may be empty.
 */
bool answer_next(struct answer *answer, struct span *piece_out);

/* Whether something was left out. */
bool answer_is_cut(const struct answer *answer);

void answer_free(struct answer *answer);

#endif
