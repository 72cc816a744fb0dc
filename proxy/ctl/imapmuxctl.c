/* Owns the program imapmuxctl: its command line. */
#include "proxy/ctl/amount.h"
#include "proxy/ctl/manual.h"
#include "proxy/ctl/tool.h"
#include "proxy/ctl/tool_all.h"
#include "proxy/ctl/usage.h"

#include <getopt.h>
#include <signal.h>
#include <stdlib.h>

struct invocation {
    struct tool tool;
    bool help;
    struct ctl_request request;
};

/* --- the command line --- */

enum {
    OPT_COMPLETION = 256,
    OPT_TIMEOUT,
    OPT_MANUAL,
    OPT_ARGUMENT
}; /* the command's arguments count from the latter */

static const struct option global_options[] = {
    {"socket", required_argument, NULL, 's'},
    {"timeout", required_argument, NULL, OPT_TIMEOUT},
    {"all", no_argument, NULL, 'a'},
    {"json", no_argument, NULL, 'j'},
    {"help", no_argument, NULL, 'h'},
    {"version", no_argument, NULL, 'V'},
    {"print-completion", no_argument, NULL, OPT_COMPLETION},
    {"print-man", no_argument, NULL, OPT_MANUAL},
    {NULL, 0, NULL, 0},
};
enum { GLOBAL_OPTIONS = sizeof global_options / sizeof *global_options - 1 };

static bool complain(const char *what, const char *which)
{
    fprintf(stderr, "imapmuxctl: %s%s; see imapmuxctl --help\n", what, which);
    return false;
}

/* Sets an argument, or adds one of several; false when it has been set before. */
static bool set_argument(struct invocation *call, const struct ctl_argument *row, const char *text)
{
    json_t *set = json_object_get(call->request.arguments, row->name), *value = json_string(text);

    if (set != NULL && row->kind != CTL_TEXTS) {
        json_decref(value);
        return complain("given twice: ", row->name);
    }
    if (value == NULL)
        return complain("no text in UTF-8: ", row->name);
    if (set != NULL)
        return json_array_append_new(set, value) == 0;
    if (row->kind == CTL_TEXTS)
        value = json_pack("[o]", value);
    return json_object_set_new(call->request.arguments, row->name, value) == 0;
}

static int print_manual(void)
{
    struct err err = {0};

    if (manual_print(stdin, stdout, &err))
        return CTL_DONE;
    complain("the template: ", err.text);
    return CTL_FAILED;
}

/* Getopt has said what is wrong; this is where to read on. */
static bool complain_of_option(const struct ctl_command *command)
{
    if (command == NULL)
        fputs("imapmuxctl: see imapmuxctl --help\n", stderr);
    else
        fprintf(stderr, "imapmuxctl: see imapmuxctl help %s\n", command->name);
    return false;
}

/* False when it is no option, or makes no sense. */
static bool take_option(struct invocation *call, int option)
{
    switch (option) {
    case 's':
        call->tool.socket = optarg;
        return true;
    case 'a':
        call->tool.all = true;
        return true;
    case 'j':
        call->tool.json = true;
        return true;
    case 'h':
        call->help = true;
        return true;
    case OPT_TIMEOUT:
        return amount_read_duration(optarg, &call->tool.timeout_ms) ||
               complain("expected a time like 10s or 2m, found ", optarg);
    case 'V':
        puts("imapmuxctl " IMAPMUX_VERSION);
        exit(CTL_DONE);
    case OPT_COMPLETION:
        usage_print_completion(stdout);
        exit(CTL_DONE);
    case OPT_MANUAL:
        exit(print_manual());
    default:
        return complain_of_option(call->request.command);
    }
}

/*
 * Reads options from argv[1] on: the global ones, which end at the first word, or, once there is a
 * command, all that stand somewhere, its arguments too, which come first: --timeout of a move is
 * its own.
 */
static bool read_options(struct invocation *call, int argc, char **argv)
{
    static const struct ctl_argument none[1];
    const struct ctl_command *command = call->request.command;
    const struct ctl_argument *rows = command == NULL ? none : command->arguments;
    const char *letters = command == NULL ? "+s:ajhV" : "s:ajhV";
    struct option options[GLOBAL_OPTIONS + CTL_ARGUMENTS_MAX + 1] = {0};
    bool ok = true;
    int count = 0;

    for (; rows[count].name != NULL; count++)
        options[count] = (struct option){
            rows[count].name, rows[count].kind == CTL_FLAG ? no_argument : required_argument, NULL,
            OPT_ARGUMENT + count};
    memcpy(options + count, global_options, sizeof global_options);
    optind = 0; /* from the start, as glibc has it */
    for (int option; ok && (option = getopt_long(argc, argv, letters, options, NULL)) != -1;)
        ok = option < OPT_ARGUMENT ? take_option(call, option)
                                   : set_argument(call, &rows[option - OPT_ARGUMENT],
                                                  optarg == NULL ? CTL_SET : optarg);
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
        while (row->name != NULL && (!ctl_has_place(row) ||
                                     (row->kind != CTL_TEXTS &&
                                      json_object_get(call->request.arguments, row->name) != NULL)))
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

/* --- what to do --- */

static enum ctl_status refuse_command(const char *words, const char *first_word)
{
    fprintf(stderr, "imapmuxctl: there is no command \"%s\"; see imapmuxctl --help\n", words);
    usage_print_matching(stderr, first_word);
    return CTL_WRONG_USAGE;
}

static enum ctl_status help(int argc, char **argv)
{
    const struct ctl_command *command = NULL;
    char words[CTL_NAME_MAX];

    if (argc == 0)
        usage_print(stdout);
    else if (find_command(argc, argv, &command, words) > 0)
        usage_print_command(stdout, command);
    else
        return refuse_command(words, argv[0]);
    return CTL_DONE;
}

/* argv[0] is the first word that is no option. */
static enum ctl_status run(struct invocation *call, int argc, char **argv, char *program)
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
        return CTL_WRONG_USAGE;
    if (!call->help && call->tool.all)
        return tool_all(&call->tool, &call->request);
    if (!call->help)
        return tool_run(&call->tool, &call->request);
    usage_print_command(stdout, call->request.command);
    return CTL_DONE;
}

int main(int argc, char **argv)
{
    struct invocation call = {.tool.socket = getenv("IMAPMUX_SOCKET")};
    enum ctl_status status = CTL_WRONG_USAGE;

    signal(SIGPIPE, SIG_IGN);
    if (call.tool.socket == NULL)
        call.tool.socket = CTL_SOCKET;
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
