/*
 * What becomes of a user's sessions when it is not they who want it: held, kicked, let go, cut off.
 * The real modules of one worker, on this thread, between clients and a store whose words are
 * written out here; both are sockets.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "proxy/base/log.h"
#include "proxy/session/relaying.h"
#include "proxy/session/session.h"
#include "proxy/session/traces.h"
#include "proxy/session/users.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define CAPABILITIES "[CAPABILITY IMAP4rev1 SASL-IR IDLE UNSELECT AUTH=PLAIN]"
#define MOVED        "* BYE [UNAVAILABLE] Your mailbox is being moved, please connect again.\r\n"
#define KICKED       "* BYE An operator has ended this session.\r\n"
#define CUT_OFF                                                                                    \
    "* BYE [UNAVAILABLE] The server has lost sight of the others, please connect again.\r\n"
#define LET_GO                                                                                     \
    "* BYE [UNAVAILABLE] Your mail store will be away for a while, please connect again.\r\n"

enum { PATIENCE_MS = 20000, LONG_MS = 600000, SHORT_MS = 50, CLIENTS = 3, TURNS = 20 };

static const char configuration[] =
    "listener l { address = {\"127.0.0.1:1\"} tls = none plaintext_login = yes }\n"
    "pool { warm = 0 check_after = 28m park_time = 28m }\n"
    "passwd { file = \"passwd\" }\n"
    "route { file = \"routes\" }\n"
    "shard blue { address = {\"127.0.0.1:%d\"} tls = none client_address = none connect_timeout = "
    "2m }\n"
    "shard red { address = {\"127.0.0.1:%d\"} tls = none client_address = none }\n";
static const char passwords[] = "ann:%s\nben:%s\n";
static const char routes[] = "ann blue\nben red\n";

/* One end of a connection: what has come, and what was expected, in order. */
struct line {
    int fd; /* -1: none */
    char in[65536];
    size_t len;
    bool ended;
};

static struct stage {
    uv_loop_t loop;
    struct turn turn;
    uv_timer_t alarm; /* so that waiting goes on without an event */
    struct conf *conf;
    struct conf_cutover *cutover; /* of it */
    struct counters counters;
    const struct tls *tls;
    struct throttle *throttle;
    struct limits *limits;
    struct stores *stores;
    struct home home;
    int store_fd;
    struct line clients[CLIENTS], peers[CLIENTS];
    unsigned told_count;
    char told_user[32];
    uint64_t told_epoch;
    int64_t others; /* connections to stores that may be open when it is told */
    bool releases;  /* as soon as it is told */
    char folder[32];
} stage;

static struct home *home = &stage.home;

/* --- lines --- */

static void turn_once(void)
{
    uv_run(&stage.loop, UV_RUN_ONCE);
}

static void on_alarm(uv_timer_t *timer)
{
    (void)timer;
}

static void line_receive(struct line *line)
{
    ssize_t count = 0;

    while (line->len < sizeof line->in - 1 &&
           (count = recv(line->fd, line->in + line->len, sizeof line->in - 1 - line->len,
                         MSG_DONTWAIT)) >= 0) {
        if (count == 0) {
            line->ended = true;
            return;
        }
        line->len += (size_t)count;
        line->in[line->len] = '\0';
    }
    assert_true(count >= 0 || errno == EAGAIN); /* no reset, which would lose what was said */
}

static void consume(struct line *line, size_t len)
{
    memmove(line->in, line->in + len, line->len - len + 1);
    line->len -= len;
}

/* Waits for exactly this. */
static void hear(struct line *line, const char *text)
{
    size_t len = strlen(text);
    uint64_t end = uv_hrtime() + PATIENCE_MS * UINT64_C(1000000);

    while (line->len < len && !line->ended && uv_hrtime() < end) {
        turn_once();
        line_receive(line);
    }
    if (line->len < len || memcmp(line->in, text, len) != 0)
        fail_msg("wanted %s, got %s", text, line->in);
    consume(line, len);
}

/* Waits for this, and takes all up to the end of the line. */
static void hear_line(struct line *line, const char *start)
{
    uint64_t end = uv_hrtime() + PATIENCE_MS * UINT64_C(1000000);
    const char *line_end;

    hear(line, start);
    while ((line_end = memchr(line->in, '\n', line->len)) == NULL) {
        assert_true(!line->ended && uv_hrtime() < end);
        turn_once();
        line_receive(line);
    }
    consume(line, (size_t)(line_end - line->in) + 1);
}

