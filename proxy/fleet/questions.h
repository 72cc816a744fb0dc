/*
 * Our questions to all proxies, ourselves included, and the answers; see replies.h for the other
 * side. On the control thread.
 */
#ifndef IMAPMUX_FLEET_QUESTIONS_H
#define IMAPMUX_FLEET_QUESTIONS_H

#include "proxy/fleet/fleet.h"

struct questions;

/* `id` is the process's. All is borrowed until the close. NULL with *err set. */
struct questions *questions_open(struct control *control, const char *id, struct err *err);

/* As fleet_ask, fleet_ask_cancel. */
bool questions_ask(struct questions *questions, struct fleet_question *question, struct err *err);
void questions_cancel(struct fleet_question *question);

/* An event. */
void questions_hear_answer(struct questions *questions, const json_t *event);

/*
 * All questions have been cancelled, workers have ended, and the control thread's inbox is empty.
 * Nulls the pointer; memory goes in the last close callback. Harmless on NULL.
 */
void questions_close(struct questions **questions);

#endif
