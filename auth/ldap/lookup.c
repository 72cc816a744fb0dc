/*
 * Owns look-ups. A search finds the user's DN, and a bind as that DN verifies the password; with a
 * DN template the bind comes first, and the entry is read after it if anything of it is wanted. A
 * look-up whose question was cancelled while its bind is under way stays until the result has come,
 * for the connection is not free before.
 */
#include "auth/ldap/lookup.h"

#include "auth/ldap/pattern.h"
#include "auth/ldap/policy.h"
#include "proxy/base/log.h"
#include "proxy/base/mem.h"

#include <assert.h>

enum step {
    STEP_SEARCH, /* for the entry; `base` and `filter` */
    STEP_BIND,   /* as `dn` */
    STEP_READ,   /* the entry `dn` */
    STEP_DECOY   /* a bind whose result does not matter: there is no such user */
};

struct lookup {
    struct ldap_job job; /* first: the pool gives this back */
    struct ldap_source *source;
    struct ldap_pool *pool;
    struct auth_question *question; /* NULL once cancelled */
    enum step step;
    char *base, *filter, *dn;
    int scope;
    char *urls[LDAP_URLS_MAX]; /* where to look next */
    size_t url_count, url_index;
    bool urls_lost;                /* not all of them are known */
    struct ldap_referral referral; /* the one that is followed */
    bool referred;
    struct auth_facts *facts; /* of the entry, once it was read */
    struct err entry_err;     /* why the user may not log in, right password or not */
};

static bool fill(struct lookup *lookup, struct err *err);
static void take_step(struct lookup *lookup, enum step step);
static void search_answered(struct lookup *lookup, const struct ldap_answer *answer);
static void not_found(struct lookup *lookup);
static void bind_answered(struct lookup *lookup, const struct ldap_answer *answer);
static void read_answered(struct lookup *lookup, const struct ldap_answer *answer);
static bool keep_urls(struct lookup *lookup, const struct ldap_answer *answer);
static bool follow_next(struct lookup *lookup);
static void conclude(struct lookup *lookup);
static void fail(struct lookup *lookup, enum err_kind kind, const char *what,
                 const struct ldap_answer *answer);
static void unavailable(struct lookup *lookup, const char *why);
static void finish(struct lookup *lookup, enum auth_verdict verdict, const struct err *err);
static void free_lookup(struct lookup *lookup);

static bool by_template(const struct conf_ldap *conf)
{
    return conf->dn_template[0] != '\0';
}

/* --- what is asked --- */

static bool fill(struct lookup *lookup, struct err *err)
{
    const struct conf_ldap *conf = &lookup->source->env->conf->ldap;
    const char *user = lookup->question->user;
    static const int scopes[] = {
        [LDAP_SEARCH_BASE] = LDAP_SCOPE_BASE,
        [LDAP_SEARCH_ONE] = LDAP_SCOPE_ONELEVEL,
        [LDAP_SEARCH_SUBTREE] = LDAP_SCOPE_SUBTREE,
    };

    if (by_template(conf)) {
        lookup->dn =
            ldap_pattern_expand("dn_template", conf->dn_template, user, LDAP_ESCAPE_DN, err);
        return lookup->dn != NULL;
    }
    lookup->scope = scopes[conf->scope];
    lookup->base = ldap_pattern_expand("base", conf->base, user, LDAP_ESCAPE_DN, err);
    if (lookup->base != NULL)
        lookup->filter = ldap_pattern_expand("filter", conf->filter, user, LDAP_ESCAPE_FILTER, err);
    return lookup->filter != NULL;
}

/* --- the way of a look-up --- */

void ldap_lookup_start(struct ldap_source *source, struct auth_question *question)
{
    const struct conf_ldap *conf = &source->env->conf->ldap;
    struct lookup *lookup = NULL;
    struct err err = {0};

    err_set(&err, ERR_INTERNAL, "ldap: no memory");
    if (ldap_pool_waiting(source->pool) >= (size_t)conf->max_queue)
        err_set(&err, ERR_UNAVAILABLE, "ldap: %lld logins wait already",
                (long long)conf->max_queue);
    else
        lookup = mem_new(sizeof *lookup);
    if (lookup == NULL) {
        counter_add(&source->env->counters->ldap_failed, 1);
        auth_source_answer(question, AUTH_FAILED, NULL, &err);
        return;
    }
    lookup->source = source;
    lookup->pool = source->pool;
    lookup->question = question;
    if (!fill(lookup, &err)) {
        /* A name without the part that the DN needs cannot be anybody's. */
        finish(lookup, err.kind == ERR_CREDENTIALS ? AUTH_UNKNOWN_USER : AUTH_FAILED, &err);
        return;
    }
    question->operation = lookup;
    if (!by_template(conf))
        take_step(lookup, STEP_SEARCH);
    else
        take_step(lookup, question->password != NULL ? STEP_BIND : STEP_READ);
}

