/* Where keys come from, and that logins do not notice when they change or cannot be had. */
#include "tests/unit/token_fixture.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>

static char folder[] = "/tmp/test_jwks.XXXXXX";
static char path[64], new_path[64];

static int make_folder(void **state)
{
    if (mkdtemp(folder) == NULL)
        return -1;
    snprintf(path, sizeof path, "%s/keys", folder);
    snprintf(new_path, sizeof new_path, "%s/keys.new", folder);
    return issuer_open(state);
}

static int remove_folder(void **state)
{
    char command[128];

    snprintf(command, sizeof command, "rm -r %s", folder);
    return issuer_close(state) + system(command); /* NOLINT: a path of ours */
}

static void write_file(const char *name, const char *text)
{
    FILE *file = fopen(name, "w");

    assert_non_null(file);
    fputs(text, file);
    assert_int_equal(fclose(file), 0);
}

/* As one should: readers find the old file or the new one. */
static void replace_file(const char *text)
{
    write_file(new_path, text);
    assert_int_equal(rename(new_path, path), 0);
}

static const char *by(enum issuer_key_index key)
{
    return issue(key, good_claims());
}

static const char *keys_from(enum issuer_key_index first, enum issuer_key_index last)
{
    return issuer_set(first, last);
}

#define UNKNOWN(name) "token: signed (ES256) by an unknown key \"" name "\""

/* Shows the token again until it is good, as clients do; or until it is not. */
static void show_until(struct fixture *f, const char *token, bool good)
{
    char copy[2048];
    time_t deadline = time(NULL) + DEADLINE_SECONDS;

    snprintf(copy, sizeof copy, "%s", token);
    while ((*result(f, copy) == '\0') != good) {
        if (time(NULL) > deadline)
            fail_msg("the token is still %s", good ? "refused" : "good");
    }
}

static void time_has_passed(uv_timer_t *timer)
{
    uv_close((uv_handle_t *)timer, NULL);
}

static void pass_time(struct fixture *f, uint64_t ms)
{
    uv_timer_t timer;

    uv_timer_init(&f->loop, &timer);
    uv_timer_start(&timer, time_has_passed, ms, 0);
    while (!uv_is_closing((uv_handle_t *)&timer))
        uv_run(&f->loop, UV_RUN_ONCE);
    uv_run(&f->loop, UV_RUN_NOWAIT);
}

/* --- files --- */