/* Waits for the end, and nothing before it. */
static void hear_end(struct line *line)
{
    uint64_t end = uv_hrtime() + PATIENCE_MS * UINT64_C(1000000);

    while (!line->ended && line->len == 0 && uv_hrtime() < end) {
        turn_once();
        line_receive(line);
    }
    if (!line->ended || line->len > 0)
        fail_msg("wanted the end, got %s", line->in);
    close(line->fd);
    line->fd = -1;
}

static void say(struct line *line, const char *text)
{
    assert_int_equal(send(line->fd, text, strlen(text), MSG_NOSIGNAL), (ssize_t)strlen(text));
}

/* The loop goes on, and nothing comes. */
static void silence(struct line *line)
{
    for (int i = 0; i < TURNS; i++)
        turn_once();
    line_receive(line);
    assert_int_equal(line->len, 0);
    assert_false(line->ended);
}

static void hang_up(struct line *line)
{
    close(line->fd);
    line->fd = -1;
}

static void line_open(struct line *line, int fd)
{
    *line = (struct line){.fd = fd};
}

/* --- clients and stores --- */

static struct line *client_open(size_t number)
{
    struct line *client = &stage.clients[number];
    union address peer;
    int pair[2];

    assert_true(address_of("192.0.2.7", 4000, &peer));
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair), 0);
    line_open(client, pair[0]);
    assert_true(session_accept(home, pair[1], &peer, &stage.conf->listeners[0]));
    hear_line(client, "* OK [CAPABILITY ");
    return client;
}

/* The proxy has connected to the store, or will. */
static struct line *store_accept(size_t number)
{
    uint64_t end = uv_hrtime() + PATIENCE_MS * UINT64_C(1000000);
    int fd;

    while ((fd = accept4(stage.store_fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) < 0) {
        assert_true(uv_hrtime() < end);
        turn_once();
    }
    line_open(&stage.peers[number], fd);
    return &stage.peers[number];
}

static bool store_is_asked(void)
{
    for (int i = 0; i < TURNS; i++)
        turn_once();

    int fd = accept4(stage.store_fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);

    if (fd >= 0)
        close(fd);
    return fd >= 0;
}

static void client_login(struct line *client, const char *user)
{
    char command[64];

    snprintf(command, sizeof command, "in LOGIN %s secret\r\n", user);
    say(client, command);
}

static void store_greets(struct line *peer)
{
    say(peer, "* OK " CAPABILITIES " store\r\n");
}

static void store_hears_login(struct line *peer, const char *user)
{
    /* base64 of \0ann\0secret, and of \0ben\0secret */
    hear(peer, strcmp(user, "ann") == 0 ? "L AUTHENTICATE PLAIN AGFubgBzZWNyZXQ=\r\n"
                                        : "L AUTHENTICATE PLAIN AGJlbgBzZWNyZXQ=\r\n");
}

static void store_lets_in(struct line *peer, struct line *client)
{
    say(peer, "L OK " CAPABILITIES " in\r\n");
    hear_line(client, "in OK [CAPABILITY ");
}

/* A session that is relayed, at rest. */
static struct line *relayed(size_t number, const char *user)
{
    struct line *client = client_open(number), *peer;

