/*
 * A request for administration: a command of the table and its arguments, as one line of JSON,
 *     {"command":"cache flush","arguments":{"user":"ann"}}
 * where "arguments" may be left out if there are none. Values are texts, of TEXTS lists of them.
 */
#ifndef IMAPMUX_CTL_REQUEST_H
#define IMAPMUX_CTL_REQUEST_H

#include "proxy/base/err.h"
#include "proxy/ctl/command.h"

#include <jansson.h>

struct ctl_request {
    const struct ctl_command *command;
    json_t *arguments; /* an object: values by the names of the table's rows */
};

/*
 * Reads a line, with or without its end, and holds it against the table. False with *err set
 * (ERR_PEER, or ERR_INTERNAL without memory); else the caller releases.
 */
bool ctl_request_read(struct ctl_request *request_out, struct span line, struct err *err);

/* Harmless on one that is zeroed or released. */
void ctl_request_release(struct ctl_request *request);

/* Does this object have what the command needs, and nothing that it does not know? */
bool ctl_check_arguments(const struct ctl_command *command, const json_t *arguments,
                         struct err *err);

/* The request as JSON; the caller has the reference. NULL without memory. */
json_t *ctl_request_write(const struct ctl_request *request);

/* An argument's text, borrowed from the request; NULL when it is not given. Not of TEXTS. */
const char *ctl_request_argument(const struct ctl_request *request, const char *name);

/* What somebody must be allowed to make this request. */
enum ctl_level ctl_request_level(const struct ctl_request *request);

#endif
