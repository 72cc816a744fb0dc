/* The chain, with two sources of our own in the place of passwd and ldap. */
#include "tests/unit/auth_fixture.h"

/* What a source knows of a user; a password of NULL is never right. */
struct person {
    const char *name, *password;
    enum err_kind kind; /* ERR_NONE: may log in */
    struct {
        const char *user, *backend_user, *shard, *network; /* NULL: not told */
    } facts;
};

struct fake {
    enum auth_verdict verdict;
    enum err_kind kind;
    const struct person *people; /* decide in the place of `verdict`; the last one has no name */
    bool at_once, silent;
    unsigned asked, by_name, cancelled, closed;
    struct auth_question *question;
};

static struct fake fakes[2];
static bool open_fails;

static struct auth_facts *facts_of(const struct person *person)
{
    const char *network = person->facts.network;
    struct network where;
    struct auth_facts told = {
        .user = person->facts.user == NULL ? "" : person->facts.user,
        .backend_user = person->facts.backend_user == NULL ? "" : person->facts.backend_user,
        .shard = person->facts.shard == NULL ? "" : person->facts.shard,
        .network_count = network == NULL ? 0 : 1,
    };

    assert_true(network == NULL || network_parse(network, &where));
    return auth_facts_new(&told, &where);
}

static void answer_of_people(const struct person *person, struct auth_question *question)
{
    struct err err = {0};

    while (person->name != NULL && strcmp(person->name, question->user) != 0)
        person++;
    err_set(&err, person->kind, "of the person");
    if (person->name == NULL) {
        auth_source_answer(question, AUTH_UNKNOWN_USER, NULL, NULL);
    } else if (person->kind != ERR_NONE) {
        auth_source_answer(question, person->kind == ERR_UNAVAILABLE ? AUTH_FAILED : AUTH_REFUSED,
                           NULL, &err);
    } else if (question->password != NULL &&
               (person->password == NULL ||
                !span_equal(secret_span(question->password), span_of(person->password)))) {
        err_set(&err, ERR_CREDENTIALS, "wrong");
        auth_source_answer(question, AUTH_REFUSED, NULL, &err);
    } else {
        auth_source_answer(question, AUTH_VERIFIED, facts_of(person), NULL);
    }
}

static void fake_answer(struct fake *fake, struct auth_question *question)
{
    struct err err = {0};

    if (fake->people != NULL) {
        answer_of_people(fake->people, question);
        return;
    }
    err_set(&err, fake->kind, "fake");
    auth_source_answer(question, fake->verdict, NULL, &err);
}

static void *fake_open(size_t i, struct err *err)
{
    if (open_fails && i == 1) {
        err_set(err, ERR_CONFIG, "fake");
        return NULL;
    }
    return &fakes[i];
}

static void *first_open(const struct env *env, struct err *err)
{
    (void)env;
    return fake_open(0, err);
}

static void *second_open(const struct env *env, struct err *err)
{
    (void)env;
    return fake_open(1, err);
}

static void fake_verify(void *state, struct auth_question *question)
{
    struct fake *fake = state;

    fake->asked++;
    fake->by_name += question->password == NULL;
    if (fake->at_once) {
        fake_answer(fake, question);
        return;
    }
    fake->question = question;
    question->operation = fake;
}

static void fake_cancel(void *state, struct auth_question *question)
{
    struct fake *fake = state;

    assert_ptr_equal(question->operation, fake);
    fake->cancelled++;
    fake->question = NULL;
}

static void fake_close(void *state)
{
    ((struct fake *)state)->closed++;
}

const struct auth_source auth_source_passwd = {"passwd",    first_open, fake_verify,
                                               fake_cancel, fake_close, NULL};
const struct auth_source auth_source_ldap = {"ldap",      second_open, fake_verify,
                                             fake_cancel, fake_close,  NULL};

static char first_name[] = "passwd", second_name[] = "ldap", third_name[] = "nobody";

static void setup(struct fixture *f, struct fake first, struct fake second)
{
    fakes[0] = first;
    fakes[1] = second;
    fixture_init(f);
    fixture_source(f, first_name);
    fixture_source(f, second_name);
    fixture_open(f);
}

