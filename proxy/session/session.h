/*
 * A client's session, from accept to the end:
 *
 *     proxy header > tls > command > moving > verify > admit > route > lease > relay > linger > gone
 *
 * While the user's mailbox is moved, a login is held: it goes from route, or from lease, to held,
 * and back to route when that may be over.
 * If the store is lost, a session may be stranded between relay and linger.
 *
 * session.c holds the table of these phases; entry.c holds those up to the lease, and relaying.c
 * those after it. A session lives on one worker (its home), and changes home once for each login,
 * as soon as the user's name is known, so that everything about a user happens on one thread.
 */
#ifndef IMAPMUX_SESSION_SESSION_H
#define IMAPMUX_SESSION_SESSION_H

#include "proxy/session/home.h"

const struct phase *session_phases(void); /* the table, for the homes */

/*
 * Takes over an accepted socket; `listener` is of the configuration in force. False without memory
 * or descriptors; then the socket is closed.
 */
bool session_accept(struct home *home, int fd, const union address *peer,
                    const struct conf_listener *listener);

/*
 * Orderly: every session of this home is told BYE, those in a command when it is done. Sets
 * home->stopping.
 */
void sessions_stop(struct home *home);

/* At once: every session of this home is cut off. */
void sessions_cut_off(struct home *home);

#endif
