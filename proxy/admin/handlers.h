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

extern admin_handler *const admin_handlers[CTL_COMMAND_COUNT];

#endif
