/* Owns the command `waves`. */
#include "proxy/ctl/tool.h"

enum ctl_status tool_waves(const struct tool *tool, const struct ctl_request *request)
{
    const char *id = ctl_request_argument(request, "wave");
    json_t *arguments = id == NULL ? json_object() : json_pack("{s:s}", "wave", id);
    enum ctl_status status = tool_ask(tool, id == NULL ? "wave list" : "wave show", arguments);

    json_decref(arguments);
    return status;
}