    client_login(client, user);
    peer = store_accept(number);
    store_greets(peer);
    store_hears_login(peer, user);
    store_lets_in(peer, client);
    return client;
}

/* The client says it, and it has reached the store. */
static void passes(size_t number, const char *text)
{
    say(&stage.clients[number], text);
    hear(&stage.peers[number], text);
}

static void answers(size_t number, const char *text)
{
    say(&stage.peers[number], text);
    hear(&stage.clients[number], text);
}

/* Has logged out, and its connection is parked. */
static void parked(size_t number, const char *user)
{
    struct line *client = relayed(number, user);

    say(client, "x LOGOUT\r\n");
    hear(client, "* BYE Logging out\r\nx OK Logout completed.\r\n");
    hear_end(client);
    hear(&stage.peers[number], "P NOOP\r\n");
    say(&stage.peers[number], "P OK\r\n");
    while (atomic_load(&stage.counters.backends_parked) == 0)
        turn_once();
}

/* --- who is there --- */

struct look {
    char text[256];
};

static void add_to_look(void *owner, const struct users_session *session)
{
    struct look *look = owner;
    char address[ADDRESS_TEXT_MAX];
    size_t len = strlen(look->text);

    address_text(session->peer, address);
    assert_int_equal(strlen(session->id), 16);
    assert_true(session->since_seconds < PATIENCE_MS / 1000);
    snprintf(look->text + len, sizeof look->text - len, "%s %s %s %s %s %s;", session->user,
             session->master, session->shard, address, session->tls, session->phase);
}

static const char *who(void)
{
    static struct look look;

    look.text[0] = '\0';
    users_each(home, add_to_look, &look);
    return look.text;
}

/* Waits until the users are these; the newest session is the first. */
static void until(const char *wanted)
{
    uint64_t end = uv_hrtime() + PATIENCE_MS * UINT64_C(1000000);

    while (strcmp(who(), wanted) != 0 && uv_hrtime() < end)
        turn_once();
    assert_string_equal(who(), wanted);
}

#define ANN(phase) "ann  blue 192.0.2.7:4000 none " phase ";"
#define BEN(phase) "ben  red 192.0.2.7:4000 none " phase ";"
#define ANN_HELD   "ann   192.0.2.7:4000 none held;"

static void add_held(void *owner, const char *user, uint64_t epoch)
{
    struct look *look = owner;
    size_t len = strlen(look->text);

    snprintf(look->text + len, sizeof look->text - len, "%s %d;", user, (int)epoch);
}

static const char *held(void)
{
    static struct look look;

    look.text[0] = '\0';
    users_held_each(home, add_held, &look);
    return look.text;
}

static void on_held(struct home *at, const char *user, uint64_t epoch)
{
    assert_ptr_equal(at, home);
    assert_int_equal(atomic_load(&stage.counters.backends_open), stage.others);
    stage.told_count++;
    snprintf(stage.told_user, sizeof stage.told_user, "%s", user);
    stage.told_epoch = epoch;
    if (stage.releases)
        users_release(home, user);
}

static void untold(void)
{
    for (int i = 0; i < TURNS; i++)
        turn_once();
    assert_int_equal(stage.told_count, 0);
}

static void told(const char *user, uint64_t epoch)
{
    uint64_t end = uv_hrtime() + PATIENCE_MS * UINT64_C(1000000);

    while (stage.told_count == 0 && uv_hrtime() < end)
        turn_once();
    assert_int_equal(stage.told_count, 1);
    assert_string_equal(stage.told_user, user);
    assert_int_equal(stage.told_epoch, epoch);
    stage.told_count = 0;
    untold(); /* and not once more */
}

/* --- the worker --- */

static void on_session_gone(struct home *at)
{
    (void)at;
}

static struct home *home_of(struct home *at, const char *user)
{
    (void)user;
    return at;
}

static void write_file(const char *name, const char *text)
{
    char path[64];

    snprintf(path, sizeof path, "%s/%s", stage.folder, name);

    FILE *file = fopen(path, "w");

    assert_non_null(file);
    fchmod(fileno(file), 0600);
    assert_true(fputs(text, file) >= 0);
    assert_int_equal(fclose(file), 0);
}

static int listen_somewhere(int *port)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

    assert_int_equal(bind(fd, (struct sockaddr *)&address, sizeof address), 0);
    assert_int_equal(listen(fd, 16), 0);
    assert_int_equal(getsockname(fd, (struct sockaddr *)&address, &size), 0);
    *port = ntohs(address.sin_port);
    return fd;
}

static void open_conf(void)
{
    /* openssl passwd -5 -salt rounds=1000$salt secret */
    static const char hash[] = "$5$rounds=1000$salt$CCvcOM6b7TEJDPb37Aec/9UpOg4QhPNAxPpL9ZzjTB7";
    char text[1024], path[64];
    struct err err = {0};
    int port;

    snprintf(stage.folder, sizeof stage.folder, "/dev/shm/imapmux-users-XXXXXX");
    assert_non_null(mkdtemp(stage.folder));
    stage.store_fd = listen_somewhere(&port);
    snprintf(text, sizeof text, passwords, hash, hash);
    write_file("passwd", text);
    write_file("routes", routes);
    snprintf(text, sizeof text, configuration, port, port);
    write_file("proxy.conf", text);
    snprintf(path, sizeof path, "%s/proxy.conf", stage.folder);
    stage.conf = conf_open(path, &err);
    if (stage.conf == NULL)
        fail_msg("%s", err.text);
    stage.cutover = &stage.conf->cutover;
    stage.cutover->end_timeout = LONG_MS;
    stage.conf->session.linger_timeout = LONG_MS;
}

