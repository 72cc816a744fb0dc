/* A loop, a configuration and a chain for the tests of auth/; one request at a time or many. */
#ifndef IMAPMUX_TESTS_AUTH_FIXTURE_H
#define IMAPMUX_TESTS_AUTH_FIXTURE_H

#include "auth/auth.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
/* after its friends */
#include <cmocka.h>

static char no_text[] = "", name_letters[] = "abcdefghijklmnopqrstuvwxyz0123456789-";
static const union address login_address = {.v4 = {.sin_family = AF_INET}},
                           *login_from = &login_address;

struct fixture {
    uv_loop_t loop;
    struct turn turn;
    struct conf conf;
    struct counters counters;
    struct env env;
    struct throttle *throttle;
    struct auth *auth;
    char *source_names[2];
    struct err open_err;
};

struct login {
    struct auth_request request;
    struct secret password;
    struct err err;
    unsigned answer_count;
    char user[256], master[256], backend_user[256], shard[256]; /* the identity */
};

static inline void fixture_init(struct fixture *f)
{
    memset(f, 0, sizeof *f);
    uv_loop_init(&f->loop);
    turn_init(&f->turn, &f->loop);
    f->env = (struct env){
        .loop = &f->loop, .turn = &f->turn, .conf = &f->conf, .counters = &f->counters};
    f->conf.auth.sources.items = f->source_names;
    f->conf.auth.timeout = 10000;
    f->conf.auth.look_up = true;
    f->conf.username.allowed = name_letters;
    f->conf.username.default_domain = no_text;
    f->conf.username.max_length = 128;
    f->conf.throttle = (struct conf_throttle){.free_failures = 1000,
                                              .delay = 1000,
                                              .forget = 1000,
                                              .max_parallel = 100000,
                                              .max_entries = 100000};
    f->conf.passwd.file = f->conf.oauth.keys = no_text;
    f->conf.passwd.max_queue = 1024;
    f->conf.ldap.ca_file = f->conf.ldap.client_certificate = f->conf.ldap.client_key = no_text;
    f->conf.ldap.bind_dn = f->conf.ldap.base = f->conf.ldap.filter = no_text;
    f->conf.ldap.dn_template = f->conf.ldap.decoy_dn = no_text;
    f->conf.ldap.user_attribute = f->conf.ldap.backend_user_attribute = no_text;
    f->conf.ldap.shard_attribute = f->conf.ldap.networks_attribute = no_text;
    f->conf.ldap.password_policy = true;
    f->conf.ldap.fail_back = 60000;
    f->conf.ldap.connect_timeout = 3000;
    f->conf.ldap.timeout = 5000;
    f->conf.ldap.search_handles = 1;
    f->conf.ldap.bind_handles = 4;
    f->conf.ldap.max_queue = 1024;
}

static inline void fixture_source(struct fixture *f, char *name)
{
    f->source_names[f->conf.auth.sources.count++] = name;
}

static inline void fixture_open(struct fixture *f)
{
    f->throttle = throttle_open(&f->conf.throttle, &f->open_err);
    assert_non_null(f->throttle);
    f->auth = auth_open(&f->env, f->throttle, &f->open_err);
    if (f->auth == NULL)
        print_message("auth_open: %s\n", f->open_err.text);
    assert_non_null(f->auth);
}

/* What f->conf.throttle says now counts. */
static inline void fixture_change_throttle(struct fixture *f)
{
    struct networks trusted;

    assert_true(networks_init(&trusted, &f->conf.throttle.trusted, "throttle.trusted", NULL));
    throttle_change(f->throttle, &f->conf.throttle, &trusted);
    networks_release(&trusted);
}

/* Closes all and runs the loop dry: what is left open or allocated is a bug. */
static inline void fixture_release(struct fixture *f)
{
    auth_close(&f->auth);
    throttle_close(&f->throttle);
    assert_null(f->auth);
    uv_run(&f->loop, UV_RUN_DEFAULT);
    turn_release(&f->turn);
    uv_run(&f->loop, UV_RUN_DEFAULT);
    assert_int_equal(uv_loop_close(&f->loop), 0);
}

static inline void login_answered(struct auth_request *request,
                                  const struct auth_identity *identity, const struct err *err)
{
    struct login *login = request->owner;

    login->err = *err;
    snprintf(login->user, sizeof login->user, "%s", identity->user);
    snprintf(login->master, sizeof login->master, "%s",
             identity->master == NULL ? "" : identity->master);
    snprintf(login->backend_user, sizeof login->backend_user, "%s", identity->backend_user);
    snprintf(login->shard, sizeof login->shard, "%s", identity->shard);
    login->answer_count++;
    secret_release(&login->password); /* borrowed only until now */
}

/* With a password, or, with NULL, by a certificate. */
static inline void login_start_as(struct fixture *f, struct login *login, const char *user,
                                  const char *password, const char *login_as)
{
    memset(login, 0, sizeof *login);
    login->request.proof = password == NULL ? AUTH_BY_CERTIFICATE : AUTH_BY_PASSWORD;
    if (password != NULL)
        assert_true(secret_set(&login->password, span_of(password)));
    login->request.user = user;
    login->request.login_as = login_as;
    login->request.secret = &login->password;
    login->request.address = login_from;
    login->request.on_answer = login_answered;
    login->request.owner = login;
    auth_verify(f->auth, &login->request);
    assert_int_equal(login->answer_count, 0);
}

static inline void login_start(struct fixture *f, struct login *login, const char *user,
                               const char *password)
{
    login_start_as(f, login, user, password, "");
}

static inline void login_wait(struct fixture *f, struct login *login)
{
    while (login->answer_count == 0)
        uv_run(&f->loop, UV_RUN_ONCE);
    assert_int_equal(login->answer_count, 1);
}

static inline void login_cancel(struct login *login)
{
    auth_cancel(&login->request);
    secret_release(&login->password);
}

static inline enum err_kind login_result(struct fixture *f, const char *user, const char *password)
{
    struct login login;

    login_start(f, &login, user, password);
    login_wait(f, &login);
    return login.err.kind;
}

#endif
