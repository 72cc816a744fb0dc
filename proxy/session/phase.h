/*
 * What a session is, and how it goes from one phase to the next. For session.c, which holds the
 * table of the phases, and for entry.c and relaying.c, which hold what happens in them; nobody else
 * includes this.
 */
#ifndef IMAPMUX_SESSION_PHASE_H
#define IMAPMUX_SESSION_PHASE_H

#include "proxy/net/proxyproto.h"
#include "proxy/session/home.h"
#include "proxy/session/login.h"
#include "proxy/session/relay.h"
#include "proxy/store/referral.h"

struct user;

enum phase_id {
    P_PROXY_HEADER,
    P_TLS,
    P_COMMAND,
    P_MOVING,
    P_VERIFY,
    P_ADMIT,
    P_ROUTE,
    P_LEASE,
    P_HELD,
    P_RELAY,
    P_STRANDED,
    P_LINGER,
    P_GONE,
    PHASE_COUNT
};

enum limit { LIMIT_NONE, LIMIT_LOGIN, LIMIT_IDLE, LIMIT_LINGER };

/* A row of the table. What a function returns is the next phase; its own is: stay. */
struct phase {
    const char *name;
    enum limit limit;
    bool only_end; /* the client is not read: what it sends waits, but its end is told */
    enum phase_id (*enter)(struct session *s);    /* NULL: nothing to do */
    enum phase_id (*readable)(struct session *s); /* NULL: the client is not read */
    enum phase_id (*overdue)(struct session *s);  /* the deadline has passed; NULL: it is gone */
};

/* What a session holds only until it is relayed. */
struct entry {
    struct login login;
    struct auth_request verify;
    struct limits_place waiting; /* among those of its address that have not logged in */
    struct admission_request admit;
    struct route_request route;
    struct lease_request lease;
    struct referral referral;        /* where stores have sent her */
    char user[USERNAME_MAX + 1];     /* who logs in; once verified: whose mailbox it is */
    char login_as[USERNAME_MAX + 1]; /* for whom, if not for itself; "" once verified */
    char master[USERNAME_MAX + 1];   /* who logs in for the user, once verified; "": itself */
    char told_shard[HOST_MAX];       /* by the user's directory entry */
    char told_backend_user[BACKEND_USER_MAX + 1];
    char backend_user[BACKEND_USER_MAX + 1];
    bool verified;
    char proxy_header[PROXYPROTO_MAX];
    size_t proxy_header_len;
    uint64_t login_started_ms; /* the time for it counts from here */
    uint64_t held_since_ms;    /* 0: this login has not been held */
    struct session *session;
    struct letter letter;   /* carries the session to its next home */
    uint64_t identified_ms; /* when the client had said who it is; clock_ms: loops differ */
};

struct session {
    struct home *home;
    struct session *next, **link; /* in home->sessions; link is NULL on the way between two homes */
    struct conn *client;
    struct entry *entry; /* NULL once relayed */
    struct user *user;   /* on its way to a store and from then on: who it is (see users.h) */
    struct session *user_next, **user_link; /* her other sessions */
    char *master;            /* who has logged in for the user; NULL: the user itself */
    const struct conf *conf; /* in force at the first byte: held, for the login and `listener` */
    const struct conf_listener *listener;
    const struct conf_shard *shard;
    const struct conf *shard_conf; /* which `shard` is of: held; both are NULL, or neither is */
    struct pooled *connection;     /* to the store, while leased */
    struct admission_place place;  /* among the user's sessions, until the client is let go */
    struct relay relay;
    uv_timer_t deadline;
    const char *reason; /* of the end, for the log */
    const char *method;
    union address peer, local, store; /* the client, where it has connected to, and its store */
    uint64_t accepted_ms;             /* clock_ms */
    uint64_t end_ms; /* relayed: when it is to be told to end, or to be cut off; 0: never */
    char id[24];
    uint8_t phase;
    uint8_t handles_open;
    size_t undrained; /* what the client had not taken when its lingering was last looked at */
    uint8_t lease_kind;
    bool client_ended; /* lingering: it sends no more, and still reads */
    bool lingering;    /* one side of the relay has left: the deadline counts from then */
    bool told_to_end;  /* not by its own side; it is cut off at end_ms */
    bool relaying;     /* relay_start was called, relay_release not yet */
    bool relayed;      /* it was called at all */
};

/* The one place that changes the phase. After it the session may be gone. */
void phase_move(struct session *s, enum phase_id next);

/*
 * Ends for `reason`, a constant phrase for the log; the first one counts. At once, or when the
 * client has heard our last words.
 */
enum phase_id phase_gone(struct session *s, const char *reason);
enum phase_id phase_linger(struct session *s, const char *reason);

/* Sets the deadline that the limit asks for, or this one. */
void phase_arm(struct session *s, enum limit limit);
void phase_arm_for(struct session *s, uint64_t timeout_ms);

/* It is for this shard of the configuration in force; NULL: for none. */
void phase_set_shard(struct session *s, const struct conf_shard *shard);

/* Into the list of a home, with a timer on its loop; and out of the list, if it is in one. */
void phase_join_home(struct session *s, struct home *home);
void phase_leave_home(struct session *s);

/*
 * A walk along the sessions of a home that may pause for as long as it likes: who leaves meanwhile
 * is passed over, who joins is not met. It ends by itself with the last one, or by phase_walk_end,
 * which is harmless then.
 */
struct phase_walk {
    struct home *home; /* NULL: it is over */
    struct session *at;
    struct phase_walk *next, **link;
};

void phase_walk_begin(struct phase_walk *walk, struct home *home);
struct session *phase_walk_next(struct phase_walk *walk); /* NULL: it is over */
void phase_walk_end(struct phase_walk *walk);

/* Of the client's connection, while no relay has it. */
extern const struct conn_events phase_client_events;

extern const char phase_stopping_bye[];

#endif
