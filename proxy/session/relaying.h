/* The phases of a session from its login's OK to its end; see the table in session.c. */
#ifndef IMAPMUX_SESSION_RELAYING_H
#define IMAPMUX_SESSION_RELAYING_H

#include "proxy/session/phase.h"

enum phase_id relaying_enter(struct session *s);
enum phase_id relaying_overdue(struct session *s);

/* The store is lost, and the client has not been told. */
enum phase_id relaying_enter_stranded(struct session *s);
enum phase_id relaying_read_stranded(struct session *s);
enum phase_id relaying_tell_stranded(struct session *s);

/* Our last words are under way. */
enum phase_id relaying_enter_linger(struct session *s);
enum phase_id relaying_read_and_drop(struct session *s);
enum phase_id relaying_linger_overdue(struct session *s);

/* The relay is over, or never was: the store's connection goes back. */
void relaying_end(struct session *s);

#endif