void ldap_lookup_cancel(struct auth_question *question)
{
    struct lookup *lookup = question->operation;

    question->operation = NULL;
    lookup->question = NULL;
    if (ldap_pool_cancel(&lookup->job))
        free_lookup(lookup);
}

/* After this the look-up may be gone. */
static void take_step(struct lookup *lookup, enum step step)
{
    bool is_bind = step == STEP_BIND || step == STEP_DECOY;

    lookup->step = step;
    ldap_pool_submit(lookup->pool, &lookup->job, is_bind ? LDAP_HANDLE_BIND : LDAP_HANDLE_SEARCH);
}

/* What a referral does not say is as before (RFC 4511 4.5.3). */
static void send_search(struct lookup *lookup, struct ldap_handle *handle)
{
    const struct ldap_referral *referral = &lookup->referral;
    struct ldap_query query = {
        .base = referral->base != NULL ? referral->base : lookup->base,
        .filter = referral->filter != NULL ? referral->filter : lookup->filter,
        .scope = lookup->scope,
        .attributes = ldap_wishes_attributes(lookup->source->wishes),
    };

    if (lookup->referred && referral->scope != LDAP_SCOPE_DEFAULT)
        query.scope = referral->scope;
    if (lookup->step == STEP_READ) {
        query.base = lookup->dn;
        query.filter = "(objectClass=*)";
        query.scope = LDAP_SCOPE_BASE;
    }
    ldap_handle_search(handle, &lookup->job.operation, &query);
}

void ldap_lookup_send(struct ldap_job *job, struct ldap_handle *handle)
{
    struct lookup *lookup = (struct lookup *)job;

    assert(lookup->question != NULL);
    if (lookup->step == STEP_SEARCH || lookup->step == STEP_READ)
        send_search(lookup, handle);
    else
        ldap_handle_bind(handle, &job->operation, lookup->dn,
                         secret_span(lookup->question->password));
}

void ldap_lookup_answered(struct ldap_job *job, const struct ldap_answer *answer)
{
    struct lookup *lookup = (struct lookup *)job;

    if (lookup->question == NULL)
        free_lookup(lookup);
    else if (answer->code < 0) /* libldap's own: no memory, mostly (even LDAP_FILTER_ERROR) */
        fail(lookup, ERR_INTERNAL, "the operation could not be made", answer);
    else if (lookup->step == STEP_SEARCH)
        search_answered(lookup, answer);
    else if (lookup->step == STEP_READ)
        read_answered(lookup, answer);
    else
        bind_answered(lookup, answer);
}

void ldap_lookup_failed(struct ldap_job *job, const char *why)
{
    struct lookup *lookup = (struct lookup *)job;

    if (lookup->question == NULL)
        free_lookup(lookup);
    else
        unavailable(lookup, why);
}

/* --- searches --- */

/* Reads the entry; false when the look-up has failed and is gone. */
static bool take_entry(struct lookup *lookup, const struct ldap_answer *answer)
{
    char *dn = answer->entry == NULL ? NULL : ldap_get_dn(answer->ldap, answer->entry);
    bool ok = dn != NULL && dn[0] != '\0';

    if (ok && lookup->dn == NULL) {
        lookup->dn = mem_copy_text(dn, strlen(dn));
        ok = lookup->dn != NULL;
    }
    ldap_memfree(dn);
    if (!ok) {
        fail(lookup, ERR_INTERNAL, "the entry found has no name", answer);
        return false;
    }
    ldap_wishes_read(lookup->source->wishes, answer->ldap, answer->entry, lookup->question->user,
                     &lookup->facts, &lookup->entry_err);
    return true;
}

static void search_answered(struct lookup *lookup, const struct ldap_answer *answer)
{
    bool may_be_elsewhere = answer->entry_count == 0 && keep_urls(lookup, answer);

    if (answer->code == LDAP_SIZELIMIT_EXCEEDED || answer->entry_count > 1)
        fail(lookup, ERR_INTERNAL, "the search finds several entries for one user", answer);
    else if (answer->code == LDAP_REFERRAL && !may_be_elsewhere)
        fail(lookup, ERR_CONFIG, "the directory refers to another one", answer);
    else if (answer->code == LDAP_NO_SUCH_OBJECT && !lookup->source->base_varies &&
             !lookup->referred)
        fail(lookup, ERR_INTERNAL, "the search base does not exist", answer);
    else if (answer->code != LDAP_SUCCESS && answer->code != LDAP_NO_SUCH_OBJECT &&
             answer->code != LDAP_REFERRAL)
        fail(lookup, ERR_UNAVAILABLE, "the search failed", answer);
    else if (answer->entry_count == 0)
        not_found(lookup);
    else if (take_entry(lookup, answer)) {
        if (lookup->question->password != NULL)
            take_step(lookup, STEP_BIND);
        else
            conclude(lookup);
    }
}

