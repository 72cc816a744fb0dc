/*
 * What is wrong, if anything, the worst first: for the first line of the status page. On the
 * control thread.
 */
#ifndef IMAPMUX_HTTP_PROBLEMS_H
#define IMAPMUX_HTTP_PROBLEMS_H

#include "proxy/http/status.h"

/*
 * Objects {level, text, since}: "critical" when clients cannot log in, "warning" when something
 * needs to be looked at, "notice" for what an operator has wanted; since when, in unix seconds, or
 * null. Empty: all is well. The caller has the reference; NULL without memory.
 */
json_t *problems_list(const struct status_view *view, const struct counters *sum);

#endif
