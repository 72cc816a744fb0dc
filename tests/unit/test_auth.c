/* The chain, with two sources of our own in the place of passwd and ldap. */
#include "tests/unit/auth_fixture.h"

struct fake {
    enum auth_verdict verdict;
    enum err_kind kind;
    bool at_once, silent;
    unsigned asked, cancelled, closed;
    struct auth_question *question;
};

static struct fake fakes[2];
static bool open_fails;

static void fake_answer(struct fake *fake, struct auth_question *question)
{
    struct err err = {0};

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

const struct auth_source auth_source_passwd = {"passwd", first_open, fake_verify, fake_cancel,
                                               fake_close};
const struct auth_source auth_source_ldap = {"ldap", second_open, fake_verify, fake_cancel,
                                             fake_close};

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

static void guesses_wait_but_not_who_is_known(void **state)
{
    struct fixture f;

    (void)state;
    setup_with_cache(&f, (struct fake){.verdict = AUTH_VERIFIED},
                     (struct conf_auth_cache){.ttl = 60000, .negative_ttl = 60000});
    f.conf.throttle.free_failures = 0;
    f.conf.throttle.delay = f.conf.throttle.max_delay = 50;
    assert_int_equal(login_result(&f, "ann", "right"), ERR_NONE);
    fakes[0].verdict = AUTH_UNKNOWN_USER;
    assert_int_equal(login_result(&f, "ann", "one"), ERR_CREDENTIALS);
    assert_int_equal(f.counters.throttle_delays, 0);

    uint64_t before = uv_hrtime();
    assert_int_equal(login_result(&f, "ann", "two"), ERR_CREDENTIALS);
    assert_true(uv_hrtime() - before >= 49 * 1000000);
    assert_int_equal(f.counters.throttle_delays, 1);
    assert_int_equal(login_result(&f, "ann", "right"), ERR_NONE);
    assert_int_equal(login_result(&f, "ann", "two"), ERR_CREDENTIALS); /* out of the cache */
    assert_int_equal(f.counters.throttle_delays, 2);
    fixture_release(&f);
}

static void too_many_at_once_are_refused(void **state)
{
    struct fixture f;
    struct login first, waits;

    (void)state;
    setup(&f, (struct fake){.verdict = AUTH_VERIFIED}, (struct fake){0});
    f.conf.throttle.max_parallel = 1;
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
    assert_int_equal(login_result(&f, "ann", "one"), ERR_CREDENTIALS);
    login_start(&f, &login, "ann", "two");
    uv_run(&f.loop, UV_RUN_NOWAIT);
    assert_int_equal(login.answer_count, 0);
    login_cancel(&login);
    fixture_release(&f);
    assert_int_equal(login.answer_count, 0);
    assert_int_equal(fakes[0].asked, 1);
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
        cmocka_unit_test(guesses_wait_but_not_who_is_known),
        cmocka_unit_test(too_many_at_once_are_refused),
        cmocka_unit_test(cancelled_while_it_waits),
        cmocka_unit_test(open_refuses),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
