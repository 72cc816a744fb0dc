/* Owns the command that puts another configuration in force. */
#include "proxy/admin/handlers.h"

#include "proxy/base/mem.h"
#include "proxy/process/reload.h"

struct reload_call {
    struct reload_request request; /* first member */
    struct admin_call *call;       /* NULL: nobody waits for the answer any more */
};

static json_t *list(const struct conf_words *words)
{
    json_t *told = json_array();

    for (size_t i = 0; i < words->count; i++)
        json_array_append_new(told, admin_text(words->items[i]));
    return told;
}

static void on_done(struct reload_request *request, const struct conf_changes *changes,
                    const struct err *err)
{
    struct reload_call *own = (struct reload_call *)request;

    if (own->call != NULL && err->kind != ERR_NONE)
        admin_refuse(own->call, "%s", err->text);
    else if (own->call != NULL)
        admin_answer(own->call, json_pack("{s:o, s:o}", "changed", list(&changes->changed),
                                          "needs_restart", list(&changes->needs_restart)));
    mem_free(own);
}

static void cancel(struct admin_call *call)
{
    ((struct reload_call *)call->state)->call = NULL;
}

void run_reload(struct admin_call *call)
{
    struct control *control = call->context;
    struct reload_call *own = mem_new(sizeof *own);
    struct err err = {0};

    if (own == NULL) {
        admin_answer(call, NULL);
        return;
    }
    own->request.on_done = on_done;
    own->call = call;
    call->state = own;
    call->cancel = cancel;
    if (reload_start(control->reload, &own->request, &err))
        return;
    call->cancel = NULL;
    mem_free(own);
    admin_fail(call, &err);
}
