/* Owns the table of commands. What is not in it is taken for the worst. */
#include "proxy/imap/command.h"

static const struct command commands[] = {
    {"CAPABILITY", EFFECT_NONE, NULL},
    {"NOOP", EFFECT_NONE, NULL},
    {"CHECK", EFFECT_NONE, NULL},
    {"SELECT", EFFECT_SELECTS, NULL},
    {"EXAMINE", EFFECT_SELECTS, NULL},
    {"CLOSE", EFFECT_UNSELECTS, NULL},
    {"UNSELECT", EFFECT_UNSELECTS, NULL},
    {"IDLE", EFFECT_IDLES, NULL},
    {"LOGOUT", EFFECT_ENDS, NULL},
    {"UID", EFFECT_UID, NULL},
    {"FETCH", EFFECT_NONE, NULL},
    {"STORE", EFFECT_STORES, NULL},
    {"SEARCH", EFFECT_NONE, NULL},
    {"SORT", EFFECT_NONE, NULL},
    {"THREAD", EFFECT_NONE, NULL},
    {"COPY", EFFECT_NONE, NULL},
    {"MOVE", EFFECT_NONE, NULL},
    {"EXPUNGE", EFFECT_NONE, NULL},
    {"APPEND", EFFECT_BULK, NULL},
    {"LIST", EFFECT_NONE, NULL},
    {"LSUB", EFFECT_NONE, NULL},
    {"STATUS", EFFECT_NONE, NULL},
    {"CREATE", EFFECT_NONE, NULL},
    {"DELETE", EFFECT_NONE, NULL},
    {"RENAME", EFFECT_NONE, NULL},
    {"SUBSCRIBE", EFFECT_NONE, NULL},
    {"UNSUBSCRIBE", EFFECT_NONE, NULL},
    {"NAMESPACE", EFFECT_NONE, NULL},
    {"GETQUOTA", EFFECT_NONE, NULL},
    {"GETQUOTAROOT", EFFECT_NONE, NULL},
    {"SETQUOTA", EFFECT_NONE, NULL},
    {"GETACL", EFFECT_NONE, NULL},
    {"SETACL", EFFECT_NONE, NULL},
    {"DELETEACL", EFFECT_NONE, NULL},
    {"LISTRIGHTS", EFFECT_NONE, NULL},
    {"MYRIGHTS", EFFECT_NONE, NULL},
    {"GETMETADATA", EFFECT_NONE, NULL},
    {"SETMETADATA", EFFECT_NONE, NULL},
    {"STARTTLS", EFFECT_REFUSED, "STARTTLS is only possible before login"},
    {"LOGIN", EFFECT_REFUSED, "Already logged in"},
    {"AUTHENTICATE", EFFECT_REFUSED, "Already logged in"},
    {"COMPRESS", EFFECT_REFUSED, "COMPRESS is not supported"},
    {"UNAUTHENTICATE", EFFECT_REFUSED, "UNAUTHENTICATE is not supported"},
};

const struct command command_unknown = {NULL, EFFECT_UNKNOWN, NULL};
const struct command command_over_long = {NULL, EFFECT_REFUSED, "Command tag is too long"};

bool command_find(struct span name, bool complete, const struct command **command_out)
{
    *command_out = &command_unknown;
    for (size_t i = 0; i < sizeof commands / sizeof commands[0]; i++) {
        const char *word = commands[i].word;

        if (!complete && name.len <= strlen(word) && strncasecmp(name.ptr, word, name.len) == 0)
            return false;
        if (complete && span_is(name, word)) {
            *command_out = &commands[i];
            return true;
        }
    }
    return true;
}
