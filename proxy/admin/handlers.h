/*
 * The handlers of all commands: run_<id> for each row of commands.def, in whatever file of this
 * folder. The context of their calls is a struct control.
 */
#ifndef IMAPMUX_ADMIN_HANDLERS_H
#define IMAPMUX_ADMIN_HANDLERS_H

#include "proxy/admin/admin.h"

#define X(id, ...) admin_handler run_##id;
CTL_COMMANDS(X)
#undef X

/*
 * The argument "limit", or `none` when it is not given. False: it is no number, and the call has
 * been refused.
 */
bool admin_read_limit(struct admin_call *call, size_t none, size_t *limit_out);

extern admin_handler *const admin_handlers[CTL_COMMAND_COUNT];

#endif
