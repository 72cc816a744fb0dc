/*
 * From one configuration to the next, within a process: what is another, what can be put in force,
 * and what stays as it is until a new process reads it.
 */
#ifndef IMAPMUX_BASE_CONF_CHANGE_H
#define IMAPMUX_BASE_CONF_CHANGE_H

#include "proxy/base/conf.h"

/* Settings as people read them: `log level`, `shard "red" weight`, `shard "red" (new)`. */
struct conf_changes {
    struct conf_words changed, needs_restart;
};

/*
 * As conf_open, to take the place of `running`: shards keep their ids, and what only a new process
 * can change has the value of `running`, and is told as such. NULL with *err set; the lists are to
 * be released in either case.
 */
struct conf *conf_reopen(const char *path, const struct conf *running,
                         struct conf_changes *changes_out, struct err *err);
void conf_changes_release(struct conf_changes *changes);

/* Whether both say the same of a shard. */
bool conf_same_shard(const struct conf_shard *one, const struct conf_shard *other);

/* Whether both verify users in the same way: nothing that is remembered of them is out of date. */
bool conf_same_auth(const struct conf *one, const struct conf *other);

#endif