static void answers_follow_the_order(void **state)
{
    static const struct {
        enum auth_verdict first, second;
        enum err_kind first_kind, second_kind, answer;
        unsigned second_asked;
    } cases[] = {
        {AUTH_VERIFIED, AUTH_REFUSED, ERR_NONE, ERR_CREDENTIALS, ERR_NONE, 0},
        {AUTH_REFUSED, AUTH_VERIFIED, ERR_EXPIRED, ERR_NONE, ERR_EXPIRED, 0},
        {AUTH_UNKNOWN_USER, AUTH_VERIFIED, ERR_NONE, ERR_NONE, ERR_NONE, 1},
        {AUTH_UNKNOWN_USER, AUTH_UNKNOWN_USER, ERR_NONE, ERR_NONE, ERR_CREDENTIALS, 1},
        {AUTH_UNKNOWN_USER, AUTH_REFUSED, ERR_NONE, ERR_ADMIN, ERR_ADMIN, 1},
        {AUTH_FAILED, AUTH_VERIFIED, ERR_UNAVAILABLE, ERR_NONE, ERR_NONE, 1},
        {AUTH_FAILED, AUTH_REFUSED, ERR_UNAVAILABLE, ERR_CREDENTIALS, ERR_CREDENTIALS, 1},
        {AUTH_FAILED, AUTH_UNKNOWN_USER, ERR_UNAVAILABLE, ERR_NONE, ERR_UNAVAILABLE, 1},
        {AUTH_FAILED, AUTH_FAILED, ERR_UNAVAILABLE, ERR_INTERNAL, ERR_UNAVAILABLE, 1},
        {AUTH_UNKNOWN_USER, AUTH_FAILED, ERR_NONE, ERR_INTERNAL, ERR_INTERNAL, 1},
    };

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct fixture f;

        setup(
            &f,
            (struct fake){.verdict = cases[i].first, .kind = cases[i].first_kind, .at_once = true},
            (struct fake){
                .verdict = cases[i].second, .kind = cases[i].second_kind, .at_once = true});
        assert_int_equal(login_result(&f, "ann", "x"), cases[i].answer);
        assert_int_equal(fakes[1].asked, cases[i].second_asked);
        fixture_release(&f);
        assert_int_equal(fakes[0].closed + fakes[1].closed, 2);
    }
}

static void late_answer_is_told(void **state)
{
    struct fixture f;
    struct login login;

    (void)state;
    setup(&f, (struct fake){.verdict = AUTH_VERIFIED}, (struct fake){0});
    login_start(&f, &login, "ann", "x");
    fake_answer(&fakes[0], fakes[0].question);
    assert_int_equal(login.answer_count, 0);
    login_wait(&f, &login);
    assert_int_equal(login.err.kind, ERR_NONE);
    fixture_release(&f);
}

static void deadline_cancels_the_source(void **state)
{
    struct fixture f;

    (void)state;
    setup(&f, (struct fake){.verdict = AUTH_UNKNOWN_USER, .at_once = true}, (struct fake){0});
    f.conf.auth.timeout = 5;
    assert_int_equal(login_result(&f, "ann", "x"), ERR_UNAVAILABLE);
    assert_int_equal(fakes[0].cancelled, 0);
    assert_int_equal(fakes[1].cancelled, 1);
    fixture_release(&f);
}

static void no_answer_after_cancel(void **state)
{
    (void)state;
    for (unsigned step = 0; step < 3;
         step++) { /* while asked, with its answer on the way, at once */
        struct fixture f;
        struct login login;

        setup(&f, (struct fake){.verdict = AUTH_VERIFIED, .at_once = step == 2}, (struct fake){0});
        login_start(&f, &login, "ann", "x");
        if (step == 1)
            fake_answer(&fakes[0], fakes[0].question);
        login_cancel(&login);
        auth_cancel(&login.request);
        assert_int_equal(fakes[0].cancelled, step == 0);
        fixture_release(&f);
        assert_int_equal(login.answer_count, 0);
    }
}

static void setup_with_cache(struct fixture *f, struct fake only, struct conf_auth_cache settings)
{
    fakes[0] = only;
    fakes[0].at_once = true;
    fixture_init(f);
    settings.max_entries = 10;
    f->conf.auth_cache = settings;
    fixture_source(f, first_name);
    fixture_open(f);
}

static void cache_answers_in_the_place_of_sources(void **state)
{
    static const struct {
        struct fake first, later;
        enum err_kind answers[2];
        unsigned asked;
    } cases[] = {
        {{.verdict = AUTH_VERIFIED}, {.verdict = AUTH_UNKNOWN_USER}, {ERR_NONE, ERR_NONE}, 1},
        {{.verdict = AUTH_UNKNOWN_USER},
         {.verdict = AUTH_VERIFIED},
         {ERR_CREDENTIALS, ERR_CREDENTIALS},
         1},
        {{.verdict = AUTH_REFUSED, .kind = ERR_CREDENTIALS},
         {.verdict = AUTH_VERIFIED},
         {ERR_CREDENTIALS, ERR_CREDENTIALS},
         1},
        {{.verdict = AUTH_REFUSED, .kind = ERR_EXPIRED},
         {.verdict = AUTH_VERIFIED},
         {ERR_EXPIRED, ERR_NONE},
         2},
        {{.verdict = AUTH_FAILED, .kind = ERR_UNAVAILABLE},
         {.verdict = AUTH_VERIFIED},
         {ERR_UNAVAILABLE, ERR_NONE},
         2},
    };

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct fixture f;

        setup_with_cache(&f, cases[i].first,
                         (struct conf_auth_cache){.ttl = 60000, .negative_ttl = 60000});
        assert_int_equal(login_result(&f, "ann", "x"), cases[i].answers[0]);
        fakes[0].verdict = cases[i].later.verdict;
        assert_int_equal(login_result(&f, "ann", "x"), cases[i].answers[1]);
        assert_int_equal(fakes[0].asked, cases[i].asked);
        assert_int_equal(f.counters.auth_cache_misses, cases[i].asked);
        assert_int_equal(f.counters.auth_cache_hits + f.counters.auth_cache_negative,
                         2 - cases[i].asked);
        fixture_release(&f);
    }
}

