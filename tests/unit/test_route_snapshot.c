/*
 * The snapshot of last known routes, its journal and its lock: what is written is read, and what is
 * torn, foreign or moved since is not served.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "routing/snapshot.h"
#include "tests/unit/route_bench.h"

#include <errno.h>
#include <limits.h>
#include <sys/resource.h>
#include <sys/stat.h>

enum { NOW = 1000000, FENCE = 2000000 };

static char folder[64], path[96];

static const struct snapshot_head good_head = {
    .proxy = "0123456789abcdef", .written_ms = NOW, .fence_ms = FENCE};

static const struct known_route routes[] = {{"ann", "blue", "", 7, 1000},
                                            {"bob@example.org", "green",
                                             "b\xc3\xb6"
                                             "b",
                                             0, 0},
                                            {"two words", "blue", "x y", UINT64_MAX, UINT64_MAX}};

static const char *beside(const char *suffix)
{
    static char name[128];

    snprintf(name, sizeof name, "%s%s", path, suffix);
    return name;
}

static void put(const char *name, const char *text, size_t len)
{
    FILE *file = fopen(name, "we");

    assert_non_null(file);
    assert_int_equal(fwrite(text, 1, len, file), len);
    assert_int_equal(fclose(file), 0);
}

static size_t get(const char *name, char *text_out, size_t size)
{
    FILE *file = fopen(name, "re");
    size_t len;

    assert_non_null(file);
    len = fread(text_out, 1, size, file);
    assert_int_equal(fclose(file), 0);
    return len;
}

static struct snapshot *open_good(void)
{
    struct err err = {0};
    struct snapshot *snapshot = snapshot_open(path, &err);

    if (snapshot == NULL)
        fail_msg("%s", err.text);
    return snapshot;
}

/* The routes, in one buffer. */
static void fill(struct buf *buf)
{
    buf_init(buf, BUF_CEILING_MAX);
    for (size_t i = 0; i < sizeof routes / sizeof *routes; i++)
        snapshot_add(buf, &routes[i]);
}

static void write_good(struct snapshot *snapshot, struct snapshot_head head)
{
    struct buf buf;
    struct err err = {0};

    fill(&buf);

    const struct span parts[] = {buf_span(&buf), {"", 0}};

    if (!snapshot_write(snapshot, &head, parts, 2, &err))
        fail_msg("%s", err.text);
    snapshot_written(snapshot, &head);
    buf_release(&buf);
}

struct gathered {
    size_t count;
    char users[8][32], shards[8][32], backend_users[8][32];
    uint64_t epochs[8], ages_ms[8];
};

static void gather(void *owner, const struct known_route *route)
{
    struct gathered *g = owner;

    assert_in_range(g->count, 0, 7);
    snprintf(g->users[g->count], sizeof g->users[0], "%s", route->user);
    snprintf(g->shards[g->count], sizeof g->shards[0], "%s", route->shard);
    snprintf(g->backend_users[g->count], sizeof g->backend_users[0], "%s", route->backend_user);
    g->ages_ms[g->count] = route->age_ms;
    g->epochs[g->count++] = route->epoch;
}

/* As a process that is started then. */
static bool read_at(uint64_t now_ms, struct gathered *g, struct snapshot_head *head,
                    struct err *err)
{
    struct snapshot *snapshot = open_good();
    bool good;

    *g = (struct gathered){0};
    *err = (struct err){0};
    good = snapshot_read(snapshot, now_ms, head, gather, g, err);
    assert_true(good == (err->kind == ERR_NONE));
    assert_true(good || g->count == 0);
    assert_true(g->count == 0 || head->fence_ms > now_ms);
    snapshot_close(&snapshot);
    assert_null(snapshot);
    return good;
}

static bool is_refused(void)
{
    struct gathered g;
    struct snapshot_head head;
    struct err err;

    if (read_at(NOW, &g, &head, &err))
        return false;
    assert_memory_equal(err.text, path, strlen(path));
    assert_int_equal(head.fence_ms, 0);
    return true;
}

