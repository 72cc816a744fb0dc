/*
 * What imapmuxctl does once its command line is read: a command that imapmux is asked for in one
 * exchange, or one of its own, tool_<id> for each row of CTL_TOOL_COMMANDS.
 */
#ifndef IMAPMUX_CTL_TOOL_H
#define IMAPMUX_CTL_TOOL_H

#include "proxy/ctl/request.h"

#include <stdint.h>

/* Of the program; no answer in time is no connection, too. */
enum ctl_status { CTL_DONE = 0, CTL_FAILED = 1, CTL_WRONG_USAGE = 2, CTL_NO_CONNECTION = 3 };

struct tool {
    const char *socket;
    bool json;           /* results are for programs */
    bool all;            /* each process of this host is asked */
    uint64_t timeout_ms; /* how long imapmux may say nothing; 0: not told */
};

typedef enum ctl_status tool_command(const struct tool *tool, const struct ctl_request *request);

#define X(id, ...) tool_command tool_##id;
CTL_TOOL_COMMANDS(X)
#undef X

/* Carries out any command of the table. */
enum ctl_status tool_run(const struct tool *tool, const struct ctl_request *request);

/*
 * Without --timeout, what only looks is waited for for so long; what changes something, as long as
 * it takes, but that is told after a while.
 */
enum { TOOL_TIMEOUT_MS = 30000, TOOL_NOTE_MS = 5000 };

uint64_t tool_limit(const struct tool *tool, const char *command);

/* Asks imapmux once, and shows its answer: items as one table, or with --json as they come. */
enum ctl_status tool_ask(const struct tool *tool, const char *command, json_t *arguments);

/* Shows a result, for people or for programs; null is nothing. */
void tool_show(const struct tool *tool, const json_t *result);

/* Shows an array of items: as one table, or each in a line. */
void tool_show_items(const struct tool *tool, const json_t *items);

/* Is imapmux there? For commands that ask more than once; else it has complained. */
enum ctl_status tool_reach(const struct tool *tool);

/* Complains on standard error, with the program's name before, and returns `status`. */
enum ctl_status tool_complain(enum ctl_status status, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

/* Complains of an answer that is not DONE. */
struct answer;
enum ctl_status tool_complain_of(const struct answer *answer);

/* The status once all is printed: FAILED if that could not be written. */
enum ctl_status tool_finish(enum ctl_status status);

#endif