static void stale_counts_only_while_nobody_answers(void **state)
{
    struct fixture f;

    (void)state;
    setup_with_cache(&f, (struct fake){.verdict = AUTH_VERIFIED},
                     (struct conf_auth_cache){.ttl = 1, .stale_while_down = 60000});
    assert_int_equal(login_result(&f, "ann", "x"), ERR_NONE);
    fakes[0].at_once = false; /* silent: the deadline comes */
    f.conf.auth.timeout = 5;
    uv_sleep(2); /* `ttl` shall be over */
    uv_update_time(&f.loop);
    assert_int_equal(login_result(&f, "ann", "x"), ERR_NONE);
    assert_int_equal(login_result(&f, "ann", "y"), ERR_UNAVAILABLE);
    f.conf.auth.timeout = 10000;
    fakes[0].at_once = true;
    fakes[0].verdict = AUTH_FAILED;
    fakes[0].kind = ERR_UNAVAILABLE;
    assert_int_equal(login_result(&f, "ann", "x"), ERR_NONE);
    assert_int_equal(f.counters.auth_cache_stale, 2);
    fakes[0].verdict = AUTH_REFUSED;
    fakes[0].kind = ERR_CREDENTIALS;
    assert_int_equal(login_result(&f, "ann", "x"), ERR_CREDENTIALS);
    fakes[0].verdict = AUTH_FAILED;
    fakes[0].kind = ERR_UNAVAILABLE;
    assert_int_equal(login_result(&f, "ann", "x"), ERR_UNAVAILABLE);
    fixture_release(&f);
}

static enum err_kind result_from(struct fixture *f, const char *host, const char *password)
{
    union address address;
    struct login login = {.request = {.user = "ann",
                                      .login_as = "",
                                      .secret = &login.password,
                                      .address = &address,
                                      .on_answer = login_answered,
                                      .owner = &login}};

    assert_true(address_of(host, 1, &address));
    assert_true(secret_set(&login.password, span_of(password)));
    auth_verify(f->auth, &login.request);
    login_wait(f, &login);
    return login.err.kind;
}

/* But a guesser's own address waits, or the quick OK would tell. */
static void guesses_wait_but_not_who_is_known_elsewhere(void **state)
{
    struct fixture f;

    (void)state;
    setup_with_cache(&f, (struct fake){.verdict = AUTH_VERIFIED},
                     (struct conf_auth_cache){.ttl = 60000, .negative_ttl = 60000});
    f.conf.throttle.free_failures = 0;
    f.conf.throttle.delay = f.conf.throttle.max_delay = 50;
    fixture_change_throttle(&f);
    assert_int_equal(login_result(&f, "ann", "right"), ERR_NONE);
    fakes[0].verdict = AUTH_UNKNOWN_USER;
    assert_int_equal(login_result(&f, "ann", "one"), ERR_CREDENTIALS);
    assert_int_equal(f.counters.throttle_delays, 0);

    uint64_t before = uv_hrtime();
    assert_int_equal(login_result(&f, "ann", "two"), ERR_CREDENTIALS);
    assert_true(uv_hrtime() - before >= 49 * 1000000);
    assert_int_equal(f.counters.throttle_delays, 1);
    assert_int_equal(result_from(&f, "192.0.2.7", "right"), ERR_NONE);
    assert_int_equal(f.counters.throttle_delays, 1);
    assert_int_equal(login_result(&f, "ann", "right"), ERR_NONE);
    assert_int_equal(login_result(&f, "ann", "two"), ERR_CREDENTIALS); /* out of the cache */
    assert_int_equal(f.counters.throttle_delays, 3);
    fixture_release(&f);
}

