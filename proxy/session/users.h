/*
 * Who is on this worker, by name: the sessions of every user who has logged in here or is on the
 * way to a store; and what is done about a user, whatever phase those sessions are in: hold, kick,
 * let go. On the worker's thread only.
 *
 * While a mailbox is moved its user is held. Her sessions end at a command boundary, or are cut off
 * after cutover.end_timeout; what is parked for her is closed; logins on their way to a store are
 * taken back, and wait in phase held with those that come. So from home->on_held until the release
 * no connection to any store is logged in as her, from this worker.
 */
#ifndef IMAPMUX_SESSION_USERS_H
#define IMAPMUX_SESSION_USERS_H

#include "proxy/session/home.h"

struct users;
struct user; /* a name, and what is known by it; lives while anybody needs it */

/* NULL without memory. */
struct users *users_open(struct home *home);

/* All sessions have left. Forgets who was held. Nulls the pointer; harmless on NULL. */
void users_close(struct users **users);

/* --- for the phases --- */

/*
 * A session that is verified goes on its way to a store as `name`; s->user is set until it leaves.
 * False without memory. It leaves when its login is refused, or at its end; harmless if it is not
 * in.
 */
bool users_join(struct session *s, const char *name);
void users_leave(struct session *s);

/* Whether it is by name here, and has not had our last words. */
bool users_has(const struct session *s);

const char *users_name(const struct user *user);

/*
 * What its route says, at `epoch`, when it is no hindrance: true, and she is held no more if that
 * is news; false if she is held and the route is older than that.
 */
bool users_may_go_on(struct session *s, uint64_t epoch);

/* Its connection to the store has just been returned, or its request for one is over. */
void users_left_store(struct session *s);

/* It is relayed from now on. */
void users_is_relayed(struct session *s);

/* Whether what it leaves at its store shall not be kept for its user's next session. */
bool users_keeps_nothing(const struct session *s);

/*
 * The deadline of a relayed session has come: what it has to do by then because of a call below.
 * True: that was done, and the session may have changed its phase. False: nothing was due.
 */
bool users_see_deadline(struct session *s);

/* --- for those who look after users --- */

/*
 * Holds the user. home->on_held(home, user, epoch) follows once, never inside the call, when none
 * of her sessions has a connection to a store, nor any is under way or parked. Again with the same
 * epoch, or an older one: nothing new is told, but what is not ended yet is ended; with a newer
 * one: told again. False without memory: nothing is told, though her sessions end.
 */
bool users_hold(struct home *home, const char *user, uint64_t epoch);

/*
 * She is held no more: the logins that wait look up their route, so the router has learnt the news
 * before. Harmless on one who is not held.
 */
void users_release(struct home *home, const char *user);

/*
 * Ends the sessions of this user, or the one with this id, of whichever user; the other is NULL.
 * Politely: `bye` (a constant, a whole line) is said at the next command boundary, and those that
 * find none within cutover.end_timeout are cut off. What is parked for the user is closed. Returns
 * how many sessions that were.
 */
size_t users_kick(struct home *home, const char *user, const char *session_id, const char *bye);

/*
 * The same for every relayed session (of this shard, unless it is USERS_ALL_SHARDS), each at a
 * random moment within this time.
 */
#define USERS_ALL_SHARDS SIZE_MAX
void users_let_go(struct home *home, size_t shard_id, uint64_t within_ms);

/* The same for all that are relayed, and for those that will be by then. */
void users_drain(struct home *home, uint64_t within_ms);

/*
 * Every session that has a connection to a store ends now, and what is parked is closed. Logins
 * that are under way, held ones too, ask for their route anew; the router tells them what is the
 * matter.
 */
void users_cut_off(struct home *home);

/* A session as others see it; all is borrowed, for the call. */
struct users_session {
    const char *user, *master;    /* master: who has logged in for the user, or "" */
    const char *shard;            /* its title; "": not known yet */
    const char *id, *tls, *phase; /* tls: version, or "none" */
    const union address *peer;
    uint64_t since_seconds; /* the connection was accepted */
};

/* `visit` changes nothing here. */
void users_each(struct home *home, void (*visit)(void *owner, const struct users_session *session),
                void *owner);

/* The sessions of one user; `visit` changes nothing of what is here. */
void users_each_of(struct home *home, const char *user,
                   void (*visit)(void *owner, struct session *s), void *owner);

/* Those who are held; `visit` may release the user it is told of. */
void users_held_each(struct home *home,
                     void (*visit)(void *owner, const char *user, uint64_t epoch), void *owner);

#endif