static void open_home(void)
{
    struct conf *conf = stage.conf;
    struct err err = {0};

    home->env = (struct env){
        .loop = &stage.loop, .turn = &stage.turn, .conf = conf, .counters = &stage.counters};
    home->phases = session_phases();
    home->tls = stage.tls = tls_open(conf, &err);
    stage.throttle = throttle_open(&conf->throttle, &err);
    stage.limits = limits_open(&conf->limits, &err);
    stage.stores = stores_open(conf, 1);
    home->scratch_size = RELAY_SCRATCH_MIN;
    home->scratch = malloc(home->scratch_size);
    home->shard_capabilities = calloc(conf->shard_count, sizeof(struct span));
    home->home_of = home_of;
    home->on_session_gone = on_session_gone;
    home->on_held = on_held;
    home->users = users_open(home);
    home->history = history_open();
    home->traces = traces_open(home);
    home->pool = pool_open(&home->env, stage.tls, stage.stores, 0);
    home->admission = admission_open(&home->env, stage.limits, NULL);
    home->auth = auth_open(&home->env, stage.throttle, &err);
    home->router = router_open(&home->env, &(struct router_view){0}, &err);
    if (home->auth == NULL || home->router == NULL || home->tls == NULL || home->pool == NULL ||
        home->users == NULL || home->admission == NULL ||
        !inbox_open(&home->inbox, &stage.loop, home))
        fail_msg("%s", err.text);
}

static int setup(void **state)
{
    (void)state;
    memset(&stage, 0, sizeof stage);
    for (int i = 0; i < CLIENTS; i++)
        stage.clients[i].fd = stage.peers[i].fd = -1;
    assert_int_equal(uv_loop_init(&stage.loop), 0);
    turn_init(&stage.turn, &stage.loop);
    uv_timer_init(&stage.loop, &stage.alarm);
    uv_timer_start(&stage.alarm, on_alarm, 5, 5);
    open_conf();
    open_home();
    return 0;
}

static void remove_folder(void)
{
    static const char *const names[] = {"passwd", "routes", "proxy.conf"};
    char path[64];

    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        snprintf(path, sizeof path, "%s/%s", stage.folder, names[i]);
        unlink(path);
    }
    rmdir(stage.folder);
}

static int teardown(void **state)
{
    (void)state;
    for (int i = 0; i < CLIENTS; i++) {
        if (stage.clients[i].fd >= 0)
            close(stage.clients[i].fd);
        if (stage.peers[i].fd >= 0)
            close(stage.peers[i].fd);
    }
    home->stopping = true;
    sessions_cut_off(home);
    users_close(&home->users);
    history_close(&home->history);
    traces_close(&home->traces);
    router_close(&home->router);
    auth_close(&home->auth);
    pool_close(&home->pool);
    admission_close(&home->admission);
    assert_null(inbox_close(&home->inbox));
    uv_close((uv_handle_t *)&stage.alarm, NULL);
    uv_run(&stage.loop, UV_RUN_DEFAULT);
    turn_release(&stage.turn);
    uv_run(&stage.loop, UV_RUN_DEFAULT);
    assert_int_equal(uv_loop_close(&stage.loop), 0);
    throttle_close(&stage.throttle);
    limits_close(&stage.limits);
    stores_close(&stage.stores);
    tls_release(&stage.tls);
    free(home->shard_capabilities);
    free(home->scratch);
    close(stage.store_fd);
    remove_folder();
    conf_close(&stage.conf);
    return 0;
}

/* --- held --- */

static void who_has_no_session_is_held_at_once(void **state)
{
    (void)state;
    assert_true(users_hold(home, "ann", 3));
    assert_int_equal(stage.told_count, 0); /* not inside the call */
    told("ann", 3);
    assert_string_equal(held(), "ann 3;");
    assert_true(users_hold(home, "ann", 3));
    assert_true(users_hold(home, "ann", 2));
    untold();
    assert_true(users_hold(home, "ann", 5));
    told("ann", 5);
    users_release(home, "ann");
    assert_string_equal(held(), "");
    users_release(home, "ann");
}

static void a_release_within_the_news(void **state)
{
    (void)state;
    stage.releases = true;
    assert_true(users_hold(home, "ann", 3));
    told("ann", 3);
    assert_string_equal(held(), "");
}

/* It has been released before the news could come. */
static void a_release_before_the_news(void **state)
{
    (void)state;
    assert_true(users_hold(home, "ann", 3));
    users_release(home, "ann");
    untold();
}