/* Nobody has decided, but the cache knows better; who is not in it is not counted. */
static void guesses_that_nobody_judges_count(void **state)
{
    static const unsigned delays[] = {0, 1, 2, 3};
    struct fixture f;

    (void)state;
    setup_with_cache(&f, (struct fake){.verdict = AUTH_VERIFIED},
                     (struct conf_auth_cache){.ttl = 60000});
    f.conf.throttle.free_failures = 0;
    f.conf.throttle.delay = f.conf.throttle.max_delay = 20;
    fixture_change_throttle(&f);
    assert_int_equal(login_result(&f, "ann", "right"), ERR_NONE);
    fakes[0].verdict = AUTH_FAILED;
    fakes[0].kind = ERR_UNAVAILABLE;
    for (unsigned i = 0; i < 4; i++) {
        char guess[8];
        struct login login;

        snprintf(guess, sizeof guess, "g%u", i);
        login_start(&f, &login, "ann", guess);
        if (i % 2 == 0) {
            login_cancel(&login);
        } else {
            login_wait(&f, &login);
            assert_int_equal(login.err.kind, ERR_UNAVAILABLE);
        }
        assert_int_equal(f.counters.throttle_delays, delays[i]);
    }
    fixture_release(&f);
}

static void too_many_at_once_are_refused(void **state)
{
    struct fixture f;
    struct login first, waits;

    (void)state;
    setup(&f, (struct fake){.verdict = AUTH_VERIFIED}, (struct fake){0});
    f.conf.throttle.max_parallel = 1;
    fixture_change_throttle(&f);
    login_start(&f, &first, "ann", "x");
    assert_int_equal(login_result(&f, "bob", "x"), ERR_LIMIT);
    assert_int_equal(f.counters.throttle_refusals, 1);
    login_cancel(&first);
    login_start(&f, &waits, "bob", "x"); /* its place is free again */
    fake_answer(&fakes[0], fakes[0].question);
    login_wait(&f, &waits);
    assert_int_equal(waits.err.kind, ERR_NONE);
    fixture_release(&f);
}

static void cancelled_while_it_waits(void **state)
{
    struct fixture f;
    struct login login;

    (void)state;
    setup(&f, (struct fake){.verdict = AUTH_UNKNOWN_USER, .at_once = true},
          (struct fake){.verdict = AUTH_UNKNOWN_USER, .at_once = true});
    f.conf.throttle.free_failures = 0;
    f.conf.throttle.max_delay = 60000;
    fixture_change_throttle(&f);
    assert_int_equal(login_result(&f, "ann", "one"), ERR_CREDENTIALS);
    login_start(&f, &login, "ann", "two");
    uv_run(&f.loop, UV_RUN_NOWAIT);
    assert_int_equal(login.answer_count, 0);
    login_cancel(&login);
    fixture_release(&f);
    assert_int_equal(login.answer_count, 0);
    assert_int_equal(fakes[0].asked, 1);
}

/* --- who is proven, and for whom --- */

static const struct person people[] = {
    {"ann", "a", ERR_NONE, {.backend_user = "ann@store", .shard = "blue"}},
    {"al", "a", ERR_NONE, {.user = "ann", .shard = "green"}}, /* another name of hers */
    {"bob", "b", ERR_NONE, {.user = NULL}},
    {"help", "h", ERR_NONE, {.backend_user = "help@store"}},
    {"boss", "h", ERR_NONE, {.user = "HELP"}},
    {"near", "n", ERR_NONE, {.network = "192.0.2.0/24"}}, /* login_address is 0.0.0.0 */
    {"here", "n", ERR_NONE, {.network = "0.0.0.0/32"}},
    {"off", "o", ERR_ADMIN, {.user = NULL}},
    {"old", "o", ERR_EXPIRED, {.user = NULL}},
    {"down", "d", ERR_UNAVAILABLE, {.user = NULL}},
    {"odd", "o", ERR_NONE, {.user = "not a name"}},
    {NULL, NULL, ERR_NONE, {.user = NULL}},
};

static char master_help[] = "Help", master_near[] = "near"; /* as users would write them */
static char *masters[] = {master_help, master_near};

static void setup_people(struct fixture *f, struct conf_auth_cache cache)
{
    setup_with_cache(f, (struct fake){.people = people}, cache);
    f->conf.username.lowercase = true;
    f->conf.auth.master_users = (struct conf_words){masters, 2};
}

static void login_as(struct fixture *f, struct login *login, const char *user, const char *password,
                     const char *target)
{
    login_start_as(f, login, user, password, target);
    login_wait(f, login);
}