/*
 * Elsewhere, perhaps; else there is no such user, which shall take as long as a wrong password. A
 * bind as the base makes as many round trips; a decoy costs the directory as much, too.
 */
static void not_found(struct lookup *lookup)
{
    const struct ldap_source *source = lookup->source;
    const char *decoy_dn = source->env->conf->ldap.decoy_dn;

    if (follow_next(lookup))
        return;
    if (lookup->urls_lost) {
        unavailable(lookup, "more referrals than can be followed");
        return;
    }
    if (!source->mask_unknown || lookup->question->password == NULL) {
        finish(lookup, AUTH_UNKNOWN_USER, NULL);
        return;
    }
    lookup->pool = source->pool;
    lookup->dn = decoy_dn[0] == '\0' ? lookup->base : mem_copy_text(decoy_dn, strlen(decoy_dn));
    if (lookup->dn == lookup->base)
        lookup->base = NULL;
    if (lookup->dn != NULL)
        take_step(lookup, STEP_DECOY);
    else
        finish(lookup, AUTH_UNKNOWN_USER, NULL);
}

/* The entry that the user has just bound as, or whose name stands for the user. */
static void read_answered(struct lookup *lookup, const struct ldap_answer *answer)
{
    bool is_there = answer->code == LDAP_SUCCESS && answer->entry_count > 0;
    bool is_unknown = answer->code == LDAP_NO_SUCH_OBJECT || answer->code == LDAP_SUCCESS;

    if (is_there) {
        if (take_entry(lookup, answer))
            conclude(lookup);
    } else if (is_unknown && lookup->question->password == NULL) {
        finish(lookup, AUTH_UNKNOWN_USER, NULL);
    } else if (is_unknown) {
        fail(lookup, ERR_INTERNAL, "the service account cannot read the user's entry", answer);
    } else if (answer->code == LDAP_INVALID_DN_SYNTAX) {
        fail(lookup, ERR_CONFIG, "the user's DN is malformed", answer);
    } else {
        fail(lookup, ERR_UNAVAILABLE, "reading the user's entry failed", answer);
    }
}

/* --- referrals --- */

/* Where the search was led to, from the first server only: one hop, so that there is an end. */
static bool keep_urls(struct lookup *lookup, const struct ldap_answer *answer)
{
    if (!lookup->source->env->conf->ldap.referrals || lookup->referred)
        return false;
    lookup->urls_lost = answer->urls_lost;
    for (size_t i = 0; i < answer->url_count; i++) {
        char *copy = mem_copy_text(answer->urls[i], strlen(answer->urls[i]));

        if (copy != NULL)
            lookup->urls[lookup->url_count++] = copy;
        else
            lookup->urls_lost = true;
    }
    return lookup->url_count > 0 || lookup->urls_lost;
}

/* Goes on to where the search was led to, if there is anything left; then the look-up may be gone.
 */
static bool follow_next(struct lookup *lookup)
{
    struct ldap_source *source = lookup->source;
    size_t known_count = source->referred.count;

    if (lookup->url_index == lookup->url_count)
        return false;
    ldap_referral_release(&lookup->referral);
    if (!ldap_referral_parse(lookup->urls[lookup->url_index++], &lookup->referral)) {
        unavailable(lookup, "a referral cannot be followed");
        return true;
    }
    lookup->pool = ldap_referred_pool(&source->referred, lookup->referral.uri, source->env,
                                      source->events, source);
    source->pool_count += source->referred.count - known_count;
    lookup->referred = true;
    if (lookup->pool != NULL)
        take_step(lookup, STEP_SEARCH);
    else
        unavailable(lookup, "referrals lead to too many servers");
    return true;
}

/* --- binds --- */

/* The user shall know in time, and does not read our log; the admin does. */
static void log_policy(const struct lookup *lookup, const struct ldap_policy *policy)
{
    struct log_line line;

    if (policy->grace_count < 0 && policy->expires_in_s < 0)
        return;
    log_begin(&line, policy->grace_count >= 0 ? LOG_LEVEL_WARNING : LOG_LEVEL_INFO,
              "ldap password expires");
    log_text(&line, "user", lookup->question->user);
    if (policy->grace_count >= 0)
        log_number(&line, "grace_logins", (uint64_t)policy->grace_count);
    else
        log_number(&line, "seconds", (uint64_t)policy->expires_in_s);
    log_write(&line);
}

