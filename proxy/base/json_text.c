/* Owns how a text that may be anything becomes JSON. */
#include "proxy/base/json_text.h"

#include "proxy/base/mem.h"

#include <string.h>

json_t *json_text(const char *text)
{
    json_t *json = json_string(text);
    char *plain = json == NULL ? mem_copy_text(text, strlen(text)) : NULL;

    if (plain == NULL)
        return json;
    for (char *at = plain; *at != '\0'; at++)
        if ((unsigned char)*at >= 0x80)
            *at = '?';
    json = json_string(plain);
    mem_free(plain);
    return json;
}
