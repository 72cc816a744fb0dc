/* Owns the program imapmuxctl: its command line, and one exchange with an imapmux that runs. */
#include "proxy/ctl/request.h"
#include "proxy/ctl/show.h"
#include "proxy/ctl/usage.h"

#include <errno.h>
#include <getopt.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

enum status { DONE = 0, FAILED = 1, WRONG_USAGE = 2, NO_CONNECTION = 3 };

struct invocation {
    const char *socket;
    bool json, help;
    struct ctl_request request;
};

/* --- the command line --- */

enum { OPT_COMPLETION = 256, OPT_ARGUMENT }; /* the command's arguments count from the latter */

static const struct option global_options[] = {
    {"socket", required_argument, NULL, 's'},
    {"json", no_argument, NULL, 'j'},
    {"help", no_argument, NULL, 'h'},
    {"version", no_argument, NULL, 'V'},
    {"print-completion", no_argument, NULL, OPT_COMPLETION},
    {NULL, 0, NULL, 0},
};
enum { GLOBAL_OPTIONS = sizeof global_options / sizeof *global_options - 1 };

static bool complain(const char *what, const char *which)
{
    fprintf(stderr, "imapmuxctl: %s%s; see imapmuxctl --help\n", what, which);
    return false;
}

/* Sets an argument; false when it has been set before. */
static bool set_argument(struct invocation *call, const struct ctl_argument *row, const char *text)
{
    if (json_object_get(call->request.arguments, row->name) != NULL)
        return complain("given twice: ", row->name);
    return json_object_set_new(call->request.arguments, row->name, json_string(text)) == 0 ||
           complain("no text in UTF-8: ", row->name);
}

/* False when it is no option; getopt has said so. */
static bool take_option(struct invocation *call, int option)
{
    switch (option) {
    case 's':
        call->socket = optarg;
        return true;
    case 'j':
        call->json = true;
        return true;
    case 'h':
        call->help = true;
        return true;
    case 'V':
        puts("imapmuxctl " IMAPMUX_VERSION);
        exit(DONE);
    case OPT_COMPLETION:
        usage_print_completion(stdout);
        exit(DONE);
    default:
        return false;
    }
}

/*
 * Reads options from argv[1] on: the global ones, which end at the first word, or, once there is a
 * command, all that stand somewhere, its arguments too.
 */
static bool read_options(struct invocation *call, int argc, char **argv)
{
    static const struct ctl_argument none[1];
    const struct ctl_command *command = call->request.command;
    const struct ctl_argument *rows = command == NULL ? none : command->arguments;
    const char *letters = command == NULL ? "+s:jhV" : "s:jhV";
    struct option options[GLOBAL_OPTIONS + CTL_ARGUMENTS_MAX + 1] = {0};
    bool ok = true;

    memcpy(options, global_options, sizeof global_options);
    for (int i = 0; rows[i].name != NULL; i++)
        options[GLOBAL_OPTIONS + i] =
            (struct option){rows[i].name, required_argument, NULL, OPT_ARGUMENT + i};
    optind = 0; /* from the start, as glibc has it */
    for (int option; ok && (option = getopt_long(argc, argv, letters, options, NULL)) != -1;)
        ok = option < OPT_ARGUMENT ? take_option(call, option)
                                   : set_argument(call, &rows[option - OPT_ARGUMENT], optarg);
    return ok;
}

/*
 * Finds the command that the first words name, the longest name of all; returns how many words that
 * are. 0: none, and `words_out` tells what was looked for.
 */
static int find_command(int argc, char **argv, const struct ctl_command **command_out,
                        char words_out[CTL_NAME_MAX])
{
    int found = 0;
    size_t len = 0;

    words_out[0] = '\0';
    for (int i = 0; i < argc && i < CTL_WORDS_MAX && len < CTL_NAME_MAX; i++) {
        len += (size_t)snprintf(words_out + len, CTL_NAME_MAX - len, "%s%s", i > 0 ? " " : "",
                                argv[i]);
        const struct ctl_command *command = len < CTL_NAME_MAX ? ctl_find(words_out) : NULL;

        if (command != NULL) {
            found = i + 1;
            *command_out = command;
        }
    }
    return found;
}

/* Words behind the command fill its arguments in order, those that were not given by name. */
static bool take_words(struct invocation *call, int argc, char **argv)
{
    const struct ctl_argument *row = call->request.command->arguments;

    for (int i = 0; i < argc; i++) {
        while (row->name != NULL && json_object_get(call->request.arguments, row->name) != NULL)
            row++;
        if (row->name == NULL)
            return complain("one word too many: ", argv[i]);
        if (!set_argument(call, row, argv[i]))
            return false;
    }
    return true;
}

static bool read_arguments(struct invocation *call, int argc, char **argv)
{
    const struct ctl_command *command = call->request.command;
    struct err err = {0};

    if (!read_options(call, argc, argv))
        return false;
    if (call->help)
        return true;
    return take_words(call, argc - optind, argv + optind) &&
           (ctl_check_arguments(command, call->request.arguments, &err) || complain(err.text, ""));
}

