/*
 * Names of commands, as they come octet by octet: a known one is never given up before it is
 * complete, nothing else is ever taken for one, and case does not matter.
 */
#include <assert.h>
#include <ctype.h>
#include <stdint.h>

#include "proxy/imap/command.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const struct command *find(struct span name)
{
    const struct command *command = NULL;

    assert(command_find(name, true, &command));
    assert(command == &command_unknown || span_is(name, command->word));
    assert((command->effect == EFFECT_REFUSED) == (command->refusal != NULL));
    return command;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char swapped[32];
    struct span name = {(const char *)data, size};
    bool given_up = false;

    if (size >= sizeof swapped)
        return 0;

    const struct command *command = find(name);

    for (size_t len = 0; len <= size; len++) {
        const struct command *early = NULL;
        bool decided = command_find((struct span){name.ptr, len}, false, &early);

        assert(early == &command_unknown);
        assert(decided || !given_up); /* what cannot become a known one never can again */
        given_up = decided;
    }
    assert(!given_up || command == &command_unknown);
    for (size_t i = 0; i < size; i++)
        swapped[i] = (char)(isupper(data[i]) ? tolower(data[i]) : toupper(data[i]));
    assert(find((struct span){swapped, size}) == command);
    return 0;
}
