/* Owns what is said of a name in proxy.conf that is none: where it belongs, or what was meant. */
#include "proxy/base/conf_private.h"

#include "proxy/base/nearest.h"

#include <stdio.h>

static const struct conf_section *find_section(const char *name)
{
    const struct conf_section *section = conf_sections;

    while (section->name != NULL && strcmp(section->name, name) != 0)
        section++;
    return section->name == NULL ? NULL : section;
}

/* A secret may also be in a file of its own, which NAME_file names. */
static bool has_setting(const struct conf_section *section, const char *name)
{
    for (const struct conf_row *row = section->rows(); row->name != NULL; row++) {
        size_t len = strlen(row->name);

        if (strncmp(name, row->name, len) == 0 &&
            (name[len] == '\0' ||
             (row->kind == CONF_KIND_SECRET && strcmp(name + len, "_file") == 0)))
            return true;
    }
    return false;
}

/* ": that is a setting of http, listener"; false when it is of none. */
static bool say_where(const char *name, char *out, size_t size)
{
    size_t len = 0;

    for (const struct conf_section *section = conf_sections; section->name != NULL; section++)
        if (has_setting(section, name) && len < size)
            len += (size_t)snprintf(out + len, size - len, "%s%s",
                                    len == 0 ? ": that is a setting of " : ", ", section->name);
    return len > 0;
}

static void offer_sections(struct nearest *nearest)
{
    for (const struct conf_section *section = conf_sections; section->name != NULL; section++)
        nearest_offer(nearest, span_of(section->name));
    nearest_offer(nearest, span_of("include"));
}

static void offer_settings(struct nearest *nearest, const struct conf_section *section)
{
    for (const struct conf_row *row = section->rows(); row->name != NULL; row++)
        nearest_offer(nearest, span_of(row->name));
}

void conf_say_unknown(const char *section_name, const char *name, char *out, size_t size)
{
    const struct conf_section *section = find_section(section_name);
    struct nearest nearest;
    size_t len;

    nearest_init(&nearest, span_of(name));
    if (section == NULL) {
        len = (size_t)snprintf(out, size, "there is no section \"%.60s\"", name);
        offer_sections(&nearest);
    } else {
        len =
            (size_t)snprintf(out, size, "section %s has no setting \"%.60s\"", section_name, name);
        offer_settings(&nearest, section);
    }
    if (len >= size || say_where(name, out + len, size - len))
        return;
    if (nearest.word.len > 0)
        snprintf(out + len, size - len, ": is \"%.*s\" meant?", SPAN_ARG(nearest.word));
    else
        snprintf(out + len, size - len, "; imapmux --print-defaults shows all there are");
}
