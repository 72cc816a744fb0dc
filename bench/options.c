/* Owns the names of the workloads and options of `load`. */
#include "bench/options.h"

#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char usage[] =
    "usage: load WORKLOAD PORT [options]\n"
    "workloads: login webmail fetch append noop idle (ends when each client has had one line)\n"
    "  --clients N      at once (1)\n"
    "  --seconds S      no unit begins later than this after the start (3)\n"
    "  --units N        nor after so many\n"
    "  --users N        connections log in as so many users in turn (100)\n"
    "  --first-user N   user0, user1, ... if this is 0 (0)\n"
    "  --password TEXT  (bench-password)\n"
    "  --size N         of a body, in octets (1024)\n"
    "  --rate N         a client reads no more octets in a second\n"
    "  --sources N      clients come from so many addresses, 127.0.0.1 and up (1)\n"
    "  --resume         TLS sessions\n"
    "  --late-acks      acknowledge when the kernel likes to, not what has been read at once\n"
    "  --plain          no TLS\n"
    "  --hold           say \"ready\" before the start and wait for a line; another at the end\n"
    "  --wake PID       of a store, for idle: it gets SIGUSR1 at the start\n";

static const struct workload workloads[] = {
    {"login", {LOGIN, LOGOUT}, NONE, LOGIN},
    {"webmail", {LOGIN, SELECT, FETCH, LOGOUT}, NONE, LOGOUT},
    {"fetch", {LOGIN, SELECT}, FETCH, FETCH},
    {"append", {LOGIN, SELECT}, APPEND, APPEND},
    {"noop", {LOGIN, SELECT}, NOOP, NOOP},
    {"idle", {LOGIN, SELECT, IDLE}, WAKE_UP, WAKE_UP},
};

static void fail_usage(void)
{
    fputs(usage, stderr);
    exit(2);
}

static const struct workload *find_workload(const char *name)
{
    for (size_t i = 0; i < sizeof workloads / sizeof *workloads; i++)
        if (strcmp(workloads[i].name, name) == 0)
            return &workloads[i];
    fail_usage();
    return NULL;
}

static void take_option(int option, const char *value, struct options *options, struct run *run)
{
    unsigned long long number = strtoull(value, NULL, 10);

    switch (option) {
    case 'c':
        options->clients = (unsigned)number;
        break;
    case 's':
        options->seconds = strtod(value, NULL);
        break;
    case 'n':
        run->units_wanted = number;
        break;
    case 'u':
        run->users = (unsigned)number;
        break;
    case 'f':
        run->first_user = (unsigned)number;
        break;
    case 'p':
        run->password = value;
        break;
    case 'z':
        run->size = number;
        break;
    case 'r':
        run->rate = number;
        break;
    case 'a':
        run->sources = (unsigned)number;
        break;
    case 'R':
        run->resume = true;
        break;
    case 'l':
        run->late_acks = true;
        break;
    case 'P':
        options->plain = true;
        break;
    case 'h':
        options->hold = true;
        break;
    case 'w':
        options->store = (pid_t)number;
        break;
    default:
        fail_usage();
    }
}

void options_parse(int argc, char **argv, struct options *options, struct run *run)
{
    static const struct option names[] = {
        {"clients", 1, NULL, 'c'},    {"seconds", 1, NULL, 's'},   {"units", 1, NULL, 'n'},
        {"users", 1, NULL, 'u'},      {"password", 1, NULL, 'p'},  {"size", 1, NULL, 'z'},
        {"rate", 1, NULL, 'r'},       {"sources", 1, NULL, 'a'},   {"resume", 0, NULL, 'R'},
        {"plain", 0, NULL, 'P'},      {"hold", 0, NULL, 'h'},      {"wake", 1, NULL, 'w'},
        {"first-user", 1, NULL, 'f'}, {"late-acks", 0, NULL, 'l'}, {NULL, 0, NULL, 0},
    };
    int option;

    *options = (struct options){.clients = 1, .seconds = 3};
    *run = (struct run){.sources = 1, .users = 100, .password = "bench-password", .size = 1024};
    while ((option = getopt_long(argc, argv, "", names, NULL)) != -1)
        take_option(option, optarg == NULL ? "" : optarg, options, run);
    if (argc - optind != 2 || options->clients == 0 || run->users == 0 || run->sources == 0)
        fail_usage();
    run->workload = find_workload(argv[optind]);
    run->port = (uint16_t)strtoul(argv[optind + 1], NULL, 10);
    if (run->workload->repeated == WAKE_UP)
        run->units_wanted = options->clients;
}
