/* Owns what a configuration tells of files: where it was read from itself, and which it names. */
#include "proxy/base/conf_private.h"

#include "proxy/base/mem.h"
#include "proxy/base/sandbox.h"

#include <errno.h>

static const char outside[] =
    "outside of what this process may touch (process.sandbox): an upgrade "
    "or a restart takes it in";
static const char not_as_this_user[] = "Permission denied; if root may read it, an upgrade or a "
                                       "restart takes it in";

bool conf_note_file(struct conf_reader *reader, const char *path)
{
    struct conf_words *files = &reader->files;
    char **more = mem_resize(files->items, (files->count + 1) * sizeof *more);

    if (more == NULL)
        return false;
    files->items = more;
    more[files->count] = mem_copy_text(path, strlen(path));
    return more[files->count] != NULL && ++files->count > 0;
}

static bool visit_section(const struct conf *conf, const struct conf_section *section,
                          bool (*visit)(void *owner, const struct conf_place *place), void *owner)
{
    const char *field = (const char *)conf + section->offset, *values = field;
    size_t count = 1;

    if (section->many) {
        memcpy(&count, (const char *)conf + section->count_offset, sizeof count);
        memcpy(&values, field, sizeof values);
    }
    for (size_t i = 0; i < count; i++) {
        for (const struct conf_row *row = section->rows(); row->name != NULL; row++) {
            struct conf_place place = {section->name, i, row->name, NULL};

            if (row->kind != CONF_KIND_PATH)
                continue;
            memcpy(&place.path, values + i * section->size + row->offset, sizeof place.path);
            if (*place.path != '\0' && !visit(owner, &place))
                return false;
        }
    }
    return true;
}

bool conf_each_path(const struct conf *conf,
                    bool (*visit)(void *owner, const struct conf_place *place), void *owner)
{
    for (const struct conf_section *section = conf_sections; section->name != NULL; section++)
        if (!visit_section(conf, section, visit, owner))
            return false;
    for (size_t i = 0; i < conf->files.count; i++)
        if (!visit(owner, &(struct conf_place){"", 0, "", conf->files.items[i]}))
            return false;
    if (*conf->oauth.keys != '/')
        return true;
    return visit(owner, &(struct conf_place){"oauth", 0, "keys", conf->oauth.keys});
}

/* Within a sandbox another configuration may name files that cannot be had any more. */
static bool is_within(void *owner, const struct conf_place *place)
{
    bool is_written = strcmp(place->section, "metrics") == 0 ||
                      strcmp(place->section, "admin") == 0 ||
                      strcmp(place->setting, "snapshot") == 0;

    return (is_written ? sandbox_may_write(place->path) : sandbox_may_read(place->path)) ||
           conf_fail_in(owner, place->section, place->index, "setting \"%s\" of %s: %.100s: %s",
                        place->setting, place->section, place->path, outside);
}

bool conf_check_paths(struct conf_reader *reader, const struct conf *conf)
{
    return conf_each_path(conf, is_within, reader);
}

const char *conf_why_unread(const char *path)
{
    int failure = errno;

    if (failure != EACCES || !sandbox_is_entered())
        return strerror(failure);
    return sandbox_may_read(path) ? not_as_this_user : outside;
}