static void what_was_written_is_read(void **state)
{
    struct snapshot *snapshot = open_good();
    struct gathered g;
    struct snapshot_head head;
    struct err err;
    struct stat status;

    (void)state;
    write_good(snapshot, good_head);
    snapshot_close(&snapshot);
    assert_int_equal(stat(path, &status), 0);
    assert_int_equal(status.st_mode & 0777, 0600);
    assert_true(read_at(NOW + 500, &g, &head, &err));
    assert_string_equal(head.proxy, good_head.proxy);
    assert_int_equal(head.written_ms, NOW);
    assert_int_equal(head.fence_ms, FENCE);
    assert_int_equal(g.count, 3);
    for (size_t i = 0; i < 3; i++) {
        assert_string_equal(g.users[i], routes[i].user);
        assert_string_equal(g.shards[i], routes[i].shard);
        assert_string_equal(g.backend_users[i], routes[i].backend_user);
        assert_true(g.epochs[i] == routes[i].epoch);
    }
    assert_int_equal(g.ages_ms[0], 1500);
    assert_true(g.ages_ms[2] == UINT64_MAX);
}

static void nothing_there_is_no_failure(void **state)
{
    struct gathered g;
    struct snapshot_head head;
    struct err err;

    (void)state;
    assert_true(read_at(NOW, &g, &head, &err));
    assert_string_equal(head.proxy, "");
    assert_int_equal(head.fence_ms, 0);
    assert_int_equal(g.count, 0);
}

static void the_fence_bounds_it(void **state)
{
    struct snapshot *snapshot = open_good();
    struct gathered g;
    struct snapshot_head head;
    struct err err;

    (void)state;
    write_good(snapshot, good_head);
    snapshot_close(&snapshot);
    assert_true(read_at(FENCE - 1, &g, &head, &err));
    assert_int_equal(g.count, 3);
    assert_true(read_at(FENCE, &g, &head, &err));
    assert_int_equal(g.count, 0);
    assert_int_equal(head.fence_ms, 0);
    assert_string_equal(head.proxy, good_head.proxy); /* it is dead all the same */
    assert_false(read_at(NOW - 1, &g, &head, &err));
    assert_non_null(strstr(err.text, "clock"));
    assert_int_equal(head.fence_ms, 0);
    assert_string_equal(head.proxy, good_head.proxy);
}

static void a_torn_or_changed_file_is_refused(void **state)
{
    struct snapshot *snapshot = open_good();
    char text[1024], changed[1024];
    size_t len;

    (void)state;
    write_good(snapshot, good_head);
    snapshot_close(&snapshot);
    len = get(path, text, sizeof text);
    assert_in_range(len, 100, sizeof text - 2);
    for (size_t cut = 0; cut < len; cut++) {
        put(path, text, cut);
        assert_true(is_refused());
    }
    for (size_t i = 0; i < len; i++) {
        memcpy(changed, text, len);
        changed[i] ^= (char)(1 << i % 8);
        put(path, changed, len);
        assert_true(is_refused());
    }
    memcpy(changed, text, len);
    changed[len] = '\n';
    put(path, changed, len + 1);
    assert_true(is_refused());
    put(path, text, len);
    assert_false(is_refused());
}

/* With the right checksum, and yet not ours. */
static void put_signed(const char *text)
{
    char command[256];

    put(beside(".text"), text, strlen(text));
    snprintf(command, sizeof command,
             "cd %s && (cat s.text; echo sha256 $(sha256sum <s.text)) | "
             "sed 's/  -$//; s/ -$//' >s && rm s.text",
             folder);
    assert_int_equal(system(command), 0);
}

/* A shard of 64 octets. */
#define LONG_SHARD                                                                                 \
    "imapmux-snapshot 1 a 1000000 2000000 0 1\nann\t"                                              \
    "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef\t\t1\t0\n"

