/*
 * Any line as a request for administration: it is refused with a reason, or it is a command of the
 * table with arguments that this one takes, and comes back the same when it is written and read
 * again. What it needs is counted argument by argument.
 */
#include <assert.h>
#include <stdint.h>
#include <stdlib.h>

#include "proxy/ctl/request.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static bool is_among(const char *words, const char *word)
{
    char all[256], *rest = all, *one;

    snprintf(all, sizeof all, "%s", words);
    while ((one = strsep(&rest, "|")) != NULL)
        if (strcmp(one, word) == 0)
            return true;
    return false;
}

static void check(const struct ctl_request *request)
{
    enum ctl_level level = request->command->level;
    size_t given = 0;

    assert(request->command >= ctl_commands && request->command < ctl_commands + CTL_COMMAND_COUNT);
    for (const struct ctl_argument *row = request->command->arguments; row->name != NULL; row++) {
        const char *text = ctl_request_argument(request, row->name);

        given += text != NULL;
        assert(text != NULL || row->presence != CTL_REQUIRED);
        assert(text == NULL || row->kind != CTL_CHOICE || is_among(row->words, text));
        if (text != NULL && row->level == CTL_OPERATE)
            level = CTL_OPERATE;
    }
    assert(given == json_object_size(request->arguments));
    assert(level == ctl_request_level(request));
}

static void check_again(const struct ctl_request *request)
{
    json_t *json = ctl_request_write(request);
    char *text = json_dumps(json, JSON_COMPACT);
    struct ctl_request again;

    assert(strchr(text, '\n') == NULL); /* it is one line */
    assert(ctl_request_read(&again, span_of(text), NULL));
    assert(again.command == request->command);
    assert(json_equal(again.arguments, request->arguments));
    ctl_request_release(&again);
    json_decref(json);
    free(text);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct ctl_request request;
    struct err err = {0};

    if (ctl_request_read(&request, (struct span){(const char *)data, size}, &err)) {
        assert(err.kind == ERR_NONE);
        check(&request);
        check_again(&request);
    } else {
        assert(err.kind == ERR_PEER && err.text[0] != '\0' && request.arguments == NULL);
    }
    ctl_request_release(&request);
    return 0;
}
