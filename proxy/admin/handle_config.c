/* Owns the commands about the configuration. */
#include "proxy/admin/handlers.h"

#include "proxy/base/mem.h"
#include "proxy/process/control.h"

void run_config_show(struct admin_call *call)
{
    const struct control *control = call->context;
    const char *section = admin_argument(call, "section");
    char *text = NULL;
    size_t len = 0;
    FILE *out = open_memstream(&text, &len);

    if (section != NULL && !conf_has_section(section)) {
        admin_refuse(call, "there is no section \"%.60s\"", section);
    } else {
        if (out != NULL)
            conf_print(out, control->env.conf, section, admin_argument(call, "defaults") != NULL);
        bool good = out != NULL && fflush(out) == 0;
        admin_answer(call, good ? admin_text(text) : NULL);
    }
    if (out != NULL)
        fclose(out);
    mem_free(text);
}