static void what_is_no_snapshot_is_refused(void **state)
{
    static const char *const texts[] = {
        "imapmux-snapshot 2 a 1000000 2000000 0 0\n",
        "imapmux-snapshot 1 a 1000000 2000000 0 1\n",
        "imapmux-snapshot 1 a 1000000 2000000 0 0\nann\tblue\t\t1\t0\n",
        "imapmux-snapshot 1 a 1000000 2000000 0 1\nann\tblue\t\t1\n",
        "imapmux-snapshot 1 a 1000000 2000000 0 1\nann\tblue\t\t1\t0\t0\n",
        "imapmux-snapshot 1 a 1000000 2000000 0 1\n\tblue\t\t1\t0\n",
        "imapmux-snapshot 1 a 1000000 2000000 0 1\nann\t\t\t1\t0\n",
        "imapmux-snapshot 1 a 1000000 2000000 0 1\nann\tblue\t\t-1\t0\n",
        "imapmux-snapshot 1 a 1000000 2000000 0 1\nann\tblue\t\t18446744073709551616\t0\n",
        "imapmux-snapshot 1 a 1000000 2000000 0 1\na\001n\tblue\t\t1\t0\n",
        LONG_SHARD,
        "imapmux-snapshot 1  1000000 2000000 0 0\n",
        "imapmux-snapshot 1 a 1000000 2000000 0\n",
        "",
        "\n",
    };

    (void)state;
    put_signed("imapmux-snapshot 1 a 1000000 2000000 0 1\nann\tblue\t\t1\t0\n");
    assert_false(is_refused()); /* so it is not for the checksum that the others are */
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        put_signed(texts[i]);
        if (!is_refused())
            fail_msg("taken: %s", texts[i]);
    }
    unlink(path);
    assert_int_equal(mkdir(path, 0700), 0);
    assert_true(is_refused());
    rmdir(path);
    assert_int_equal(mkfifo(path, 0600), 0);
    assert_true(is_refused());
}

/* --- who has been moved --- */

static void moved(struct snapshot *snapshot, const char *user)
{
    struct err err = {0};

    if (!snapshot_add_moved(snapshot, user, 8, &err))
        fail_msg("%s", err.text);
}

/* Who is served by the next process: the first letters of all. */
static const char *served(void)
{
    static char letters[9];
    struct gathered g;
    struct snapshot_head head;
    struct err err;

    if (!read_at(NOW, &g, &head, &err))
        return "refused";
    for (size_t i = 0; i < g.count; i++)
        letters[i] = g.users[i][0];
    letters[g.count] = '\0';
    return letters;
}

static void who_was_moved_is_not_served(void **state)
{
    struct snapshot *snapshot = open_good();
    struct snapshot_head head = good_head;

    (void)state;
    write_good(snapshot, good_head);
    moved(snapshot, "ann");
    moved(snapshot, "nobody");
    moved(snapshot, "x\001\n"); /* is in no snapshot */
    snapshot_close(&snapshot);
    assert_string_equal(served(), "bt");
    assert_string_equal(served(), "bt"); /* and still not */
    snapshot = open_good();              /* the next process goes on with the same journal */
    moved(snapshot, "two words");
    snapshot_close(&snapshot);
    assert_string_equal(served(), "b");
    snapshot = open_good();
    head.mark = snapshot_mark(snapshot); /* gathered from now on */
    write_good(snapshot, head);
    snapshot_close(&snapshot);
    assert_string_equal(served(), "abt");
}

/* Who is moved while routes are gathered may be among them. */
static void a_new_snapshot_ends_only_what_was_before_it(void **state)
{
    struct snapshot *snapshot = open_good();
    struct snapshot_head head = good_head;
    struct stat status;

    (void)state;
    write_good(snapshot, good_head);
    moved(snapshot, "ann");
    head.mark = snapshot_mark(snapshot);
    moved(snapshot, "bob@example.org");
    write_good(snapshot, head);
    snapshot_close(&snapshot);
    assert_string_equal(served(), "at");
    snapshot = open_good(); /* the next process */
    head.mark = snapshot_mark(snapshot);
    moved(snapshot, "two words");
    write_good(snapshot, head);
    snapshot_close(&snapshot);
    assert_string_equal(served(), "ab");
    snapshot = open_good();
    head.mark = snapshot_mark(snapshot);
    write_good(snapshot, head); /* nothing since: it is emptied */
    assert_int_equal(stat(beside(".moved"), &status), 0);
    assert_int_equal(status.st_size, 0);
    assert_int_equal(status.st_mode & 0777, 0600);
    moved(snapshot, "ann"); /* counts on from there */
    snapshot_close(&snapshot);
    assert_string_equal(served(), "bt");
}

