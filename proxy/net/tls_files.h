/* Which versions of its files a set of TLS contexts was made of. */
#ifndef IMAPMUX_NET_TLS_FILES_H
#define IMAPMUX_NET_TLS_FILES_H

#include "proxy/base/conf.h"

struct tls_files;

/* Looks at all that this configuration names. Blocks as a disk does. NULL without memory. */
struct tls_files *tls_files_look(const struct conf *conf);

/* Of the same configuration. */
bool tls_files_same(const struct tls_files *a, const struct tls_files *b);

void tls_files_free(struct tls_files **files); /* nulls the pointer; harmless on NULL */

#endif
