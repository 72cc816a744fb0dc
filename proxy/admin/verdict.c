/* Owns the sentence about the next login: what is first in its way, in the order of a login. */
#include "proxy/admin/verdict.h"

#include <stdarg.h>
#include <stdio.h>

static void say(char verdict_out[VERDICT_MAX], const char *format, ...)
    __attribute__((format(printf, 2, 3)));

static void say(char verdict_out[VERDICT_MAX], const char *format, ...)
{
    size_t len = strlen(verdict_out);
    va_list args;

    va_start(args, format);
    vsnprintf(verdict_out + len, VERDICT_MAX - len, format, args);
    va_end(args);
}

static void refuse(char verdict_out[VERDICT_MAX], const struct err *err)
{
    say(verdict_out, "is refused as %s: %s", err_response_code(err->kind), err->text);
}

/* The sources need not be asked for a password that is remembered, or cannot be. */
static bool is_remembered(const struct inquiry *inquiry)
{
    return inquiry->memory.password == CACHE_VERIFIED ||
           (inquiry->memory.password == CACHE_STALE && inquiry->account.kind == ERR_UNAVAILABLE);
}

/* True if her account stands in the way, whatever she proves. */
static bool account_refuses(const struct verdict_view *view, char verdict_out[VERDICT_MAX])
{
    const struct inquiry *inquiry = view->inquiry;
    enum err_kind kind = inquiry->account.kind;

    if (kind == ERR_NONE)
        return false;
    if (is_remembered(inquiry)) {
        say(verdict_out, "with the password that is remembered: ");
        return false;
    }
    if (!view->conf->auth.look_up) {
        say(verdict_out, "with a certificate or a token: ");
        return false;
    }
    refuse(verdict_out, &inquiry->account);
    return true;
}

static bool limits_refuse(const struct verdict_view *view, char verdict_out[VERDICT_MAX])
{
    const struct inquiry *inquiry = view->inquiry;
    uint64_t max = (uint64_t)view->conf->limits.per_user;
    uint64_t count = inquiry->sessions_known && inquiry->all_sessions > inquiry->sessions
                         ? inquiry->all_sessions
                         : inquiry->sessions;

    if (max == 0 || count < max)
        return false;
    say(verdict_out, "is refused as LIMIT: %llu sessions are open, limits.per_user is %llu",
        (unsigned long long)count, (unsigned long long)max);
    return true;
}

static bool move_holds(const struct verdict_view *view, char verdict_out[VERDICT_MAX])
{
    const struct inquiry *inquiry = view->inquiry;
    const struct route *route = &inquiry->route;
    bool moves =
        inquiry->has_route && (route->state == ROUTE_MOVING || route->state == ROUTE_COMMITTED);

    if (!moves && !inquiry->is_held)
        return false;
    say(verdict_out, "waits until the mailbox is moved");
    if (moves)
        say(verdict_out, " from %s to %s", route->shard, route->target);
    say(verdict_out, ", at most %llu s, and is refused as UNAVAILABLE after that",
        (unsigned long long)view->conf->cutover.hold_timeout / 1000);
    return true;
}

static void tell_success(const struct verdict_view *view, char verdict_out[VERDICT_MAX])
{
    const struct inquiry *inquiry = view->inquiry;
    const struct route *route = &inquiry->route;

    say(verdict_out, "gets in at shard %s as %s", view->serving->title, route->backend_user);
    if (strcmp(view->serving->title, route->shard) != 0)
        say(verdict_out, ", the replica of %s", route->shard);
    if (route->stale)
        say(verdict_out, ", where it was %llu s ago, for Redis does not answer",
            (unsigned long long)route->age_ms / 1000);
    if (inquiry->network_count > 0)
        say(verdict_out, ", if the client is in one of the networks");
    if (inquiry->memory.delay_ms > 0 && !is_remembered(inquiry))
        say(verdict_out, ", after a wait of %llu ms for wrong passwords",
            (unsigned long long)inquiry->memory.delay_ms);
}

void verdict_tell(const struct verdict_view *view, char verdict_out[VERDICT_MAX])
{
    const struct inquiry *inquiry = view->inquiry;

    verdict_out[0] = '\0';
    if (account_refuses(view, verdict_out) || limits_refuse(view, verdict_out) ||
        move_holds(view, verdict_out))
        return;
    if (inquiry->route_err.kind != ERR_NONE)
        refuse(verdict_out, &inquiry->route_err);
    else if (view->refusal->kind != ERR_NONE)
        refuse(verdict_out, view->refusal);
    else
        tell_success(view, verdict_out);
}