static void verified(struct lookup *lookup, const struct ldap_policy *policy)
{
    log_policy(lookup, policy);
    if (by_template(&lookup->source->env->conf->ldap) && ldap_wishes_any(lookup->source->wishes))
        take_step(lookup, STEP_READ);
    else
        conclude(lookup);
}

static void bind_answered(struct lookup *lookup, const struct ldap_answer *answer)
{
    struct ldap_policy policy = ldap_policy_read(answer);
    struct err err = {0};

    if (lookup->step == STEP_DECOY) {
        finish(lookup, AUTH_UNKNOWN_USER, NULL);
        return;
    }
    if (policy.err.kind != ERR_NONE) {
        finish(lookup, policy.err.kind == ERR_INTERNAL ? AUTH_FAILED : AUTH_REFUSED, &policy.err);
        return;
    }
    switch (answer->code) {
    case LDAP_SUCCESS:
        verified(lookup, &policy);
        break;
    case LDAP_INVALID_CREDENTIALS: /* most servers say this to unknown DNs as well (RFC 4511 A.2) */
    case LDAP_INAPPROPRIATE_AUTH:
        err_set(&err, ERR_CREDENTIALS, "ldap: wrong password");
        finish(lookup, AUTH_REFUSED, &err);
        break;
    case LDAP_NO_SUCH_OBJECT:
        finish(lookup, AUTH_UNKNOWN_USER, NULL);
        break;
    case LDAP_INVALID_DN_SYNTAX:
        fail(lookup, ERR_CONFIG, "the name to bind as is malformed", answer);
        break;
    default:
        fail(lookup, ERR_UNAVAILABLE, "the bind failed", answer);
        break;
    }
}

/* --- the end --- */

/* The user is who she says she is; may she log in? */
static void conclude(struct lookup *lookup)
{
    struct err err = lookup->entry_err;

    if (err.kind == ERR_NONE)
        finish(lookup, AUTH_VERIFIED, NULL);
    else
        finish(lookup, err.kind == ERR_ADMIN ? AUTH_REFUSED : AUTH_FAILED, &err);
}

/* For what an operator must look at. */
static void fail(struct lookup *lookup, enum err_kind kind, const char *what,
                 const struct ldap_answer *answer)
{
    struct err err = {0};
    struct log_line line;

    err_set(&err, kind, "ldap: %s: %s%s%s", what, ldap_err2string(answer->code),
            answer->diagnostic[0] != '\0' ? ": " : "", answer->diagnostic);
    log_begin(&line, LOG_LEVEL_ERROR, "ldap look-up failed");
    log_text(&line, "user", lookup->question->user);
    log_err(&line, &err);
    log_write_limited(&line, err.text);
    finish(lookup, AUTH_FAILED, &err);
}

static void unavailable(struct lookup *lookup, const char *why)
{
    struct err err = {0};

    counter_add(&lookup->source->env->counters->auth_ldap_failures, 1);
    err_set(&err, ERR_UNAVAILABLE, "ldap: %s", why);
    finish(lookup, AUTH_FAILED, &err);
}

static void count_verdict(struct counters *counters, enum auth_verdict verdict)
{
    counter_add(verdict == AUTH_VERIFIED       ? &counters->ldap_verified
                : verdict == AUTH_UNKNOWN_USER ? &counters->ldap_unknown
                : verdict == AUTH_REFUSED      ? &counters->ldap_refused
                                               : &counters->ldap_failed,
                1);
}

static void finish(struct lookup *lookup, enum auth_verdict verdict, const struct err *err)
{
    struct auth_question *question = lookup->question;
    struct auth_facts *facts = NULL;

    if (verdict == AUTH_VERIFIED) {
        facts = lookup->facts;
        lookup->facts = NULL;
    }
    count_verdict(lookup->source->env->counters, verdict);
    free_lookup(lookup);
    auth_source_answer(question, verdict, facts, err);
}

static void free_lookup(struct lookup *lookup)
{
    auth_facts_release(&lookup->facts);
    for (size_t i = 0; i < lookup->url_count; i++)
        mem_free(lookup->urls[i]);
    ldap_referral_release(&lookup->referral);
    mem_free(lookup->base);
    mem_free(lookup->filter);
    mem_free(lookup->dn);
    mem_free(lookup);
}
