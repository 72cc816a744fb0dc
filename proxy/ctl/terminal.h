/*
 * A terminal that shows sheets, and whose keys are heard at once. It is as it was before after
 * terminal_close, and when the process is stopped (Ctrl-Z).
 */
#ifndef IMAPMUX_CTL_TERMINAL_H
#define IMAPMUX_CTL_TERMINAL_H

#include "proxy/ctl/sheet.h"

enum terminal_key { TERMINAL_NONE, TERMINAL_UP = 1000, TERMINAL_DOWN, TERMINAL_RESIZED };

/*
 * Standard output is a terminal of a kind that is known (TERM): true. Else nothing has changed.
 * SIGINT, SIGTERM and SIGHUP are the caller's to handle, from before this call.
 */
bool terminal_open(void);
void terminal_close(void); /* harmless when it is not open */

/* How large it is now. */
void terminal_size(int *lines_out, int *columns_out);

void terminal_show(const struct sheet *sheet);

/* The next key, a character or one of the above; waits at the most so long for it. */
int terminal_key(int wait_ms);

#endif