static void no_keys_no_start(void **state)
{
    static const struct {
        const char *text, *error;
    } cases[] = {
        {NULL, ": No such file or directory"},
        {"", ": this is no JSON object with an array \"keys\""},
        {"{\"keys\":[]}", ": none of 0 keys can verify signatures"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct fixture f;
        struct err err = {0};

        if (cases[i].text != NULL)
            write_file(path, cases[i].text);
        fixture_init(&f, path);
        assert_null(token_open(&f.env, &err));
        assert_int_equal(err.kind, ERR_CONFIG);
        assert_memory_equal(err.text, path, strlen(path));
        assert_string_equal(err.text + strlen(path), cases[i].error);
        fixture_release(&f);
    }
}

static void files_that_cannot_be_read(void **state)
{
    struct fixture f;
    struct err err = {0};
    FILE *file;

    (void)state;
    fixture_init(&f, folder);
    assert_null(token_open(&f.env, &err));
    assert_non_null(strstr(err.text, "Is a directory"));

    unlink(path);
    assert_int_equal(mkfifo(path, 0600), 0);
    f.conf.oauth.keys = path;
    assert_null(token_open(&f.env, &err)); /* and does not wait for a writer */
    unlink(path);

    file = fopen(path, "w");
    assert_non_null(file);
    for (size_t i = 0; i < 1 << 21; i++)
        fputc(' ', file);
    fclose(file);
    assert_null(token_open(&f.env, &err));
    assert_non_null(strstr(err.text, "File too large"));
    unlink(path);
    fixture_release(&f);
}

static void a_file_is_replaced(void **state)
{
    struct fixture f;

    (void)state;
    replace_file(keys_from(P256_KEY, P256_KEY));
    fixture_init(&f, path);
    fixture_open(&f);
    assert_string_equal(result(&f, by(P256_KEY)), "");
    assert_string_equal(result(&f, by(NEW_KEY)), UNKNOWN("new"));
    replace_file(keys_from(NEW_KEY, NEW_KEY));
    assert_string_equal(result(&f, by(NEW_KEY)), ""); /* at once */
    assert_string_equal(result(&f, by(P256_KEY)), UNKNOWN("ec"));
    assert_int_equal(f.counters.token_key_loads, 2);
    fixture_release(&f);
}

/* A key that is taken out is soon not good any more, though nobody shows a token by another one. */
static void a_key_is_taken_out(void **state)
{
    struct fixture f;

    (void)state;
    replace_file(keys_from(P256_KEY, NEW_KEY));
    fixture_init(&f, path);
    fixture_open(&f);
    assert_string_equal(result(&f, by(P256_KEY)), "");
    write_file(path, keys_from(NEW_KEY, NEW_KEY));
    pass_time(&f, 1001); /* the file is looked at each second at most */
    assert_string_equal(result(&f, by(P256_KEY)), UNKNOWN("ec"));
    assert_string_equal(result(&f, by(NEW_KEY)), "");
    fixture_release(&f);
}

static void a_broken_file_costs_no_keys(void **state)
{
    struct fixture f;
    uint64_t failures;

    (void)state;
    replace_file(keys_from(P256_KEY, P256_KEY));
    fixture_init(&f, path);
    fixture_open(&f);
    replace_file("{\"keys\":[{");
    assert_non_null(strstr(result(&f, by(NEW_KEY)), "no JSON object"));
    assert_int_equal(f.counters.token_key_failures, 1);
    assert_string_equal(result(&f, by(P256_KEY)), "");
    unlink(path);
    assert_non_null(strstr(result(&f, by(NEW_KEY)), "No such file"));
    assert_int_equal(f.counters.tokens_undecided, 2);
    assert_string_equal(result(&f, by(P256_KEY)), "");
    assert_int_equal(mknod(path, S_IFSOCK | 0600, 0), 0); /* which cannot be opened */
    failures = f.counters.token_key_failures;
    for (size_t i = 0; i < 3; i++)
        assert_non_null(strstr(result(&f, by(NEW_KEY)), "No such device"));
    assert_true(f.counters.token_key_failures < failures + 3); /* it has not changed since */
    replace_file(keys_from(NEW_KEY, NEW_KEY));
    assert_string_equal(result(&f, by(NEW_KEY)), "");
    fixture_release(&f);
}

/* --- a server --- */

static void keys_from_a_server(void **state)
{
    struct server server;
    struct fixture f;

    (void)state;
    server_init(&server);
    server_say(&server, "200 OK", keys_from(RSA_KEY, P256_KEY));
    server_start(&server);
    fixture_init(&f, server.url);
    f.conf.oauth.refresh = 200; /* also the pause between two loads that tokens ask for */
    fixture_open(&f);
    assert_string_equal(result(&f, by(P256_KEY)), ""); /* waits for the first load */

    server_say(&server, "200 OK", keys_from(P256_KEY, NEW_KEY));
    assert_string_equal(result(&f, by(NEW_KEY)), "");
    assert_string_equal(result(&f, by(P256_KEY)), "");
    assert_string_equal(result(&f, by(RSA_KEY)), "token: signed (RS256) by an unknown key \"rsa\"");

    server_say(&server, "200 OK", keys_from(NEW_KEY, NEW_KEY));
    show_until(&f, by(P256_KEY), false); /* by and by, without an unknown key */
    fixture_release(&f);
    server_stop(&server);
}

/* A token whose key the set does not name either way may be by a new key, too. */
static void roll_over_without_names(void **state)
{
    struct server server;
    struct fixture f;
    json_t *set = json_pack("{s[O]}", "keys", issuer[NEW_KEY].public);
    char *text;

    (void)state;
    json_object_del(json_array_get(json_object_get(set, "keys"), 0), "kid");
    text = json_dumps(set, 0);
    server_init(&server);
    server_say(&server, "200 OK", keys_from(P256_KEY, P256_KEY));
    server_start(&server);
    fixture_init(&f, server.url);
    f.conf.oauth.refresh = 1000;
    fixture_open(&f);
    assert_string_equal(
        result(&f, issue_as(&issuer[P256_KEY], R_JWA_ALG_ES256, "{}", good_claims())), "");
    server_say(&server, "200 OK", text);
    assert_string_equal(
        result(&f, issue_as(&issuer[NEW_KEY], R_JWA_ALG_ES256, "{}", good_claims())), "");
    assert_string_equal(result(&f, by(NEW_KEY)), ""); /* it has a name, the key has none */
    assert_string_equal(
        result(&f, issue_as(&issuer[P256_KEY], R_JWA_ALG_ES256, "{}", good_claims())),
        "token: not signed (ES256) by any key");
    fixture_release(&f);
    server_stop(&server);
    free(text);
    json_object_set_new(issuer[NEW_KEY].public, "kid", json_string("new"));
    json_decref(set);
}

/* However many tokens name keys that do not exist, the issuer hears little of it. */
static void many_unknown_keys_few_loads(void **state)
{
    enum { MANY = 200 };
    static struct showing showings[MANY];
    static char tokens[MANY][1024];
    struct server server;
    struct fixture f;
    uint64_t begun_ns;

    (void)state;
    for (size_t i = 0; i < MANY; i++) {
        char header[64];

        snprintf(header, sizeof header, "{\"kid\":\"k%zu\"}", i);
        snprintf(tokens[i], sizeof tokens[i], "%s",
                 issue_as(&issuer[NEW_KEY], R_JWA_ALG_ES256, header, good_claims()));
    }
    server_init(&server);
    server_say(&server, "200 OK", keys_from(P256_KEY, P256_KEY));
    server_start(&server);
    fixture_init(&f, server.url);
    f.conf.oauth.refresh = 1000; /* is also the pause, here */
    begun_ns = uv_hrtime();
    fixture_open(&f);
    assert_string_equal(result(&f, by(P256_KEY)), "");
    for (size_t i = 0; i < MANY; i++)
        show_text(&f, &showings[i], tokens[i]);
    assert_string_equal(result(&f, by(P256_KEY)), ""); /* which does not wait for them */
    for (size_t i = 0; i < MANY; i++) {
        showing_wait(&f, &showings[i]);
        assert_int_equal(showings[i].err.kind, ERR_CREDENTIALS);
    }
    assert_true(server_count(&server) <= 1 + (uv_hrtime() - begun_ns) / 1000000000);
    fixture_release(&f);
    server_stop(&server);
}

/* What is no good whatever its key may be is no reason to ask the issuer. */
static void bad_claims_load_nothing(void **state)
{
    struct server server;
    struct fixture f;
    json_t *claims = good_claims();

    (void)state;
    server_init(&server);
    server_say(&server, "200 OK", keys_from(P256_KEY, P256_KEY));
    server_start(&server);
    fixture_init(&f, server.url);
    f.conf.oauth.refresh = 3600000;
    fixture_open(&f);
    assert_string_equal(result(&f, by(P256_KEY)), "");
    json_object_set_new(claims, "iss", json_string("https://other.example"));
    assert_string_equal(result(&f, issue(NEW_KEY, claims)),
                        "token: by another issuer, \"https://other.example\"");
    assert_string_equal(result(&f, issue(FOREIGN_KEY, good_claims())),
                        "token: not signed (ES256) by its key \"ec\"");
    assert_int_equal(server_count(&server), 1);
    fixture_release(&f);
    server_stop(&server);
}

static void the_server_comes_later(void **state)
{
    struct server server;
    struct fixture f;
    struct showing again;

    (void)state;
    server_init(&server);
    server_say(&server, "200 OK", keys_from(P256_KEY, P256_KEY));
    fixture_init(&f, server.url);
    fixture_open(&f);
    assert_non_null(strstr(result(&f, by(P256_KEY)), "onnect")); /* libcurl's words */
    show_text(&f, &again, by(P256_KEY)); /* does not wait for the next try */
    for (size_t i = 0; i < 5; i++)
        uv_run(&f.loop, UV_RUN_NOWAIT);
    assert_int_equal(again.answer_count, 1);
    assert_int_equal(f.counters.tokens_undecided, 2);
    server_start(&server);
    while (f.counters.token_key_loads == 0) /* with nobody asking for it */
        uv_run(&f.loop, UV_RUN_ONCE);
    assert_string_equal(result(&f, by(P256_KEY)), "");
    fixture_release(&f);
    server_stop(&server);
}

/* Whatever comes instead of keys, the old ones stay; and the log says what it was. */
static void answers_without_keys(void **state)
{
    static const struct {
        const char *status, *body, *error;
    } cases[] = {
        {"404 Not Found", "{\"keys\":[]}", "status 404"},
        {"302 Found\r\nLocation: https://elsewhere.example/", "", "status 302"},
        {"204 No Content", "", "status 204"},
        {"200 OK", "<html>", "no JSON object"},
        {"200 OK\r\nContent-Length: 100", "{}", "bytes"},
        {"200 OK", "{\"keys\":[{\"kty\":\"oct\",\"k\":\"AAAA\"}]}", "none of 1 keys"},
    };
    struct server server;
    struct fixture f;
    char *large = malloc((1 << 21) + 1);

    (void)state;
    server_init(&server);
    server_say(&server, "200 OK", keys_from(P256_KEY, P256_KEY));
    server_start(&server);
    fixture_init(&f, server.url);
    f.conf.oauth.refresh = 1; /* for each token that asks */
    fixture_open(&f);
    assert_string_equal(result(&f, by(P256_KEY)), "");
    for (size_t i = 0; i <= sizeof cases / sizeof *cases; i++) {
        const char *error = "too long";
        unsigned before = server_count(&server);

        memset(large, ' ', 1 << 21);
        large[1 << 21] = '\0';
        if (i < sizeof cases / sizeof *cases) {
            server_say(&server, cases[i].status, cases[i].body);
            error = cases[i].error;
        } else {
            server_say(&server, "200 OK", large);
        }
        const char *found = result(&f, by(NEW_KEY));
        while (server_count(&server) == before || strstr(found, error) == NULL) {
            if (server_count(&server) > before + 50)
                fail_msg("found \"%s\", expected \"%s\"", found, error);
            found = result(&f, by(NEW_KEY));
        }
        assert_string_equal(result(&f, by(P256_KEY)), "");
    }
    server_say(&server, "200 OK", keys_from(NEW_KEY, NEW_KEY));
    show_until(&f, by(NEW_KEY), true);
    free(large);
    fixture_release(&f);
    server_stop(&server);
}

/* A server that says nothing: who does not need it does not wait, and an end does not, either. */
static void a_server_that_hangs(void **state)
{
    struct server server;
    struct fixture f;
    struct showing waiting, cancelled;

    (void)state;
    server_init(&server);
    server_say(&server, "200 OK", keys_from(P256_KEY, P256_KEY));
    server_start(&server);
    fixture_init(&f, server.url);
    f.conf.oauth.refresh = 100;
    fixture_open(&f);
    assert_string_equal(result(&f, by(P256_KEY)), "");
    server_hang(&server);
    show_text(&f, &waiting, by(NEW_KEY));
    show_text(&f, &cancelled, by(NEW_KEY));
    assert_string_equal(result(&f, by(P256_KEY)), "");
    showing_cancel(&cancelled);
    showing_wait(&f, &waiting);
    assert_int_equal(waiting.err.kind, ERR_UNAVAILABLE);
    assert_int_equal(cancelled.answer_count, 0);
    fixture_release(&f);
    server_stop(&server);
}

/* At each stage of a load everything is cancelled and closed. */
static void closed_at_any_time(void **state)
{
    struct server server;

    (void)state;
    server_init(&server);
    server_start(&server); /* and says nothing */
    for (size_t turns = 0; turns < 12; turns++) {
        struct fixture f;
        struct showing showings[3];
        unsigned count = server_count(&server);

        fixture_init(&f, server.url);
        fixture_open(&f);
        for (size_t i = 0; i < 3; i++)
            show_text(&f, &showings[i], by(i == 2 ? NEW_KEY : P256_KEY));
        while (turns > 5 && server_count(&server) == count) /* the load is under way */
            uv_run(&f.loop, UV_RUN_NOWAIT);
        for (size_t i = 0; i < turns % 6; i++)
            uv_run(&f.loop, UV_RUN_NOWAIT);
        for (size_t i = 0; i < 3; i++)
            showing_cancel(&showings[(i + turns) % 3]);
        fixture_release(&f);
        for (size_t i = 0; i < 3; i++)
            assert_int_equal(showings[i].answer_count, 0);
    }
    server_stop(&server);
}

/* --- TLS --- */

static void run(const char *command)
{
    char line[1024];

    snprintf(line, sizeof line, "cd %s && %s >openssl.log 2>&1", folder, command);
    assert_int_equal(system(line), 0); /* NOLINT: words of ours */
}

/* `openssl s_server` in our folder, on a port that it chooses. */
static pid_t start_tls_server(const char *certificate, int *port_out)
{
    int out[2];
    FILE *lines;
    char line[256];

    assert_int_equal(pipe2(out, O_CLOEXEC), 0);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        dup2(out[1], STDOUT_FILENO);
        dup2(open("/dev/null", O_WRONLY | O_CLOEXEC), STDERR_FILENO);
        if (chdir(folder) == 0)
            execlp("openssl", "openssl", "s_server", "-accept", "127.0.0.1:0", "-WWW", "-cert",
                   certificate, "-key", "key.pem", (char *)NULL);
        _exit(127);
    }
    close(out[1]);
    lines = fdopen(out[0], "r");
    while (fgets(line, sizeof line, lines) != NULL && strncmp(line, "ACCEPT", 6) != 0)
        ;
    assert_int_equal(sscanf(line, "ACCEPT 127.0.0.1:%d", port_out), 1); /* NOLINT */
    fclose(lines);
    return child;
}