/* The process ends after the rename, before the journal is emptied; or after that. */
static void it_is_no_matter_when_it_crashes(void **state)
{
    struct snapshot *snapshot = open_good();
    struct snapshot_head head = good_head;
    struct buf buf;
    struct err err = {0};

    (void)state;
    fill(&buf);

    const struct span part = buf_span(&buf);

    write_good(snapshot, good_head);
    moved(snapshot, "ann");
    head.mark = snapshot_mark(snapshot);
    assert_true(snapshot_write(snapshot, &head, &part, 1, &err));
    snapshot_close(&snapshot);
    assert_string_equal(served(), "abt");
    snapshot = open_good();
    assert_int_equal(snapshot_mark(snapshot), head.mark);
    snapshot_written(snapshot, &head);
    snapshot_close(&snapshot);
    snapshot = open_good(); /* the journal is empty, but its numbers go on */
    assert_int_equal(snapshot_mark(snapshot), head.mark);
    moved(snapshot, "ann");
    snapshot_close(&snapshot);
    assert_string_equal(served(), "bt");
    buf_release(&buf);
}

static void a_line_without_its_end_was_never_promised(void **state)
{
    struct snapshot *snapshot = open_good();
    static const char torn[] = "1\tann\t8\n2\tbob@exam";

    (void)state;
    write_good(snapshot, good_head);
    snapshot_close(&snapshot);
    put(beside(".moved"), torn, sizeof torn - 1);
    snapshot = open_good();
    moved(snapshot, "two words"); /* and does not become part of the next one */
    snapshot_close(&snapshot);
    assert_string_equal(served(), "b");
}

static void a_journal_that_makes_no_sense_serves_nobody(void **state)
{
    static const char *const texts[] = {"ann\n",       "1\tann\n", "1\tann\t8\nrubbish\n", "\n",
                                        "x\tann\t8\n", "1\t\t8\n", "1\tann\t8\t9\n"};
    struct snapshot *snapshot = open_good();
    struct snapshot_head head = good_head;

    (void)state;
    write_good(snapshot, good_head);
    snapshot_close(&snapshot);
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        put(beside(".moved"), texts[i], strlen(texts[i]));
        assert_true(is_refused());
        assert_true(is_refused()); /* it stays so */
    }
    snapshot = open_good();
    moved(snapshot, "ann");
    snapshot_close(&snapshot);
    assert_true(is_refused());
    snapshot = open_good();
    head.mark = snapshot_mark(snapshot);
    write_good(snapshot, head); /* until the next snapshot */
    snapshot_close(&snapshot);
    assert_string_equal(served(), "abt");
}

/* --- when the disk is full --- */

static void limit_files(rlim_t size)
{
    struct rlimit limit = {size, RLIM_INFINITY};

    signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &limit), 0);
}

static void the_old_one_stays_when_the_disk_is_full(void **state)
{
    struct snapshot *snapshot = open_good();
    struct snapshot_head head = good_head;
    struct err err = {0};
    struct buf buf;
    struct gathered g;

    (void)state;
    write_good(snapshot, good_head);
    fill(&buf);

    const struct span part = buf_span(&buf);

    head.written_ms++;
    for (rlim_t size = 0; size < 200; size += 20) {
        limit_files(size);
        assert_false(snapshot_write(snapshot, &head, &part, 1, &err));
        limit_files(RLIM_INFINITY);
        assert_int_equal(err.kind, ERR_UNAVAILABLE);
        assert_int_equal(access(beside(".new"), F_OK), -1);
    }
    snapshot_close(&snapshot);
    assert_true(read_at(NOW, &g, &head, &err));
    assert_int_equal(head.written_ms, NOW);
    assert_int_equal(g.count, 3);
    buf_release(&buf);
}