static void who_logs_in_for_whom(void **state)
{
    static const struct {
        const char *user, *password, *login_as; /* a password of NULL: by certificate */
        enum err_kind answer;
        const char *as, *master, *backend_user, *shard;
        unsigned asked;
    } cases[] = {
        {"ann", "a", "", ERR_NONE, "ann", "", "ann@store", "blue", 1},
        {"al", "a", "", ERR_NONE, "ann", "", "", "green", 1},
        {"ann", NULL, "", ERR_NONE, "ann", "", "ann@store", "blue", 1},
        {"al", NULL, "", ERR_NONE, "ann", "", "", "green", 1},
        {"here", "n", "", ERR_NONE, "here", "", "", "", 1},
        /* for oneself */
        {"ann", "a", "ann", ERR_NONE, "ann", "", "ann@store", "blue", 1},
        {"al", "a", "ann", ERR_NONE, "ann", "", "", "green", 1},
        {"ann", "a", "al", ERR_NONE, "ann", "", "", "green", 2},
        {"boss", "h", "help", ERR_NONE, "help", "", "", "", 1},
        /* for another */
        {"help", "h", "ann", ERR_NONE, "ann", "help", "ann@store", "blue", 2},
        {"help", NULL, "ann", ERR_NONE, "ann", "help", "ann@store", "blue", 2},
        {"boss", "h", "ann", ERR_NONE, "ann", "help", "ann@store", "blue", 2},
        {"help", "h", "al", ERR_NONE, "ann", "help", "", "green", 2},
        {"help", "h", "bob", ERR_NONE, "bob", "help", "", "", 2},   /* and not at help's store */
        {"help", "h", "near", ERR_NONE, "near", "help", "", "", 2}, /* networks are the user's */
        /* who may not */
        {"ann", "a", "bob", ERR_AUTHORIZATION, "", "", "", "", 2},
        {"ann", NULL, "bob", ERR_AUTHORIZATION, "", "", "", "", 2},
        {"ann", "a", "nobody", ERR_AUTHORIZATION, "", "", "", "", 2},
        {"ann", "a", "off", ERR_AUTHORIZATION, "", "", "", "", 2}, /* and does not hear why */
        {"ann", "a", "odd", ERR_AUTHORIZATION, "", "", "", "", 2},
        {"ann", "a", "down", ERR_UNAVAILABLE, "", "", "", "", 2}, /* it may be another own name */
        {"ann", "a", "help", ERR_AUTHORIZATION, "", "", "", "", 2},
        /* who is nobody */
        {"ann", "b", "", ERR_CREDENTIALS, "", "", "", "", 1},
        {"help", "b", "ann", ERR_CREDENTIALS, "", "", "", "", 1},
        {"nobody", "a", "ann", ERR_CREDENTIALS, "", "", "", "", 1},
        {"nobody", NULL, "", ERR_CREDENTIALS, "", "", "", "", 1},
        {"near", "n", "", ERR_CREDENTIALS, "", "", "", "", 1},
        {"near", NULL, "", ERR_CREDENTIALS, "", "", "", "", 1},
        {"near", "n", "ann", ERR_CREDENTIALS, "", "", "", "", 1},
        {"off", NULL, "", ERR_ADMIN, "", "", "", "", 1},
        {"old", NULL, "", ERR_EXPIRED, "", "", "", "", 1},
        {"odd", "o", "", ERR_INTERNAL, "", "", "", "", 1},
        {"odd", "o", "ann", ERR_INTERNAL, "", "", "", "", 1},
        /* whom one cannot be */
        {"help", "h", "nobody", ERR_AUTHORIZATION, "", "", "", "", 2},
        {"help", "h", "off", ERR_ADMIN, "", "", "", "", 2},
        {"help", "h", "old", ERR_EXPIRED, "", "", "", "", 2},
        {"help", "h", "down", ERR_UNAVAILABLE, "", "", "", "", 2},
        {"help", "h", "odd", ERR_INTERNAL, "", "", "", "", 2},
    };

    (void)state;
    for (size_t i = 0; i < 2 * sizeof cases / sizeof cases[0]; i++) {
        size_t c = i / 2;
        struct fixture f;
        struct login login;

        /* By way of the cache the second answer is as the first. */
        setup_people(&f, (struct conf_auth_cache){.ttl = i % 2 == 0 ? 0 : 60000});
        for (unsigned times = 1; times <= 2; times++) {
            login_as(&f, &login, cases[c].user, cases[c].password, cases[c].login_as);
            if (login.err.kind != cases[c].answer)
                fail_msg("case %zu: %s", c, login.err.text);
            if (login.err.kind == ERR_NONE) {
                assert_string_equal(login.user, cases[c].as);
                assert_string_equal(login.master, cases[c].master);
                assert_string_equal(login.backend_user, cases[c].backend_user);
                assert_string_equal(login.shard, cases[c].shard);
            }
            if (times == 1 || i % 2 == 0)
                assert_int_equal(fakes[0].asked, times * cases[c].asked);
            else if (cases[c].answer == ERR_NONE) /* who is no master is looked up each time */
                assert_int_equal(fakes[0].asked, cases[c].asked + (cases[c].asked == 2 &&
                                                                   cases[c].master[0] == '\0'));
        }
        fixture_release(&f);
    }
}

static void without_masters_nobody_is_another(void **state)
{
    struct fixture f;
    struct login login;

    (void)state;
    setup_people(&f, (struct conf_auth_cache){0});
    f.conf.auth.master_users.count = 0;
    login_as(&f, &login, "help", "h", "ann");
    assert_int_equal(login.err.kind, ERR_AUTHORIZATION);
    login_as(&f, &login, "help", NULL, "help");
    assert_int_equal(login.err.kind, ERR_NONE);
    fixture_release(&f);
}

