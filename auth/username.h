/*
 * Makes user names uniform, before anything is looked up, as section `username` says: case, domain
 * map, default domain, allowed characters, length.
 */
#ifndef IMAPMUX_AUTH_USERNAME_H
#define IMAPMUX_AUTH_USERNAME_H

#include "proxy/base/conf.h"
#include "proxy/base/span.h"

enum { USERNAME_MAX = 255 };

/*
 * Writes the name to look up into `user_out`. False for a name that cannot exist (empty, too long,
 * a character that is not allowed, ill-formed UTF-8): the caller answers as to a wrong password.
 */
bool username_normalise(const struct conf_username *conf, struct span raw,
                        char user_out[USERNAME_MAX + 1]);

#endif
