/*
 * The check of what is read beyond proxy.conf only when workers open, so that whoever is told that
 * a configuration is good can start with it: the lines of the password file and the route file, a
 * file of keys for tokens, and the filter, names and TLS of the directory. Nobody is connected.
 */
#ifndef IMAPMUX_PROCESS_PREFLIGHT_H
#define IMAPMUX_PROCESS_PREFLIGHT_H

#include "proxy/base/conf.h"

/* False with *err set, as at a start. Before there are threads. */
bool preflight_check(const struct conf *conf, struct err *err);

#endif
