/*
 * A command that is asked of each process of this host that belongs to a socket: the one that
 * listens there, and those before it that still have sessions, beside it (imapmuxctl upgrade).
 */
#ifndef IMAPMUX_CTL_TOOL_ALL_H
#define IMAPMUX_CTL_TOOL_ALL_H

#include "proxy/ctl/tool.h"

/*
 * Shows the answer of each one with its number; with --json one list of objects. The status is that
 * of one that has not done it, if there is such.
 */
enum ctl_status tool_all(const struct tool *tool, const struct ctl_request *request);

#endif
