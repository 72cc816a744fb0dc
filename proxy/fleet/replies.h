/*
 * The questions that other proxies ask of this one, and what it answers. On the control thread.
 *
 * A question is an event on the channel of all; an answer comes in numbered pieces, on the channel
 * of the proxy that has asked:
 *     {"event":"ask","id":...,"from":...,"bytes":100000,"what":...}
 *     {"event":"answer","id":...,"proxy":...,"number":0,"last":true,"cut":false,"items":[...]}
 * No piece is ever sent twice; a connection that breaks loses them, and who asks finds one missing.
 */
#ifndef IMAPMUX_FLEET_REPLIES_H
#define IMAPMUX_FLEET_REPLIES_H

#include "proxy/process/control.h"

#include <jansson.h>

struct replies;

/* `id` is the process's. All is borrowed until the close. NULL with *err set. */
struct replies *replies_open(struct control *control, const char *id, struct err *err);

/* An event. */
void replies_hear_ask(struct replies *replies, const json_t *event);

/*
 * Workers have ended, and the control thread's inbox is empty. Nulls the pointer; harmless on NULL.
 */
void replies_close(struct replies **replies);

#endif
