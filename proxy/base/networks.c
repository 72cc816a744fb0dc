/* Owns lists of address blocks. */
#include "proxy/base/networks.h"

#include "proxy/base/mem.h"

bool networks_init(struct networks *networks, const struct conf_words *words, const char *setting,
                   struct err *err)
{
    *networks = (struct networks){.items = mem_array(words->count + 1, sizeof *networks->items)};
    if (networks->items == NULL)
        return err_set(err, ERR_INTERNAL, "%s: no memory", setting);
    for (; networks->count < words->count; networks->count++)
        if (!network_parse(words->items[networks->count], &networks->items[networks->count]))
            return err_set(err, ERR_CONFIG, "%s: \"%s\" is no network", setting,
                           words->items[networks->count]);
    return true;
}

void networks_release(struct networks *networks)
{
    mem_free(networks->items);
    *networks = (struct networks){0};
}

bool networks_contain(const struct networks *networks, const union address *address)
{
    for (size_t i = 0; i < networks->count; i++)
        if (network_contains(&networks->items[i], address))
            return true;
    return false;
}
