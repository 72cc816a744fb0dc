/*
 * What the process shows over HTTP to whoever looks after it. On the control thread.
 *
 *     /              the status page, for people
 *     /status.json   what it shows of now, /history.json of the last hour and the last day
 *     /metrics       all metrics, for Prometheus
 *     /healthz       does this process live? Else it should be started anew
 *     /readyz        should it get new clients? Else a load balancer should choose another one
 */
#ifndef IMAPMUX_HTTP_SITE_H
#define IMAPMUX_HTTP_SITE_H

#include "proxy/process/control.h"

struct site;

/*
 * Listens as section `http` says. Borrows `control` until its loop has run out after the close.
 * NULL with *err set.
 */
struct site *site_open(struct control *control, struct err *err);

/* Nulls the pointer; harmless on NULL. */
void site_close(struct site **site);

#endif