/* Who is refused for the address alone is told so out of the cache, too. */
static void networks_count_out_of_the_cache(void **state)
{
    struct fixture f;
    struct login login;

    (void)state;
    setup_people(&f, (struct conf_auth_cache){.ttl = 60000, .negative_ttl = 60000});
    for (unsigned times = 0; times < 2; times++) {
        assert_int_equal(login_result(&f, "near", "n"), ERR_CREDENTIALS);
        assert_int_equal(login_result(&f, "here", "n"), ERR_NONE);
        login_as(&f, &login, "near", NULL, "");
        assert_int_equal(login.err.kind, ERR_CREDENTIALS);
    }
    assert_int_equal(fakes[0].asked, 4); /* at the wrong place the source is asked again */
    assert_int_equal(f.counters.auth_cache_hits, 3);
    fixture_release(&f);
}

static void without_look_up_nobody_is_asked(void **state)
{
    struct fixture f;
    struct login login;

    (void)state;
    setup_people(&f, (struct conf_auth_cache){.ttl = 60000});
    f.conf.auth.look_up = false;
    login_as(&f, &login, "off", NULL, "");
    assert_int_equal(login.err.kind, ERR_NONE);
    assert_string_equal(login.user, "off");
    assert_string_equal(login.master, "");
    login_as(&f, &login, "help", NULL, "nobody");
    assert_int_equal(login.err.kind, ERR_NONE);
    assert_string_equal(login.user, "nobody");
    assert_string_equal(login.master, "help");
    login_as(&f, &login, "ann", NULL, "bob");
    assert_int_equal(login.err.kind, ERR_AUTHORIZATION);
    assert_int_equal(fakes[0].asked, 0);
    login_as(&f, &login, "help", "h", "nobody"); /* a password is always looked at */
    assert_int_equal(login.err.kind, ERR_NONE);
    assert_int_equal(login_result(&f, "nobody", "x"), ERR_CREDENTIALS);
    assert_int_equal(fakes[0].by_name, 0);
    fixture_release(&f);
}

/* What was known of the user counts while nobody can be asked, as a password does. */
static void a_name_may_be_stale_while_all_are_down(void **state)
{
    static const struct person all_down[] = {{"ann", "a", ERR_UNAVAILABLE, {.user = NULL}},
                                             {"bob", "b", ERR_UNAVAILABLE, {.user = NULL}},
                                             {"help", "h", ERR_UNAVAILABLE, {.user = NULL}},
                                             {NULL, NULL, ERR_NONE, {.user = NULL}}};
    static const struct person ann_moved[] = {{"ann", "a", ERR_NONE, {.shard = "green"}},
                                              {"help", "h", ERR_NONE, {.user = NULL}},
                                              {NULL, NULL, ERR_NONE, {.user = NULL}}};
    struct fixture f;
    struct login login;

    (void)state;
    setup_people(&f, (struct conf_auth_cache){.ttl = 1, .stale_while_down = 60000});
    login_as(&f, &login, "help", "h", "ann");
    assert_int_equal(login.err.kind, ERR_NONE);
    fakes[0].people = all_down;
    uv_sleep(2); /* `ttl` shall be over */
    uv_update_time(&f.loop);
    login_as(&f, &login, "help", "h", "ann");
    assert_int_equal(login.err.kind, ERR_NONE);
    assert_string_equal(login.backend_user, "ann@store");
    login_as(&f, &login, "help", "h", "bob");
    assert_int_equal(login.err.kind, ERR_UNAVAILABLE);
    login_as(&f, &login, "help", NULL, "ann"); /* by name alone help is not known */
    assert_int_equal(login.err.kind, ERR_UNAVAILABLE);
    fakes[0].people = ann_moved;
    login_as(&f, &login, "help", "h", "ann");
    assert_int_equal(login.err.kind, ERR_NONE);
    assert_string_equal(login.shard, "green");
    fixture_release(&f);
}

/* The password was right, whatever comes of it. */
static void what_a_master_does_is_no_guess(void **state)
{
    static const struct {
        const char *user, *password, *login_as;
        bool delayed; /* the next guess is */
    } cases[] = {
        {"help", "wrong", "ann", true}, {"ann", "a", "bob", false},
        {"help", "h", "nobody", false}, {"help", "h", "ann", false},
        {"near", "n", "", true},        {"help", "h", "down", true}, /* nobody has decided */
    };

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct fixture f;
        struct login login;

        setup_people(&f, (struct conf_auth_cache){0});
        f.conf.throttle.free_failures = 0;
        f.conf.throttle.forget = 1000000;
        f.conf.throttle.delay = f.conf.throttle.max_user_delay =
            1; /* of the user, not the address */
        fixture_change_throttle(&f);
        assert_int_equal(login_result(&f, cases[i].user, "guess"), ERR_CREDENTIALS);
        login_as(&f, &login, cases[i].user, cases[i].password, cases[i].login_as);
        assert_int_equal(f.counters.throttle_delays, 1);
        assert_int_equal(login_result(&f, cases[i].user, "another"), ERR_CREDENTIALS);
        if ((f.counters.throttle_delays == 2) != cases[i].delayed)
            fail_msg("case %zu", i);
        fixture_release(&f);
    }
}