static void what_cannot_be_noted_is_told(void **state)
{
    struct snapshot *snapshot = open_good();
    struct err err = {0};

    (void)state;
    write_good(snapshot, good_head);
    moved(snapshot, "ann");
    limit_files(12);
    assert_false(snapshot_add_moved(snapshot, "bob@example.org", 8, &err));
    limit_files(RLIM_INFINITY);
    assert_int_equal(err.kind, ERR_UNAVAILABLE);
    moved(snapshot, "two words");
    snapshot_close(&snapshot);
    assert_string_equal(served(), "b");
}

/* --- one process at a time --- */

static void only_one_process_has_it(void **state)
{
    struct snapshot *snapshot = open_good();
    struct err err = {0};
    int status;

    (void)state;
    assert_null(snapshot_open(path, &err));
    assert_int_equal(err.kind, ERR_BUSY);
    assert_non_null(strstr(err.text, "another process"));
    snapshot_close(&snapshot);

    pid_t child = fork();

    assert_true(child >= 0);
    if (child == 0) {
        snapshot = snapshot_open(path, &err);
        raise(SIGSTOP);
        _exit(snapshot == NULL);
    }
    assert_int_equal(waitpid(child, &status, WUNTRACED), child);
    assert_true(WIFSTOPPED(status));
    assert_null(snapshot_open(path, &err));
    kill(child, SIGKILL);
    assert_int_equal(waitpid(child, &status, 0), child);
    snapshot = open_good(); /* a killed process has no lock */
    snapshot_close(&snapshot);
}

static void what_cannot_be_opened_is_told(void **state)
{
    char long_path[PATH_MAX];
    struct err err = {0};

    (void)state;
    assert_null(snapshot_open("/nonexistent/known", &err));
    assert_int_equal(err.kind, ERR_UNAVAILABLE);
    memset(long_path, 'a', sizeof long_path);
    for (size_t len = sizeof long_path - 12; len < sizeof long_path; len++) {
        memcpy(long_path, "/tmp/", 5);
        long_path[len] = '\0';
        assert_null(snapshot_open(long_path, &err));
        assert_int_equal(err.kind, ERR_UNAVAILABLE);
        long_path[len] = 'a';
    }
    assert_int_equal(mkdir(beside(".moved"), 0700), 0);
    assert_null(snapshot_open(path, &err));
    assert_int_equal(err.kind, ERR_UNAVAILABLE);
    rmdir(beside(".moved"));
}

/* A process that does nothing but write is killed at many moments. */
static void a_killed_writer_leaves_a_whole_file(void **state)
{
    (void)state;
    for (int i = 0; i < 30; i++) {
        pid_t child = fork();
        int status;

        assert_true(child >= 0);
        if (child == 0) {
            struct snapshot *snapshot = open_good();
            struct snapshot_head head = good_head;

            for (;;) {
                head.mark = snapshot_mark(snapshot);
                moved(snapshot, "bob@example.org");
                write_good(snapshot, head);
            }
        }
        do
            poll(NULL, 0, 1 + i % 5);
        while (access(path, F_OK) != 0);
        kill(child, SIGKILL);
        assert_int_equal(waitpid(child, &status, 0), child);
        assert_true(WIFSIGNALED(status));
        assert_string_equal(served(), "at");
    }
}

/* --- from router to router --- */

enum { MANY = 100000 };

static void give(void *owner, const struct known_route *route)
{
    router_know(owner, route);
}

static uint64_t us(void)
{
    return uv_hrtime() / 1000;
}

