/*
 * One look-up: the steps that it takes, and what the directory's answers mean.
 */
#ifndef IMAPMUX_AUTH_LDAP_LOOKUP_H
#define IMAPMUX_AUTH_LDAP_LOOKUP_H

#include "auth/ldap/entry.h"
#include "auth/ldap/pool.h"
#include "auth/ldap/referral.h"
#include "auth/source.h"

/* The source `ldap` of one worker; ldap.c owns it, and the look-ups share it. */
struct ldap_source {
    const struct env *env;
    const struct ldap_pool_events *events;
    struct ldap_wishes *wishes;
    struct ldap_pool *pool;
    struct ldap_referred referred;
    size_t pool_count; /* all of them, until closed */
    bool mask_unknown; /* an unknown user costs the directory a bind, too */
    bool base_varies;  /* with the user's name */
};

/* As the verbs of struct auth_source. */
void ldap_lookup_start(struct ldap_source *source, struct auth_question *question);
void ldap_lookup_cancel(struct auth_question *question);

/* Events of the pools: see ldap_pool.h. */
void ldap_lookup_send(struct ldap_job *job, struct ldap_handle *handle);
void ldap_lookup_answered(struct ldap_job *job, const struct ldap_answer *answer);
void ldap_lookup_failed(struct ldap_job *job, const char *why);

#endif