static void a_certificate_is_no_guess(void **state)
{
    struct fixture f;
    struct login login;

    (void)state;
    setup_people(&f, (struct conf_auth_cache){0});
    f.conf.throttle.free_failures = 0;
    f.conf.throttle.max_parallel = 0;
    fixture_change_throttle(&f);
    for (unsigned times = 0; times < 3; times++) {
        login_as(&f, &login, "nobody", NULL, "");
        assert_int_equal(login.err.kind, ERR_CREDENTIALS);
        login_as(&f, &login, "ann", NULL, "");
        assert_int_equal(login.err.kind, ERR_NONE);
    }
    fixture_release(&f);
}

/* Both questions have one deadline. */
static void deadline_of_the_second_question(void **state)
{
    struct fixture f;
    struct login login;

    (void)state;
    setup_people(&f, (struct conf_auth_cache){0});
    f.conf.auth.timeout = 5;
    fakes[0].at_once = false;
    login_start_as(&f, &login, "help", "h", "ann");
    answer_of_people(people, fakes[0].question);
    login_wait(&f, &login);
    assert_int_equal(login.err.kind, ERR_UNAVAILABLE);
    assert_int_equal(fakes[0].asked, 2);
    assert_int_equal(fakes[0].cancelled, 1);
    fixture_release(&f);
}

/* Once for each turn of the loop that a login takes, the source being asked or having answered. */
static void cancelled_at_each_step(void **state)
{
    enum { STEPS = 6 };
    unsigned asked[STEPS];

    (void)state;
    for (unsigned step = 0; step < STEPS; step++) {
        struct fixture f;
        struct login login, next;

        setup_people(&f, (struct conf_auth_cache){0});
        f.conf.throttle.max_parallel = 1;
        fixture_change_throttle(&f);
        fakes[0].at_once = false;
        login_start_as(&f, &login, "help", "h", "ann");
        for (unsigned i = 0; i < step; i++) {
            struct auth_question *question = fakes[0].question;

            fakes[0].question = NULL;
            if (question != NULL)
                answer_of_people(people, question);
            else
                uv_run(&f.loop, UV_RUN_NOWAIT);
        }
        asked[step] = fakes[0].asked;
        if (login.answer_count == 0) {
            login_cancel(&login);
            login_cancel(&login);
            memset(&login.request, 0xff, sizeof login.request); /* nobody may look at it now */
            assert_int_equal(fakes[0].cancelled, step % 2 == 0 && step < 4);
        }
        fakes[0].at_once = true;
        login_as(&f, &next, "bob", "b", ""); /* its place is free */
        assert_int_equal(next.err.kind, ERR_NONE);
        assert_int_equal(login.answer_count, step == STEPS - 1);
        fixture_release(&f);
    }
    assert_int_equal(asked[1], 1);
    assert_int_equal(asked[2], 2);
    assert_int_equal(asked[STEPS - 1], 2);
}

/* Nobody has looked at it: a token is no proof yet. */
/* --- tokens: the verifier is one of ours --- */

struct token_verifier {
    struct token_request *request;
};

static struct token_verifier verifier;

struct token_verifier *token_open(const struct env *env, struct err *err)
{
    (void)env;
    (void)err;
    return &verifier;
}

void token_verify(struct token_verifier *all, struct token_request *request)
{
    request->verifier = all;
    all->request = request;
}

void token_cancel(struct token_request *request)
{
    if (request->verifier != NULL)
        verifier.request = NULL;
    request->verifier = NULL;
}

void token_close(struct token_verifier **all)
{
    *all = NULL;
}

/* The token is one of this user; with NULL it is none. */
static void token_is_of(const char *user)
{
    struct token_request *request = verifier.request;
    struct token_identity identity = {.user = ""};
    struct err err = {0};

    assert_non_null(request);
    if (user == NULL)
        err_set(&err, ERR_CREDENTIALS, "no good");
    else
        snprintf(identity.user, sizeof identity.user, "%s", user);
    token_cancel(request);
    request->on_answer(request, &identity, &err);
}

