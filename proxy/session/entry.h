/*
 * The phases of a session from its first byte to a connection to the store; see the table in
 * session.c.
 */
#ifndef IMAPMUX_SESSION_ENTRY_H
#define IMAPMUX_SESSION_ENTRY_H

#include "proxy/session/phase.h"

/* The first phase of a client whose address is known. */
enum phase_id entry_first(struct session *s);
enum phase_id entry_read_proxy_header(struct session *s);

enum phase_id entry_enter_tls(struct session *s);
enum phase_id entry_tls_overdue(struct session *s);

/* Comes here at the start, after STARTTLS, and after a login that was refused. */
enum phase_id entry_enter_command(struct session *s);
enum phase_id entry_read_command(struct session *s);
enum phase_id entry_command_overdue(struct session *s);

enum phase_id entry_enter_moving(struct session *s);
enum phase_id entry_enter_verify(struct session *s);
enum phase_id entry_enter_admit(struct session *s);
enum phase_id entry_enter_route(struct session *s);
enum phase_id entry_enter_lease(struct session *s);

/* The user's mailbox is being moved. */
enum phase_id entry_enter_held(struct session *s);
enum phase_id entry_held_overdue(struct session *s);

/* The client has closed its half while it is being logged in. */
enum phase_id entry_hear_end(struct session *s);

/* After our last words. */
enum phase_id entry_finish(struct session *s, const char *reason);

/* Frees what is held only until the login. */
void entry_release(struct session *s);

/* A line about the login; `err` may be NULL. */
void entry_log(struct session *s, enum conf_log_level level, const char *event,
               const struct err *err);
extern const char *const entry_lease_kinds[]; /* by enum lease_kind */

#endif