static void a_hundred_thousand_users_are_handed_on(void **state)
{
    struct snapshot *snapshot = open_good();
    struct snapshot_head head = good_head;
    struct err err = {0};
    struct bench b;
    struct asked a = {0};
    struct buf buf;
    char user[32];
    uint64_t began, filled, gathered, written, read;
    struct stat status;

    (void)state;
    server.port = 1; /* nobody answers there */
    bench_init(&b, 4, "redis", NULL, NULL);
    b.conf.route.max_known = MANY;
    bench_open(&b);
    began = us();
    for (int i = 0; i < MANY; i++) {
        snprintf(user, sizeof user, "user%d@example.org", i);
        router_know(b.router, &(struct known_route){user, b.titles[i % 4], "", (uint64_t)i, 0});
    }
    filled = us();
    buf_init(&buf, BUF_CEILING_MAX);
    router_known_each(b.router, snapshot_add, &buf);
    gathered = us();

    const struct span part = buf_span(&buf);

    assert_true(snapshot_write(snapshot, &head, &part, 1, &err));
    written = us();
    bench_release(&b);
    snapshot_close(&snapshot);
    bench_init(&b, 4, "redis", NULL, NULL);
    b.conf.route.max_known = MANY;
    bench_open(&b);
    read = us();
    snapshot = open_good();
    assert_true(snapshot_read(snapshot, NOW, &head, give, b.router, &err));
    assert_int_equal(stat(path, &status), 0);
    print_message(
        "%d users, %ld octets: known %d us, gathered %d us, written %d us, read and known "
        "again %d us\n",
        MANY, (long)status.st_size, (int)(filled - began), (int)(gathered - filled),
        (int)(written - gathered), (int)(us() - read));
    assert_int_equal(count_of(&b.counters.routes_known), MANY);
    for (int i = 0; i < MANY; i += 997) {
        snprintf(user, sizeof user, "user%d@example.org", i);
        assert_int_equal(ask(&b, &a, user), ERR_NONE);
        assert_string_equal(a.route.shard, b.titles[i % 4]);
        assert_true(a.route.stale);
        assert_int_equal(a.route.epoch, i);
    }
    snapshot_close(&snapshot);
    bench_release(&b);
    buf_release(&buf);
}

static int make_folder(void **state)
{
    (void)state;
    snprintf(folder, sizeof folder, "/tmp/imapmux-snapshot-XXXXXX");
    if (mkdtemp(folder) == NULL)
        return -1;
    snprintf(path, sizeof path, "%s/s", folder);
    return 0;
}

static int remove_folder(void **state)
{
    static const char *const suffixes[] = {"", ".moved", ".lock", ".new"};

    (void)state;
    for (size_t i = 0; i < sizeof suffixes / sizeof *suffixes; i++)
        unlink(beside(suffixes[i]));
    return rmdir(folder);
}

#define IN_FOLDER(test) cmocka_unit_test_setup_teardown(test, make_folder, remove_folder)

int main(void)
{
    const struct CMUnitTest tests[] = {
        IN_FOLDER(what_was_written_is_read),
        IN_FOLDER(nothing_there_is_no_failure),
        IN_FOLDER(the_fence_bounds_it),
        IN_FOLDER(a_torn_or_changed_file_is_refused),
        IN_FOLDER(what_is_no_snapshot_is_refused),
        IN_FOLDER(who_was_moved_is_not_served),
        IN_FOLDER(a_new_snapshot_ends_only_what_was_before_it),
        IN_FOLDER(it_is_no_matter_when_it_crashes),
        IN_FOLDER(a_line_without_its_end_was_never_promised),
        IN_FOLDER(a_journal_that_makes_no_sense_serves_nobody),
        IN_FOLDER(the_old_one_stays_when_the_disk_is_full),
        IN_FOLDER(what_cannot_be_noted_is_told),
        IN_FOLDER(only_one_process_has_it),
        IN_FOLDER(what_cannot_be_opened_is_told),
        IN_FOLDER(a_killed_writer_leaves_a_whole_file),
        IN_FOLDER(a_hundred_thousand_users_are_handed_on),
    };

    signal(SIGPIPE, SIG_IGN);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