static void stop_tls_server(pid_t child)
{
    kill(child, SIGKILL);
    assert_int_equal(waitpid(child, NULL, 0), child);
}

/* Only a certificate that the configured authority has made for this name will do. */
static void certificates_are_verified(void **state)
{
    static const struct {
        const char *ca, *certificate;
        bool good;
    } cases[] = {
        {"good.pem", "good.pem", true},
        {"other.pem", "good.pem", false},
        {"", "good.pem", false}, /* the system's authorities */
        {"wrong_name.pem", "wrong_name.pem", false},
        {"nothing.pem", "good.pem", false},
    };
    static const char make[] =
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=x "
        "-keyout key.pem -out other.pem && "
        "openssl req -x509 -key key.pem -days 2 -subj /CN=good -addext "
        "subjectAltName=IP:127.0.0.1 -out good.pem && "
        "openssl req -x509 -key key.pem -days 2 -subj /CN=wrong -addext "
        "subjectAltName=DNS:other.example -out wrong_name.pem";

    (void)state;
    run(make);
    write_file(path, keys_from(P256_KEY, P256_KEY));
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct fixture f;
        int port;
        pid_t child = start_tls_server(cases[i].certificate, &port);
        char url[64], ca[64] = "";

        snprintf(url, sizeof url, "https://127.0.0.1:%d/keys", port);
        if (cases[i].ca[0] != '\0')
            snprintf(ca, sizeof ca, "%s/%s", folder, cases[i].ca);
        fixture_init(&f, url);
        f.conf.oauth.keys_ca_file = ca;
        fixture_open(&f);
        const char *found = result(&f, by(P256_KEY));
        if ((*found == '\0') != cases[i].good)
            fail_msg("%s, %s: \"%s\"", cases[i].ca, cases[i].certificate, found);
        assert_int_equal(f.counters.tokens_undecided, cases[i].good ? 0 : 1);
        fixture_release(&f);
        stop_tls_server(child);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(no_keys_no_start),
        cmocka_unit_test(files_that_cannot_be_read),
        cmocka_unit_test(a_file_is_replaced),
        cmocka_unit_test(a_key_is_taken_out),
        cmocka_unit_test(a_broken_file_costs_no_keys),
        cmocka_unit_test(keys_from_a_server),
        cmocka_unit_test(roll_over_without_names),
        cmocka_unit_test(many_unknown_keys_few_loads),
        cmocka_unit_test(bad_claims_load_nothing),
        cmocka_unit_test(the_server_comes_later),
        cmocka_unit_test(answers_without_keys),
        cmocka_unit_test(a_server_that_hangs),
        cmocka_unit_test(closed_at_any_time),
        cmocka_unit_test(certificates_are_verified),
    };

    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
