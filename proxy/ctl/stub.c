/* Owns nothing for long: commands of the table that are still to be written say so. */
#include "proxy/ctl/tool.h"

#define X(id, name, ...)                                                                           \
    enum ctl_status tool_##id(const struct tool *tool, const struct ctl_request *request)          \
    {                                                                                              \
        (void)tool;                                                                                \
        (void)request;                                                                             \
        return tool_complain(CTL_FAILED, "\"%s\" is not there yet", name);                         \
    }
CTL_TOOL_COMMANDS(X)