static void sessions_at_rest_end(void **state)
{
    struct line *client = relayed(0, "ann"), *idles = relayed(1, "ann"), *other = relayed(2, "ben");

    (void)state;
    passes(1, "i IDLE\r\n");
    answers(1, "+ idling\r\n");
    until(BEN("relay") ANN("relay") ANN("relay"));
    stage.others = 1;
    assert_true(users_hold(home, "ann", 1));
    hear(client, MOVED);
    hear(idles, MOVED);
    hear(&stage.peers[0], "P LOGOUT\r\n"); /* it was clean */
    hear_end(&stage.peers[0]);
    hear_end(&stage.peers[1]);
    told("ann", 1); /* though the clients have not closed */
    hear_end(client);
    hear_end(idles);
    silence(other);
    until(BEN("relay"));
}

/* A command is under way: all of it is answered first, however the store takes its time. */
static void a_literal_that_is_half_sent(void **state)
{
    struct line *client = relayed(0, "ann");

    (void)state;
    passes(0, "a APPEND INBOX {10}\r\n");
    answers(0, "+ go\r\n");
    passes(0, "01234");
    assert_true(users_hold(home, "ann", 1));
    silence(client);
    untold();
    passes(0, "56789\r\n");
    untold();
    answers(0, "a OK appended\r\n");
    hear(client, MOVED);
    hear_end(client);
    told("ann", 1);
    hear(&stage.peers[0], "P LOGOUT\r\n"); /* it is not parked */
}

/* What is asked is answered; what is asked from then on is not even begun. */
static void commands_one_behind_the_other(void **state)
{
    struct line *client = relayed(0, "ann");

    (void)state;
    passes(0, "a NOOP\r\nb NOOP\r\n");
    assert_true(users_hold(home, "ann", 1));
    say(client, "c NOOP\r\nd NO");
    silence(&stage.peers[0]);
    answers(0, "a OK\r\n");
    untold();
    answers(0, "b OK\r\n");
    hear(client, MOVED);
    told("ann", 1);
    hear_end(client);
}

/* The beginning of a command keeps nobody from leaving: the store has seen nothing of it. */
static void a_command_that_has_hardly_begun(void **state)
{
    struct line *client = relayed(0, "ann");

    (void)state;
    say(client, "a NO");
    silence(&stage.peers[0]);
    assert_true(users_hold(home, "ann", 1));
    hear(client, MOVED);
    told("ann", 1);
    hear_end(client);
}

static void who_finds_no_end_is_cut_off(void **state)
{
    struct line *client = relayed(0, "ann");

    (void)state;
    stage.cutover->end_timeout = SHORT_MS;
    passes(0, "a APPEND INBOX {10}\r\n");
    answers(0, "+ go\r\n");
    passes(0, "01234");
    assert_true(users_hold(home, "ann", 1));
    hear(client, MOVED); /* between two responses this can be said */
    hear_end(client);
    hear_end(&stage.peers[0]);
    told("ann", 1);
}

/* Within a response nothing of ours may stand. */
static void a_response_that_does_not_end(void **state)
{
    struct line *client = relayed(0, "ann");

    (void)state;
    stage.cutover->end_timeout = SHORT_MS;
    passes(0, "a FETCH 1 BODY[]\r\n");
    answers(0, "* 1 FETCH (BODY[] {10}\r\n01234");
    assert_true(users_hold(home, "ann", 1));
    hear_end(client);
    hear_end(&stage.peers[0]);
    told("ann", 1);
}

/* The client has closed its half, and waits for its answer. */
static void a_half_that_is_closed(void **state)
{
    struct line *client = relayed(0, "ann");

    (void)state;
    passes(0, "a NOOP\r\n");
    shutdown(client->fd, SHUT_WR);
    silence(client);
    assert_true(users_hold(home, "ann", 1));
    untold();
    answers(0, "a OK\r\n");
    hear_end(client);
    told("ann", 1);
}

static void find_session(void *owner, struct session *s)
{
    *(struct session **)owner = s;
}

static struct session *session_of(const char *user)
{
    struct session *s = NULL;

    users_each_of(home, user, find_session, &s);
    assert_non_null(s);
    return s;
}

