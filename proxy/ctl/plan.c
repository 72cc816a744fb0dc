/* Owns what the options of moves mean. */
#include "proxy/ctl/plan.h"

#include "proxy/ctl/amount.h"

#include <stdlib.h>

static const struct amount_unit rates[] = {
    {"/s", 1000}, {"/min", 60000}, {"/h", 3600000}, {NULL, 0}};

static bool read_timeout(struct plan *plan, const char *text, struct err *err)
{
    if (text == NULL || amount_read_duration(text, &plan->move.timeout_ms))
        return true;
    return err_set(err, ERR_CONFIG, "--timeout is \"%s\", expected a time like 60s or 2m", text);
}

static bool read_rate(struct plan *plan, const char *text, struct err *err)
{
    uint64_t number, unit_ms;

    if (text == NULL)
        return true;
    if (!amount_read(text, rates, &number, &unit_ms))
        return err_set(err, ERR_CONFIG, "--rate is \"%s\", expected one like 60/min, 2/s, 500/h",
                       text);
    plan->interval_ms = (double)unit_ms / (double)number;
    return true;
}

static bool read_parallel(struct plan *plan, const char *text, struct err *err)
{
    static const struct amount_unit none[] = {{"", 1}, {NULL, 0}};
    uint64_t number, unit;

    if (text == NULL)
        return true;
    if (!amount_read(text, none, &number, &unit) || number > PLAN_PARALLEL_MAX)
        return err_set(err, ERR_CONFIG, "--parallel is \"%s\", expected 1 to %d", text,
                       PLAN_PARALLEL_MAX);
    plan->parallel = number;
    return true;
}

static bool read_errors(struct plan *plan, const char *text, struct err *err)
{
    char *end = NULL;

    if (text == NULL)
        return true;
    plan->errors_percent = strtod(text, &end);
    if (*text < '0' || *text > '9' || strcmp(end, "%") != 0 || !(plan->errors_percent <= 100))
        return err_set(err, ERR_CONFIG, "--stop-if-errors is \"%s\", expected 0%% to 100%%", text);
    return true;
}

/* "none" is no command, and neither is an empty one. */
static const char *command_of(const char *text)
{
    return text == NULL || *text == '\0' || strcmp(text, "none") == 0 ? NULL : text;
}

bool plan_read(struct plan *plan_out, const json_t *arguments, struct err *err)
{
    const char *verify = json_string_value(json_object_get(arguments, "verify"));

    *plan_out = (struct plan){
        .parallel = 1, .errors_percent = 1, .move.timeout_ms = 60000, .move.give_up_at = 1};
    plan_out->move.sync = command_of(json_string_value(json_object_get(arguments, "sync")));
    plan_out->move.presync = command_of(json_string_value(json_object_get(arguments, "presync")));
    plan_out->move.verify = verify == NULL ? MOVE_VERIFY_BUILTIN : command_of(verify);
    return read_timeout(plan_out, json_string_value(json_object_get(arguments, "timeout")), err) &&
           read_rate(plan_out, json_string_value(json_object_get(arguments, "rate")), err) &&
           read_parallel(plan_out, json_string_value(json_object_get(arguments, "parallel")),
                         err) &&
           read_errors(plan_out, json_string_value(json_object_get(arguments, "stop-if-errors")),
                       err);
}
