/*
 * Owns an IMAP store without mail, the far end of the benchmark: any user may log in, FETCH gives
 * a body of the size that the command asks for, APPEND swallows. One thread, without TLS.
 *
 *     store PORT    listens on 127.0.0.1, until SIGTERM
 *
 * SIGUSR1 tells every connection in IDLE of a new message. SIGUSR2 prints the counts, as a line of
 * JSON.
 */
#include "bench/wire.h"
#include "proxy/base/mem.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <unistd.h>

#define CAPABILITIES "IMAP4rev1 SASL-IR LITERAL+ ID IDLE UNSELECT AUTH=PLAIN"

enum { BACKLOG = 4096, EVENTS_AT_ONCE = 256, WORD_MAX = 64, ARGUMENTS_MAX = 128 };

/* What the next line is. */
enum expected { COMMAND, REST_OF_COMMAND, SASL_RESPONSE, DONE };

struct connection {
    struct connection *next, **link; /* of all connections; link points to what points here */
    int fd;
    uint32_t watched;
    enum expected expected;
    bool leaving;
    struct wire_in in;
    struct wire_out out;
    char tag[WORD_MAX], verb[WORD_MAX], arguments[ARGUMENTS_MAX]; /* of the command under way */
};

static struct {
    int epoll, listener, signals;
    struct connection *connections;
    unsigned long long accepted, open, logins, commands, fetches, appends;
} store;

static void die(const char *what)
{
    perror(what);
    exit(1);
}

/* --- commands --- */

static void answer(struct connection *c, const char *untagged, const char *done)
{
    if (!wire_out_text(&c->out, "%s%s OK %s\r\n", untagged, c->tag, done))
        c->leaving = true;
    c->expected = COMMAND;
}

static void capability(struct connection *c)
{
    answer(c, "* CAPABILITY " CAPABILITIES "\r\n", "CAPABILITY done");
}

static void id(struct connection *c)
{
    answer(c, "* ID (\"name\" \"bench\")\r\n", "ID done");
}

static void log_in(struct connection *c)
{
    store.logins++;
    answer(c, "", "[CAPABILITY " CAPABILITIES "] logged in");
}

static void authenticate(struct connection *c)
{
    bool has_initial_response = strchr(c->arguments, ' ') != NULL;

    if (has_initial_response) {
        log_in(c);
        return;
    }
    wire_out_text(&c->out, "+ \r\n");
    c->expected = SASL_RESPONSE;
}

static void nothing(struct connection *c)
{
    answer(c, "", "done");
}

static void list(struct connection *c)
{
    answer(c, "* LIST (\\HasNoChildren) \"/\" INBOX\r\n", "LIST done");
}

static void select_mailbox(struct connection *c)
{
    answer(c,
           "* FLAGS (\\Answered \\Flagged \\Deleted \\Seen \\Draft)\r\n"
           "* OK [PERMANENTFLAGS (\\Answered \\Flagged \\Deleted \\Seen \\Draft \\*)] flags\r\n"
           "* 1000 EXISTS\r\n* 0 RECENT\r\n* OK [UIDVALIDITY 1] validity\r\n"
           "* OK [UIDNEXT 1001] next\r\n",
           "[READ-WRITE] SELECT done");
}

/* FETCH 1 BODY[]<0.size> */
static void fetch(struct connection *c)
{
    static const char expected[] = "1 BODY[]<0.";
    char done[WIRE_TAIL_MAX];

    if (strncasecmp(c->arguments, expected, sizeof expected - 1) != 0) {
        wire_out_text(&c->out, "%s BAD this store gives other things\r\n", c->tag);
        return;
    }
    unsigned long long octets = strtoull(c->arguments + sizeof expected - 1, NULL, 10);
    store.fetches++;
    wire_out_text(&c->out, "* 1 FETCH (BODY[]<0> {%llu}\r\n", octets);
    snprintf(done, sizeof done, ")\r\n%s OK FETCH done\r\n", c->tag);
    wire_out_body(&c->out, octets, done);
}

static void append(struct connection *c)
{
    store.appends++;
    answer(c, "", "APPEND done");
}