/* Neither the clock of "Still here" nor that of lingering ends a session that is to end later. */
static void who_is_to_end_has_its_time(void **state)
{
    struct line *client = relayed(0, "ann");
    struct session *s = session_of("ann");

    (void)state;
    stage.conf->session.idle_notify = SHORT_MS;
    passes(0, "a NOOP\r\n");
    assert_true(users_hold(home, "ann", 1));
    assert_true(uv_timer_get_due_in(&s->deadline) > SHORT_MS);
    shutdown(client->fd, SHUT_WR);
    silence(client);
    assert_int_equal(relaying_overdue(s), s->phase);
    assert_true(uv_timer_get_due_in(&s->deadline) > SHORT_MS);
    answers(0, "a OK\r\n");
    hear_end(client);
    told("ann", 1);
}

/* At once, though another session has not found its end. */
static void what_is_parked_is_closed(void **state)
{
    (void)state;
    relayed(1, "ann");
    passes(1, "a NOOP\r\n");
    parked(0, "ann");
    assert_true(users_hold(home, "ann", 1));
    hear(&stage.peers[0], "P LOGOUT\r\n");
    hear_end(&stage.peers[0]);
    untold();
    answers(1, "a OK\r\n");
    told("ann", 1);
}

/* Its session has gone, and the store has not said yet whether it is clean. */
static void what_is_about_to_be_parked_is_closed(void **state)
{
    struct line *client = relayed(0, "ann");

    (void)state;
    say(client, "x LOGOUT\r\n");
    hear(client, "* BYE Logging out\r\nx OK Logout completed.\r\n");
    hear(&stage.peers[0], "P NOOP\r\n");
    assert_true(users_hold(home, "ann", 1));
    hear_end(&stage.peers[0]);
    told("ann", 1);
}

/* A parked one is being asked whether it still lives. */
static void what_is_checked_is_closed(void **state)
{
    struct line *client;

    (void)state;
    stage.conf->pool.check_after = 0;
    parked(0, "ann");
    client = client_open(1);
    client_login(client, "ann");
    hear(&stage.peers[0], "P NOOP\r\n");
    until(ANN("lease"));
    assert_true(users_hold(home, "ann", 1));
    hear_end(&stage.peers[0]);
    told("ann", 1);
    until(ANN_HELD);
}

static void a_login_at_the_store_is_taken_back(void **state)
{
    struct line *client = client_open(0), *peer;

    (void)state;
    client_login(client, "ann");
    peer = store_accept(0);
    store_greets(peer);
    store_hears_login(peer, "ann");
    until(ANN("lease"));
    assert_true(users_hold(home, "ann", 1));
    assert_string_equal(who(), ANN_HELD);
    hear_end(peer);
    told("ann", 1);
    silence(client);

    users_release(home, "ann");
    peer = store_accept(0);
    store_greets(peer);
    store_hears_login(peer, "ann");
    store_lets_in(peer, client);
    until(ANN("relay"));
}

/* Its route is older than the move, until the end of that. */
static void logins_wait_until_the_release(void **state)
{
    struct line *client = client_open(0), *late;

    (void)state;
    assert_true(users_hold(home, "ann", 1));
    told("ann", 1);
    client_login(client, "ann");
    until(ANN_HELD);
    assert_false(store_is_asked());
    late = client_open(1);
    client_login(late, "ann");
    until(ANN_HELD ANN_HELD);
    users_release(home, "ann");
    for (size_t i = 0; i < 2; i++) {
        struct line *peer = store_accept(i);

        store_greets(peer);
        store_hears_login(peer, "ann");
        say(peer, "L OK " CAPABILITIES " in\r\n");
    }
    hear_line(client, "in OK [CAPABILITY ");
    hear_line(late, "in OK [CAPABILITY ");
}

static void who_waits_too_long_is_refused(void **state)
{
    struct line *client = client_open(0);

    (void)state;
    stage.cutover->hold_timeout = 1200; /* it looks again meanwhile */
    assert_true(users_hold(home, "ann", 1));
    client_login(client, "ann");
    hear(client, "in NO [UNAVAILABLE] Your mailbox is being moved, please try again in a "
                 "moment.\r\n");
    assert_string_equal(who(), "");
    stage.cutover->hold_timeout = LONG_MS; /* and once more: all the time is there again */
    client_login(client, "ann");
    until(ANN_HELD);
    hang_up(client);
    until("");
    told("ann", 1);
}

/* The next one on that connection is another user's. */
static void who_was_refused_can_be_another(void **state)
{
    struct line *client = client_open(0);

    (void)state;
    stage.cutover->hold_timeout = 0;
    assert_true(users_hold(home, "ann", 1));
    client_login(client, "ann");
    hear_line(client, "in NO [UNAVAILABLE] ");
    client_login(client, "ben");
    store_accept(0);
    until(BEN("lease"));
    told("ann", 1);
}

