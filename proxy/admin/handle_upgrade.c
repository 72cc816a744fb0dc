/* Owns the command that starts a new process in the place of this one. */
#include "proxy/admin/handlers.h"

#include "proxy/process/control.h"
#include "proxy/process/launcher.h"

static void on_end(void *owner, long pid, const char *why)
{
    struct admin_call *call = owner;

    if (pid != 0)
        admin_answer(call, json_pack("{s:I}", "pid", (json_int_t)pid));
    else
        admin_refuse(call, "the new process did not start, and this one goes on: %s", why);
}

static void cancel(struct admin_call *call)
{
    struct control *control = call->context;

    launcher_forget(control->launcher);
}

void run_upgrade(struct admin_call *call)
{
    struct control *control = call->context;
    struct err err = {0};

    call->cancel = cancel;
    if (control->stopping)
        admin_refuse(call, "the process is %s", control->draining ? "draining" : "stopping");
    else if (!launcher_launch(control->launcher, on_end, call, &err))
        admin_refuse(call, "%s", err.text);
}