static void idle(struct connection *c)
{
    wire_out_text(&c->out, "+ idling\r\n");
    c->expected = DONE;
}

static void log_out(struct connection *c)
{
    answer(c, "* BYE see you\r\n", "LOGOUT done");
    c->leaving = true;
}

static const struct verb {
    const char *name;
    void (*run)(struct connection *c);
} verbs[] = {
    {"CAPABILITY", capability},
    {"ID", id},
    {"LOGIN", log_in},
    {"AUTHENTICATE", authenticate},
    {"NOOP", nothing},
    {"SELECT", select_mailbox},
    {"UNSELECT", nothing},
    {"LIST", list},
    {"FETCH", fetch},
    {"APPEND", append},
    {"IDLE", idle},
    {"LOGOUT", log_out},
};

static void run_command(struct connection *c)
{
    store.commands++;
    c->expected = COMMAND;
    for (size_t i = 0; i < sizeof verbs / sizeof *verbs; i++)
        if (strcasecmp(c->verb, verbs[i].name) == 0) {
            verbs[i].run(c);
            return;
        }
    wire_out_text(&c->out, "%s BAD unknown command\r\n", c->tag);
}

static void take_command(struct connection *c, const char *line)
{
    c->verb[0] = c->arguments[0] = '\0';
    if (sscanf(line, "%63s %63s %127[^\n]", c->tag, c->verb, c->arguments) < 2) {
        wire_out_text(&c->out, "* BAD no command\r\n");
        return;
    }
    c->expected = REST_OF_COMMAND;
}

static void take_line(struct connection *c, const char *line)
{
    if (c->expected == DONE)
        answer(c, "", "IDLE done");
    else if (c->expected == SASL_RESPONSE)
        log_in(c);
    else if (c->expected == COMMAND)
        take_command(c, line);
    if (c->expected != REST_OF_COMMAND)
        return;
    if (c->in.literal == 0)
        run_command(c);
    else if (c->in.literal_is_sync)
        wire_out_text(&c->out, "+ go on\r\n");
}

/* --- connections --- */

static void watch(struct connection *c, uint32_t events)
{
    if (c->watched == events)
        return;
    c->watched = events;
    epoll_ctl(store.epoll, EPOLL_CTL_MOD, c->fd,
              &(struct epoll_event){.events = events, .data.ptr = c});
}

static void close_connection(struct connection *c)
{
    store.open--;
    *c->link = c->next;
    if (c->next != NULL)
        c->next->link = c->link;
    close(c->fd);
    mem_free(c);
}

/* False if the connection has failed. */
static bool flush(struct connection *c)
{
    struct iovec parts[WIRE_PARTS];
    int count;

    while ((count = wire_out_parts(&c->out, parts)) > 0) {
        ssize_t sent = sendmsg(
            c->fd, &(struct msghdr){.msg_iov = parts, .msg_iovlen = (size_t)count}, MSG_NOSIGNAL);
        if (sent < 0)
            return errno == EAGAIN;
        wire_out_sent(&c->out, (size_t)sent);
    }
    return true;
}

/* False if the peer has closed or the connection has failed. */
static bool receive(struct connection *c, bool *more_out)
{
    size_t size;
    char *space = wire_in_space(&c->in, &size);
    ssize_t count = size == 0 ? 0 : recv(c->fd, space, size, 0);

    *more_out = count == (ssize_t)size;
    if (count < 0)
        return errno == EAGAIN;
    wire_in_filled(&c->in, (size_t)count);
    return count > 0;
}

/* What has been read is acknowledged at once: a proxy with Nagle's algorithm may wait for that. */
static void wait_for_more(struct connection *c)
{
    setsockopt(c->fd, IPPROTO_TCP, TCP_QUICKACK, &(int){1}, sizeof(int));
    watch(c, EPOLLIN);
}