static void who_waits_hears_of_the_stop(void **state)
{
    struct line *client = client_open(0);

    (void)state;
    assert_true(users_hold(home, "ann", 1));
    client_login(client, "ann");
    until(ANN_HELD);
    sessions_stop(home);
    hear(client, "* BYE [UNAVAILABLE] The server is shutting down, please connect again.\r\n");
    hear_end(client);
    told("ann", 1);
}

/* The first few losses of a second would be told at once. */
static void be_lost_in_a_crowd(void)
{
    stage.conf->shards[0].drain_time = LONG_MS;
    for (int i = 0; i < 6; i++)
        pool_letting_go_delay(home->pool, &stage.conf->shards[0]);
}

/* The store has gone, and the client has not been told: it has no connection to any. */
static void who_is_stranded_is_nowhere(void **state)
{
    (void)state;
    for (size_t i = 0; i < CLIENTS; i++)
        relayed(i, "ann");
    be_lost_in_a_crowd();
    for (size_t i = 0; i < CLIENTS; i++)
        hang_up(&stage.peers[i]);
    until(ANN("stranded") ANN("stranded") ANN("stranded"));
    assert_true(users_hold(home, "ann", 1));
    told("ann", 1);
    assert_int_equal(users_kick(home, "ann", NULL, KICKED), CLIENTS);
    for (size_t i = 0; i < CLIENTS; i++) {
        hear(&stage.clients[i], KICKED);
        hear_end(&stage.clients[i]);
    }
}

/* The store has gone, and the client was told and has not closed. */
static void who_lingers_is_nowhere(void **state)
{
    struct line *client = relayed(0, "ann");

    (void)state;
    passes(0, "a NOOP\r\n");
    hang_up(&stage.peers[0]);
    hear(client, "* BYE [UNAVAILABLE] The connection to the mail store was lost.\r\n");
    assert_true(users_hold(home, "ann", 1));
    told("ann", 1);
    hear_end(client);
}

/* The same, while she is held already. */
static void the_store_goes_first(void **state)
{
    struct line *client = relayed(0, "ann");

    (void)state;
    passes(0, "a NOOP\r\n");
    assert_true(users_hold(home, "ann", 1));
    untold();
    hang_up(&stage.peers[0]);
    hear(client, "* BYE [UNAVAILABLE] The connection to the mail store was lost.\r\n");
    told("ann", 1);
    hear_end(client);
}

/* It says BYE on its own before there was a boundary, and its client waits for nothing. */
static void the_store_says_bye_first(void **state)
{
    (void)state;
    relayed(0, "ann");
    answers(0, "* 1 EXI");
    assert_true(users_hold(home, "ann", 1));
    untold();
    be_lost_in_a_crowd();
    say(&stage.peers[0], "STS\r\n* BYE going down\r\n");
    hear(&stage.clients[0], "STS\r\n");
    told("ann", 1);
    until(ANN("stranded"));
}

/* --- kicked --- */

static void a_user_is_kicked(void **state)
{
    struct line *client, *waits, *other;

    (void)state;
    parked(0, "ann");
    client = client_open(0);
    client_login(client, "ann");
    hear_line(client, "in OK [CAPABILITY "); /* the parked one is used */
    waits = client_open(1);
    client_login(waits, "ann");
    store_accept(1);
    other = relayed(2, "ben");
    until(BEN("relay") ANN("lease") ANN("relay"));

    assert_int_equal(users_kick(home, "ann", NULL, KICKED), 2);
    hear(client, KICKED);
    hear(waits, KICKED);
    hear(&stage.peers[0], "P LOGOUT\r\n"); /* and is not kept once more */
    hear_end(&stage.peers[0]);
    hear_end(&stage.peers[1]);
    hear_end(client);
    hear_end(waits);
    silence(other);
    assert_string_equal(who(), BEN("relay"));
    assert_int_equal(users_kick(home, "ann", NULL, KICKED), 0);
}

static void what_is_parked_is_closed_by_a_kick(void **state)
{
    (void)state;
    parked(0, "ann");
    assert_int_equal(users_kick(home, "ann", NULL, KICKED), 0);
    hear(&stage.peers[0], "P LOGOUT\r\n");
    hear_end(&stage.peers[0]);
}

static void find_id(void *owner, const struct users_session *session)
{
    if (strcmp(session->user, "ann") == 0)
        snprintf(owner, 24, "%s", session->id);
}

