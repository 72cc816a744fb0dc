/*
 * Administration over a Unix socket, on the control thread: who connects, requests (proxy/ctl), the
 * handlers of commands, and their answers. One request in a line, then its answer:
 *     {"item":...}                   any number of these, for a result that comes piece by piece
 *     {"ok":true,"result":...}       the last line, or
 *     {"ok":false,"error":"..."}     the last line, with "again":true if the reason passes
 */
#ifndef IMAPMUX_ADMIN_ADMIN_H
#define IMAPMUX_ADMIN_ADMIN_H

#include "proxy/base/env.h"
#include "proxy/ctl/request.h"

enum { ADMIN_PASS_MAX = 200 }; /* descriptors with one item */

struct admin;

/*
 * A command under way. Its handler answers exactly once, by admin_answer or admin_refuse, inside
 * the call or later. One that answers later sets `cancel` before it returns: that comes instead,
 * if the client has gone or the process ends. After the answer, or from within `cancel` on, the
 * call is no more.
 */
struct admin_call {
    struct ctl_request request;
    void *context;                           /* of admin_open */
    void (*cancel)(struct admin_call *call); /* set by the handler, and */
    void *state;                             /* what belongs to it */
    /* NULL, or set by the handler: all its items have left, never inside a call. */
    void (*on_drained)(struct admin_call *call);
    struct admin_client *client; /* private */
};

typedef void admin_handler(struct admin_call *call);

/*
 * Listens as section `admin` says, or `beside` the socket of the process whose place this one is
 * about to take; `handlers` are in the order of ctl_commands. All is borrowed
 * until the loop has run out after admin_close. NULL with *err set, also when another process
 * listens there.
 */
struct admin *admin_open(const struct env *env, bool beside, admin_handler *const *handlers,
                         void *context, struct err *err);

/* The sockets of this process and of `pid` change places; false with *err set. */
bool admin_give_place(struct admin *admin, pid_t pid, struct err *err);

/* The other process has done so, or is dead. Harmless on NULL. */
void admin_take_place(struct admin *admin);

/* Cancels what is under way, closes, removes the socket. Nulls the pointer; harmless on NULL. */
void admin_close(struct admin **admin);

/* An argument, borrowed from the call; NULL when it is not given. */
const char *admin_argument(const struct admin_call *call, const char *name);

/*
 * A piece of the result; takes over the reference. A client that does not keep up (1 MiB) is let
 * go: `cancel` follows, never inside the call.
 */
void admin_item(struct admin_call *call, json_t *item);

/* The same with descriptors, which stay the caller's. False: they cannot be sent. */
bool admin_pass(struct admin_call *call, json_t *item, const int *fds, size_t count);

/* The number of the process that has connected. */
pid_t admin_peer(const struct admin_call *call);

/* How many octets of its items have not left yet. */
size_t admin_queued(const struct admin_call *call);

/* Ends the call. Takes over the reference; NULL tells that there was no memory for a result. */
void admin_answer(struct admin_call *call, json_t *result);
void admin_refuse(struct admin_call *call, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

/* As json_text. */
json_t *admin_text(const char *text);

/* The same, with the text of *err. UNAVAILABLE passes: whoever asks again may have more luck. */
void admin_fail(struct admin_call *call, const struct err *err);

#endif