static void start_with_token(struct fixture *f, struct login *login, const char *as)
{
    setup_people(f, (struct conf_auth_cache){0});
    auth_close(&f->auth);
    f->conf.oauth.keys = name_letters; /* some */
    f->auth = auth_open(&f->env, f->throttle, &f->open_err);
    *login = (struct login){.request = {.proof = AUTH_BY_TOKEN,
                                        .user = "",
                                        .login_as = as,
                                        .secret = &login->password,
                                        .address = &login_address,
                                        .on_answer = login_answered,
                                        .owner = login}};
    assert_true(secret_set(&login->password, span_of("to.ken")));
    auth_verify(f->auth, &login->request);
    assert_int_equal(login->answer_count, 0);
}

static void a_token_tells_who_it_is(void **state)
{
    static const struct {
        const char *claim, *login_as;
        enum err_kind answer;
        const char *as, *master;
    } cases[] = {
        {"ann", "", ERR_NONE, "ann", ""},
        {"Ann", "", ERR_NONE, "ann", ""},
        {"al", "", ERR_NONE, "ann", ""},
        {"ann", "ann", ERR_NONE, "ann", ""},
        {"ann", "al", ERR_NONE, "ann", ""}, /* another name of its own */
        {"al", "al", ERR_NONE, "ann", ""},
        {"help", "ann", ERR_NONE, "ann", "help"},
        {"ann", "bob", ERR_AUTHORIZATION, "", ""},
        {"nobody", "", ERR_CREDENTIALS, "nobody", ""}, /* for the log */
        {"near", "", ERR_CREDENTIALS, "near", ""},
        {"off", "", ERR_ADMIN, "off", ""},
        {"no such name", "", ERR_CREDENTIALS, "", ""},
        {NULL, "", ERR_CREDENTIALS, "", ""},
        {NULL, "ann", ERR_CREDENTIALS, "", ""},
    };

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct fixture f;
        struct login login;

        start_with_token(&f, &login, cases[i].login_as);
        token_is_of(cases[i].claim);
        login_wait(&f, &login);
        if (login.err.kind != cases[i].answer)
            fail_msg("case %zu: %s", i, login.err.text);
        if (cases[i].answer != ERR_AUTHORIZATION) {
            assert_string_equal(login.user, cases[i].as);
            assert_string_equal(login.master, cases[i].master);
        }
        fixture_release(&f);
    }
}

static void a_token_that_nobody_judges(void **state)
{
    struct fixture f;
    struct login login;

    (void)state;
    start_with_token(&f, &login, "");
    login_cancel(&login);
    assert_null(verifier.request);
    fixture_release(&f);

    start_with_token(&f, &login, "");
    token_is_of("ann");
    login_cancel(&login);
    fixture_release(&f);

    start_with_token(&f, &login, "");
    login_cancel(&login);
    f.conf.auth.timeout = 1;
    assert_true(secret_set(&login.password, span_of("to.ken")));
    auth_verify(f.auth, &login.request);
    login_wait(&f, &login);
    assert_int_equal(login.err.kind, ERR_UNAVAILABLE);
    assert_null(verifier.request);
    fixture_release(&f);
}

static void open_refuses(void **state)
{
    struct fixture f;

    (void)state;
    memset(fakes, 0, sizeof fakes);
    fixture_init(&f);
    fixture_source(&f, first_name);
    fixture_source(&f, third_name);
    assert_null(auth_open(&f.env, NULL, &f.open_err));
    assert_int_equal(f.open_err.kind, ERR_CONFIG);
    assert_int_equal(fakes[0].closed, 1);
    f.source_names[1] = second_name;
    open_fails = true;
    assert_null(auth_open(&f.env, NULL, &f.open_err));
    assert_int_equal(fakes[0].closed, 2);
    open_fails = false;
    fixture_release(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(answers_follow_the_order),
        cmocka_unit_test(late_answer_is_told),
        cmocka_unit_test(deadline_cancels_the_source),
        cmocka_unit_test(no_answer_after_cancel),
        cmocka_unit_test(cache_answers_in_the_place_of_sources),
        cmocka_unit_test(stale_counts_only_while_nobody_answers),
        cmocka_unit_test(guesses_wait_but_not_who_is_known_elsewhere),
        cmocka_unit_test(guesses_that_nobody_judges_count),
        cmocka_unit_test(too_many_at_once_are_refused),
        cmocka_unit_test(cancelled_while_it_waits),
        cmocka_unit_test(who_logs_in_for_whom),
        cmocka_unit_test(without_masters_nobody_is_another),
        cmocka_unit_test(networks_count_out_of_the_cache),
        cmocka_unit_test(without_look_up_nobody_is_asked),
        cmocka_unit_test(a_name_may_be_stale_while_all_are_down),
        cmocka_unit_test(what_a_master_does_is_no_guess),
        cmocka_unit_test(a_certificate_is_no_guess),
        cmocka_unit_test(deadline_of_the_second_question),
        cmocka_unit_test(cancelled_at_each_step),
        cmocka_unit_test(a_token_tells_who_it_is),
        cmocka_unit_test(a_token_that_nobody_judges),
        cmocka_unit_test(open_refuses),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