static void a_session_is_kicked(void **state)
{
    struct line *one = relayed(0, "ann"), *other = relayed(1, "ben");
    char id[24] = "";

    (void)state;
    users_each(home, find_id, id);
    assert_int_equal(users_kick(home, NULL, "nobody's", KICKED), 0);
    assert_int_equal(users_kick(home, NULL, id, KICKED), 1);
    hear(one, KICKED);
    hear_end(one);
    silence(other);
}

static void who_is_held_can_be_kicked(void **state)
{
    struct line *client = client_open(0);

    (void)state;
    assert_true(users_hold(home, "ann", 1));
    client_login(client, "ann");
    until(ANN_HELD);
    assert_int_equal(users_kick(home, "ann", NULL, KICKED), 1);
    hear(client, KICKED);
    hear_end(client);
    told("ann", 1);
}

/* --- let go, cut off --- */

static void the_sessions_of_a_shard_are_let_go(void **state)
{
    struct line *client = relayed(0, "ann"), *other = relayed(1, "ben");

    (void)state;
    users_let_go(home, stage.conf->shards[0].id, SHORT_MS);
    hear(client, LET_GO);
    hear(&stage.peers[0], "P LOGOUT\r\n");
    hear_end(&stage.peers[0]);
    hear_end(client);
    silence(other);
    users_let_go(home, USERS_ALL_SHARDS, 0);
    hear(other, LET_GO);
}

static void who_is_let_go_is_answered_first(void **state)
{
    struct line *client = relayed(0, "ann");

    (void)state;
    passes(0, "a NOOP\r\n");
    users_let_go(home, USERS_ALL_SHARDS, 0);
    silence(client);
    answers(0, "a OK\r\n");
    hear(client, LET_GO);
}

static void who_is_let_go_and_finds_no_end(void **state)
{
    struct line *client = relayed(0, "ann");

    (void)state;
    stage.cutover->end_timeout = SHORT_MS;
    passes(0, "a NOOP\r\n");
    users_let_go(home, USERS_ALL_SHARDS, SHORT_MS);
    hear(client, LET_GO);
    hear_end(client);
    hear_end(&stage.peers[0]);
}

static void all_are_cut_off(void **state)
{
    struct line *client = relayed(0, "ann"), *waits;

    (void)state;
    passes(0, "a NOOP\r\n");
    parked(1, "ben");
    waits = client_open(2);
    client_login(waits, "ann");
    store_accept(2);
    until(ANN("lease") ANN("relay"));
    users_cut_off(home);
    hear(client, CUT_OFF);
    hear_end(client);
    hear(&stage.peers[1], "P LOGOUT\r\n");
    for (size_t i = 0; i < CLIENTS; i++)
        hear_end(&stage.peers[i]);
    store_greets(store_accept(2)); /* whoever was on the way has asked for the route anew */
    store_hears_login(&stage.peers[2], "ann");
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(who_has_no_session_is_held_at_once),
        TEST(a_release_within_the_news),
        TEST(a_release_before_the_news),
        TEST(sessions_at_rest_end),
        TEST(a_literal_that_is_half_sent),
        TEST(commands_one_behind_the_other),
        TEST(a_command_that_has_hardly_begun),
        TEST(who_finds_no_end_is_cut_off),
        TEST(a_response_that_does_not_end),
        TEST(a_half_that_is_closed),
        TEST(who_is_to_end_has_its_time),
        TEST(what_is_parked_is_closed),
        TEST(what_is_about_to_be_parked_is_closed),
        TEST(what_is_checked_is_closed),
        TEST(a_login_at_the_store_is_taken_back),
        TEST(logins_wait_until_the_release),
        TEST(who_waits_too_long_is_refused),
        TEST(who_waits_hears_of_the_stop),
        TEST(who_was_refused_can_be_another),
        TEST(who_is_stranded_is_nowhere),
        TEST(who_lingers_is_nowhere),
        TEST(the_store_goes_first),
        TEST(the_store_says_bye_first),
        TEST(a_user_is_kicked),
        TEST(what_is_parked_is_closed_by_a_kick),
        TEST(a_session_is_kicked),
        TEST(who_is_held_can_be_kicked),
        TEST(the_sessions_of_a_shard_are_let_go),
        TEST(who_is_let_go_is_answered_first),
        TEST(who_is_let_go_and_finds_no_end),
        TEST(all_are_cut_off),
    };

    log_set_level(LOG_LEVEL_ERROR);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
