/*
 * The two questions that machines ask of a proxy, answered with a status and some JSON that says
 * why. Pages of http.h, whose owner is the struct control.
 *
 * /healthz is 200 as long as the control thread and every worker turn their loops, else 503: who
 * asks should end the process and start it again.
 *
 * /readyz is 200 when new clients are to be sent here, else 503. It looks at this process alone:
 * is it open, does it not stop, do its workers answer, is it not cut off by its fence? What all
 * proxies have in common (the directory, Redis, the stores) is told, but does not count. If it did,
 * one dead directory would take all proxies out at once, and their clients, most of whom could have
 * gone on with what is remembered, would find nobody who tells them why.
 */
#ifndef IMAPMUX_HTTP_VERDICTS_H
#define IMAPMUX_HTTP_VERDICTS_H

#include "proxy/process/control.h"

#include <stdio.h>

unsigned verdict_health(const struct control *control, FILE *out);
unsigned verdict_readiness(const struct control *control, FILE *out);

/* NULL: it is ready; else why not. */
const char *verdict_obstacle(const struct control *control);

/* The same as a metric. */
void verdict_print_metrics(const struct control *control, FILE *out);

#endif