/* --- the exchange --- */

static int connect_to(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    errno = ENAMETOOLONG;
    if (fd >= 0 && strlen(path) < sizeof address.sun_path) {
        memcpy(address.sun_path, path, strlen(path));
        if (connect(fd, (const struct sockaddr *)&address, sizeof address) == 0)
            return fd;
    }
    fprintf(stderr, "imapmuxctl: %s: %s\n", path, strerrordesc_np(errno));
    if (fd >= 0)
        close(fd);
    return -1;
}

static void show(const struct invocation *call, const json_t *result)
{
    if (!call->json)
        show_result(stdout, result);
    else if (json_dumpf(result, stdout, JSON_ENCODE_ANY | JSON_COMPACT) == 0)
        fputc('\n', stdout);
    fflush(stdout); /* what comes piece by piece is read so, too */
}

static enum status fail(const char *why)
{
    fprintf(stderr, "imapmuxctl: %s\n", why);
    return FAILED;
}

/* Shows one line of the answer. True: another one follows. */
static bool take_line(const struct invocation *call, const json_t *line, enum status *status_out)
{
    const json_t *item = json_object_get(line, "item"), *ok = json_object_get(line, "ok"),
                 *error = json_object_get(line, "error");

    if (item != NULL) {
        show(call, item);
        return true;
    }
    *status_out = json_is_true(ok) ? DONE : FAILED;
    if (json_is_true(ok)) {
        show(call, json_object_get(line, "result"));
    } else if (json_is_string(error)) {
        fputs("imapmuxctl: ", stderr);
        show_result(stderr, error);
    } else {
        fail("the answer makes no sense");
    }
    return false;
}

/* Who is turned away may be so before all is written; the answer tells, and the result does not. */
static void send_request(const struct invocation *call, int fd)
{
    json_t *request = ctl_request_write(&call->request);
    FILE *out = fdopen(dup(fd), "w");

    if (out != NULL && request != NULL && json_dumpf(request, out, JSON_COMPACT) == 0)
        fputc('\n', out);
    if (out != NULL)
        fclose(out);
    json_decref(request);
}

static enum status show_answer(const struct invocation *call, FILE *in)
{
    enum status status = FAILED;
    bool more = true;

    while (more) {
        json_t *line = json_loadf(in, JSON_DISABLE_EOF_CHECK, NULL);

        if (line == NULL)
            return fail("the connection has ended without an answer");
        more = take_line(call, line, &status);
        json_decref(line);
    }
    return ferror(stdout) ? fail("the result could not be written") : status;
}

static enum status carry_out(const struct invocation *call)
{
    int fd = connect_to(call->socket);
    FILE *in = fd < 0 ? NULL : fdopen(fd, "r");

    if (in == NULL)
        return NO_CONNECTION;
    send_request(call, fd);
    enum status status = show_answer(call, in);
    fclose(in);
    return status;
}

/* --- what to do --- */

static enum status refuse_command(const char *words, const char *first_word)
{
    fprintf(stderr, "imapmuxctl: there is no command \"%s\"; see imapmuxctl --help\n", words);
    usage_print_matching(stderr, first_word);
    return WRONG_USAGE;
}

static enum status help(int argc, char **argv)
{
    const struct ctl_command *command = NULL;
    char words[CTL_NAME_MAX];

    if (argc == 0)
        usage_print(stdout);
    else if (find_command(argc, argv, &command, words) > 0)
        usage_print_command(stdout, command);
    else
        return refuse_command(words, argv[0]);
    return DONE;
}

/* argv[0] is the first word that is no option. */
static enum status run(struct invocation *call, int argc, char **argv, char *program)
{
    char words[CTL_NAME_MAX];
    int count = find_command(argc, argv, &call->request.command, words);

    if (strcmp(argv[0], "help") == 0)
        return help(argc - 1, argv + 1);
    if (call->help)
        return help(argc, argv);
    if (count == 0)
        return refuse_command(words, argv[0]);
    argv[count - 1] = program; /* getopt's messages begin with it */
    if (!read_arguments(call, argc - count + 1, argv + count - 1))
        return WRONG_USAGE;
    if (!call->help)
        return carry_out(call);
    usage_print_command(stdout, call->request.command);
    return DONE;
}

int main(int argc, char **argv)
{
    struct invocation call = {.socket = getenv("IMAPMUX_SOCKET")};
    enum status status = WRONG_USAGE;

    signal(SIGPIPE, SIG_IGN);
    if (call.socket == NULL)
        call.socket = CTL_SOCKET;
    call.request.arguments = json_object();
    if (read_options(&call, argc, argv)) {
        if (optind < argc)
            status = run(&call, argc - optind, argv + optind, argv[0]);
        else if (call.help)
            status = help(0, NULL);
        else
            usage_print(stderr);
    }
    ctl_request_release(&call.request);
    return (int)status;
}