/* Answers what has come and reads on, until one side has to wait. False: this was the end. */
static bool serve(struct connection *c)
{
    for (bool more = true;;) {
        char *line;

        if (!flush(c))
            return false;
        if (!wire_out_is_empty(&c->out)) {
            watch(c, EPOLLOUT);
            return true;
        }
        if (c->leaving)
            return false;
        if ((line = wire_in_line(&c->in)) != NULL) {
            take_line(c, line);
            continue;
        }
        if (!more) {
            wait_for_more(c);
            return true;
        }
        if (!receive(c, &more))
            return false;
    }
}

static void greet(int fd)
{
    struct connection *c = mem_new(sizeof *c);

    if (c == NULL)
        die("memory");
    c->fd = fd;
    c->watched = EPOLLIN;
    c->next = store.connections;
    c->link = &store.connections;
    if (c->next != NULL)
        c->next->link = &c->next;
    store.connections = c;
    store.accepted++;
    store.open++;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
    epoll_ctl(store.epoll, EPOLL_CTL_ADD, fd,
              &(struct epoll_event){.events = EPOLLIN, .data.ptr = c});
    wire_out_text(&c->out, "* OK [CAPABILITY " CAPABILITIES "] bench store ready\r\n");
    if (!flush(c))
        close_connection(c);
}

static void accept_all(void)
{
    int fd;

    while ((fd = accept4(store.listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0)
        greet(fd);
    if (errno == EMFILE || errno == ENFILE)
        die("accept");
}

/* --- the whole --- */

static void wake_all(void)
{
    for (struct connection *c = store.connections; c != NULL; c = c->next) {
        if (c->expected != DONE)
            continue;
        wire_out_text(&c->out, "* 1001 EXISTS\r\n");
        c->leaving = !flush(c); /* epoll reports the failure, too: it is closed then */
    }
}

static void print_counts(void)
{
    struct rusage used;

    getrusage(RUSAGE_SELF, &used);
    printf("{\"accepted\": %llu, \"open\": %llu, \"logins\": %llu, \"commands\": %llu, "
           "\"fetches\": %llu, \"appends\": %llu}\n",
           store.accepted, store.open, store.logins, store.commands, store.fetches, store.appends);
    fflush(stdout);
}

static void take_signal(void)
{
    struct signalfd_siginfo info;

    if (read(store.signals, &info, sizeof info) != sizeof info)
        return;
    if (info.ssi_signo == SIGUSR1)
        wake_all();
    else if (info.ssi_signo == SIGUSR2)
        print_counts();
    else
        exit(0);
}

static int open_listener(const char *port)
{
    struct sockaddr_in address = {.sin_family = AF_INET,
                                  .sin_port = htons((uint16_t)strtoul(port, NULL, 10)),
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &(int){1}, sizeof(int));
    if (bind(fd, (struct sockaddr *)&address, sizeof address) != 0 || listen(fd, BACKLOG) != 0)
        die("listen");
    return fd;
}

static int open_signals(void)
{
    sigset_t set;

    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    sigaddset(&set, SIGUSR2);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    sigprocmask(SIG_BLOCK, &set, NULL);
    return signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC);
}

/* An event's pointer is a connection, or the descriptor that is none. */
static void take_event(const struct epoll_event *event)
{
    if (event->data.ptr == &store.listener)
        accept_all();
    else if (event->data.ptr == &store.signals)
        take_signal();
    else if (!serve(event->data.ptr))
        close_connection(event->data.ptr);
}

static void add(int *fd)
{
    epoll_ctl(store.epoll, EPOLL_CTL_ADD, *fd,
              &(struct epoll_event){.events = EPOLLIN, .data.ptr = fd});
}

static void raise_descriptor_limit(void)
{
    struct rlimit limit;

    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
}

int main(int argc, char **argv)
{
    struct epoll_event events[EVENTS_AT_ONCE];

    if (argc != 2) {
        fprintf(stderr, "usage: store PORT\n");
        return 2;
    }
    raise_descriptor_limit();
    store.epoll = epoll_create1(EPOLL_CLOEXEC);
    store.listener = open_listener(argv[1]);
    store.signals = open_signals();
    add(&store.listener);
    add(&store.signals);
    while (true) {
        int count = epoll_wait(store.epoll, events, EVENTS_AT_ONCE, -1);

        for (int i = 0; i < count; i++)
            take_event(&events[i]);
    }
}
