/*
 * Owns how this process gives its place to another one (proxy/process/takeover.h): the steps, and
 * what is taken back when the other one fails.
 */
#include "proxy/admin/handlers.h"

#include "proxy/base/log.h"
#include "proxy/base/mem.h"
#include "proxy/base/notify.h"
#include "proxy/fleet/fleet.h"
#include "proxy/process/control.h"
#include "proxy/process/ending.h"
#include "proxy/process/listeners.h"
#include "proxy/process/reload.h"
#include "proxy/process/takeover.h"
#include "proxy/store/health.h"

#include <string.h>
#include <unistd.h>

enum step { BEGUN, RELEASING, RELEASED };

struct handover {
    struct control *control;
    struct admin_call
        *begin; /* under way until the end; its connection tells that the heir lives */
    struct admin_call *release; /* NULL once it is answered */
    pid_t heir;
    enum step step;
};

/* --- begin --- */

/* The heir has gone, or was refused: this process goes on. */
static void cancel_begin(struct admin_call *call)
{
    struct handover *handover = call->state;
    struct control *control = handover->control;

    if (handover->step != BEGUN && !control->stopping) { /* else the heir goes on */
        fleet_take_back(control->fleet);
        control->give_up(control, true);
    }
    log_event(LOG_LEVEL_WARNING, "hand-over failed",
              "process %ld has gone before it was ready: this one goes on", (long)handover->heir);
    if (handover->release != NULL)
        handover->release->state = NULL;
    control->handover = NULL;
    mem_free(handover);
}

struct sockets {
    struct admin_call *call;
    int fds[ADMIN_PASS_MAX];
    size_t count;
    bool good;
};

static void pass(struct sockets *sockets)
{
    sockets->good =
        sockets->good &&
        admin_pass(sockets->call, json_pack("{s:I}", "sockets", (json_int_t)sockets->count),
                   sockets->fds, sockets->count);
    sockets->count = 0;
}

static void add_socket(void *owner, int fd, const char *address)
{
    struct sockets *sockets = owner;

    (void)address;
    sockets->fds[sockets->count++] = fd;
    if (sockets->count == ADMIN_PASS_MAX)
        pass(sockets);
}

static bool pass_all(struct control *control, struct admin_call *call)
{
    struct sockets sockets = {.call = call, .good = true};

    listeners_all(control->listeners, add_socket, &sockets);
    if (sockets.count > 0)
        pass(&sockets);
    return sockets.good;
}

static void begin(struct control *control, struct admin_call *call)
{
    const char *protocol = admin_argument(call, "protocol");
    struct handover *handover;

    if (protocol == NULL || strcmp(protocol, TAKEOVER_PROTOCOL) != 0) {
        admin_refuse(call,
                     "imapmux " IMAPMUX_VERSION " hands over by protocol " TAKEOVER_PROTOCOL
                     ", not by %.20s",
                     protocol == NULL ? "none" : protocol);
    } else if (control->handover != NULL) {
        admin_refuse(call, "process %ld is about to take over already",
                     (long)control->handover->heir);
    } else if (control->stopping) {
        admin_refuse(call, "the process is %s", control->draining ? "draining" : "stopping");
    } else if (reload_is_under_way(control->reload)) {
        admin_refuse(call, "a reload is under way");
    } else if ((handover = mem_new(sizeof *handover)) == NULL) {
        admin_answer(call, NULL);
    } else if (!pass_all(control, call)) {
        mem_free(handover);
        admin_refuse(call, "the listening sockets could not be sent");
    } else {
        *handover = (struct handover){.control = control, .begin = call, .heir = admin_peer(call)};
        control->handover = handover;
        call->state = handover;
        call->cancel = cancel_begin;
        admin_item(call, json_pack("{s:s, s:s}", "id", fleet_id(control->fleet), "version",
                                   IMAPMUX_VERSION));
        log_event(LOG_LEVEL_INFO, "hand-over", "to process %ld", (long)handover->heir);
    }
}

/* --- release --- */

static void on_released(void *owner)
{
    struct control *control = owner;
    struct handover *handover = control->handover;

    if (handover == NULL)
        return; /* the heir has gone meanwhile, and this process ends: nothing was taken back */

    struct admin_call *call = handover->release;

    handover->release = NULL;
    handover->step = RELEASED;
    if (call != NULL)
        admin_answer(call, json_null());
}

static void cancel_release(struct admin_call *call)
{
    struct handover *handover = call->state;

    if (handover != NULL)
        handover->release = NULL;
}

static void release(struct handover *handover, struct admin_call *call)
{
    struct control *control = handover->control;

    if (handover->step != BEGUN) {
        admin_refuse(call, "it was released before");
        return;
    }
    handover->step = RELEASING;
    handover->release = call;
    call->state = handover;
    call->cancel = cancel_release;
    control->give_up(control, false);
    if (!fleet_release(control->fleet, on_released, control))
        on_released(control);
}

/* --- finish --- */

static void finish(struct handover *handover, struct admin_call *call)
{
    struct control *control = handover->control;
    bool beside = admin_argument(call, "beside") != NULL;
    struct err err = {0};

    if (handover->step != RELEASED) {
        admin_refuse(call, "it was not released before");
        return;
    }
    if (beside && !admin_give_place(control->admin, handover->heir, &err)) {
        admin_fail(call, &err);
        return;
    }
    control->handover = NULL;
    control->has_heir = true;
    notify_leave();
    fleet_has_heir(control->fleet);
    if (control->health != NULL)
        health_stop(control->health);
    bool stops = control->stopping && !control->draining; /* and so it ends, sooner */
    if (!stops && !ending_drain(control->ending, control->env.conf->process.drain_time,
                                "another process serves"))
        ending_stop(control->ending, "another process serves");
    admin_answer(handover->begin, json_null());
    admin_answer(call, json_null());
    mem_free(handover);
}

void run_handover(struct admin_call *call)
{
    struct control *control = call->context;
    const char *step = admin_argument(call, "step");
    struct handover *handover = control->handover;

    if (strcmp(step, "begin") == 0)
        begin(control, call);
    else if (handover == NULL || handover->heir != admin_peer(call))
        admin_refuse(call, "this process is not about to take over");
    else if (strcmp(step, "release") == 0)
        release(handover, call);
    else
        finish(handover, call);
}
