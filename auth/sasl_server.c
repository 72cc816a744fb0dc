/* Owns the table of mechanisms, and the shapes of their messages. */
#include "auth/sasl_server.h"

#include "auth/sasl.h"

#include <jansson.h>
#include <stdlib.h>

struct sasl_mechanism {
    const char *name;
    const char *first_challenge;
    enum sasl_outcome (*step)(struct sasl_server *server, struct span message,
                              struct buf *challenge_out);
    bool explains;
};

static enum sasl_outcome step_plain(struct sasl_server *server, struct span message,
                                    struct buf *challenge_out);
static enum sasl_outcome step_login(struct sasl_server *server, struct span message,
                                    struct buf *challenge_out);
static enum sasl_outcome step_external(struct sasl_server *server, struct span message,
                                       struct buf *challenge_out);
static enum sasl_outcome step_oauthbearer(struct sasl_server *server, struct span message,
                                          struct buf *challenge_out);
static enum sasl_outcome step_xoauth2(struct sasl_server *server, struct span message,
                                      struct buf *challenge_out);

static const struct sasl_mechanism mechanisms[] = {
    {"PLAIN", "", step_plain, false},       {"LOGIN", "Username:", step_login, false},
    {"EXTERNAL", "", step_external, false}, {"OAUTHBEARER", "", step_oauthbearer, true},
    {"XOAUTH2", "", step_xoauth2, true},
};

static const struct sasl_mechanism *find(struct span name)
{
    for (size_t i = 0; i < sizeof mechanisms / sizeof mechanisms[0]; i++)
        if (span_is(name, mechanisms[i].name))
            return &mechanisms[i];
    return NULL;
}

const char *sasl_mechanism_name(struct span name)
{
    const struct sasl_mechanism *mechanism = find(name);

    return mechanism == NULL ? NULL : mechanism->name;
}

const char *sasl_mechanism_at(size_t index)
{
    return index < sizeof mechanisms / sizeof mechanisms[0] ? mechanisms[index].name : NULL;
}

/* --- what comes --- */

/* A name that does not fit or holds a NUL cannot exist: it becomes "". */
static void keep_name(char name_out[SASL_NAME_MAX], struct span name)
{
    if (name.len >= SASL_NAME_MAX || (name.len > 0 && memchr(name.ptr, '\0', name.len) != NULL))
        name.len = 0;
    if (name.len > 0)
        memcpy(name_out, name.ptr, name.len);
    name_out[name.len] = '\0';
}

static enum sasl_outcome keep_secret(struct sasl_credentials *who, struct span secret)
{
    return secret_set(&who->secret, secret) ? SASL_IDENTIFIED : SASL_NO_MEMORY;
}

/* One who would be somebody with no name must not become itself. */
static bool keep_login_as(struct sasl_credentials *who, struct span name)
{
    keep_name(who->login_as, name);
    return name.len == 0 || who->login_as[0] != '\0';
}

static enum sasl_outcome step_plain(struct sasl_server *server, struct span message,
                                    struct buf *challenge_out)
{
    struct sasl_plain plain;

    (void)challenge_out;
    if (!sasl_parse_plain(message, &plain) || !keep_login_as(server->who, plain.authzid))
        return SASL_REFUSED;
    keep_name(server->who->user, plain.authcid);
    return keep_secret(server->who, plain.password);
}

static enum sasl_outcome step_login(struct sasl_server *server, struct span message,
                                    struct buf *challenge_out)
{
    if (server->step > 1)
        return keep_secret(server->who, message);
    keep_name(server->who->user, message);
    return buf_append_text(challenge_out, "Password:") ? SASL_CHALLENGE : SASL_NO_MEMORY;
}

static enum sasl_outcome step_external(struct sasl_server *server, struct span message,
                                       struct buf *challenge_out)
{
    (void)challenge_out;
    server->who->proof = AUTH_BY_CERTIFICATE;
    return keep_login_as(server->who, message) ? SASL_IDENTIFIED : SASL_REFUSED;
}

/* --- tokens --- */

enum { KVSEP = 1 };

/* The next of the pairs that KVSEP ends: false at their end, which is one more KVSEP. */
static bool next_pair(struct span *rest, struct span *pair_out)
{
    const char *end = rest->len == 0 ? NULL : memchr(rest->ptr, KVSEP, rest->len);

    if (end == NULL || end == rest->ptr)
        return false;
    *pair_out = (struct span){rest->ptr, (size_t)(end - rest->ptr)};
    *rest = span_after(*rest, pair_out->len + 1);
    return true;
}

static bool starts_with(struct span text, const char *prefix)
{
    size_t len = strlen(prefix);

    return text.len >= len && strncasecmp(text.ptr, prefix, len) == 0;
}

/* RFC 6750 2.1: b64token, which JWTs are. */
static bool is_token(struct span token)
{
    for (size_t i = 0; i < token.len; i++)
        if (token.ptr[i] <= ' ' || token.ptr[i] > '~')
            return false;
    return token.len > 0 && token.len <= SASL_TOKEN_MAX;
}

static enum sasl_outcome keep_token(struct sasl_credentials *who, struct span authorization)
{
    static const char scheme[] = "Bearer ";

    if (!starts_with(authorization, scheme))
        return SASL_REFUSED;

    struct span token = span_after(authorization, sizeof scheme - 1);

    who->proof = AUTH_BY_TOKEN;
    return is_token(token) ? keep_secret(who, token) : SASL_REFUSED;
}

/*
 * The pairs behind the header, or all there is: `auth=` and, with XOAUTH2, `user=`. What comes
 * twice leaves open which of them counts.
 */
static enum sasl_outcome take_pairs(struct sasl_credentials *who, struct span pairs,
                                    bool names_user)
{
    struct span pair, authorization = {NULL, 0}, user = {NULL, 0};

    while (next_pair(&pairs, &pair)) {
        struct span *kept = starts_with(pair, "auth=")                 ? &authorization
                            : names_user && starts_with(pair, "user=") ? &user
                                                                       : NULL;

        if (kept != NULL && kept->ptr != NULL)
            return SASL_REFUSED;
        if (kept != NULL)
            *kept = span_after(pair, strlen("auth="));
    }
    if (pairs.len != 1 || pairs.ptr[0] != KVSEP)
        return SASL_REFUSED;
    if (user.ptr != NULL && !keep_login_as(who, user))
        return SASL_REFUSED;
    return keep_token(who, authorization);
}

/* saslname (RFC 5801 4): "," and "=" come as =2C and =3D. False for what cannot be one. */
static bool decode_saslname(struct span text, char name_out[SASL_NAME_MAX])
{
    size_t len = 0;

    for (size_t i = 0; i < text.len; i++) {
        char ch = text.ptr[i];

        if (len + 1 >= SASL_NAME_MAX || ch == '\0')
            return false;
        if (ch == '=') {
            if (starts_with(span_after(text, i), "=2C"))
                ch = ',';
            else if (!starts_with(span_after(text, i), "=3D"))
                return false;
            i += 2;
        }
        name_out[len++] = ch;
    }
    name_out[len] = '\0';
    return len > 0;
}

/*
 * gs2-header (RFC 5801 4, RFC 7628 3.1) without channel binding: "n,," or "n,a=name,". *rest_out is
 * what follows.
 */
static bool take_gs2_header(struct sasl_credentials *who, struct span message,
                            struct span *rest_out)
{
    if (!starts_with(message, "n,") && !starts_with(message, "y,"))
        return false;

    struct span rest = span_after(message, 2);
    const char *comma = rest.len == 0 ? NULL : memchr(rest.ptr, ',', rest.len);

    if (comma == NULL)
        return false;

    struct span authzid = {rest.ptr, (size_t)(comma - rest.ptr)};

    *rest_out = span_after(rest, authzid.len + 1);
    return authzid.len == 0 ||
           (starts_with(authzid, "a=") && decode_saslname(span_after(authzid, 2), who->login_as));
}

/* After a challenge that explained a refusal, whatever comes ends the exchange. */
static enum sasl_outcome step_oauthbearer(struct sasl_server *server, struct span message,
                                          struct buf *challenge_out)
{
    struct span rest;

    (void)challenge_out;
    if (server->step > 1 || !take_gs2_header(server->who, message, &rest) || rest.len == 0 ||
        rest.ptr[0] != KVSEP)
        return SASL_REFUSED;
    return take_pairs(server->who, span_after(rest, 1), false);
}

static enum sasl_outcome step_xoauth2(struct sasl_server *server, struct span message,
                                      struct buf *challenge_out)
{
    (void)challenge_out;
    return server->step > 1 ? SASL_REFUSED : take_pairs(server->who, message, true);
}

/* --- the exchange --- */

bool sasl_server_start(struct sasl_server *server, const char *name, struct sasl_credentials *who,
                       struct buf *challenge_out)
{
    const struct sasl_mechanism *mechanism = find(span_of(name));
    bool begun = buf_append_text(challenge_out, mechanism->first_challenge);

    server->mechanism = begun ? mechanism : NULL;
    server->who = who;
    server->step = 0;
    who->proof = AUTH_BY_PASSWORD;
    who->login_as[0] = '\0';
    return begun;
}

enum sasl_outcome sasl_server_step(struct sasl_server *server, struct span message,
                                   struct buf *challenge_out)
{
    enum sasl_outcome outcome;

    server->step++;
    outcome = server->mechanism->step(server, message, challenge_out);
    if (outcome != SASL_CHALLENGE)
        server->mechanism = NULL;
    return outcome;
}

bool sasl_server_explain(struct sasl_server *server, const char *name, const char *scope,
                         const char *discovery_url, struct buf *challenge_out)
{
    const struct sasl_mechanism *mechanism = find(span_of(name));
    char *text = NULL;
    bool written;

    if (mechanism == NULL || !mechanism->explains)
        return false;

    json_t *reason = json_pack("{s:s}", "status", "invalid_token");

    if (scope[0] != '\0')
        json_object_set_new(reason, "scope", json_string(scope));
    if (discovery_url[0] != '\0')
        json_object_set_new(reason, "openid-configuration", json_string(discovery_url));
    text = json_dumps(reason, JSON_COMPACT);
    json_decref(reason);
    written = text != NULL && buf_append_text(challenge_out, text);
    free(text);
    if (written) {
        server->mechanism = mechanism;
        server->step = 1;
    }
    return written;
}
