/* Owns the comparison of two configurations, by the tables of settings.def. */
#include "proxy/base/conf_change.h"

#include "proxy/base/conf_private.h"
#include "proxy/base/file_version.h"
#include "proxy/base/mem.h"

#include <assert.h>

enum { NAME_MAX_BYTES = 192 };

/* Two configurations, of the same tables. */
struct pair {
    const struct conf *before;
    struct conf *after;
    struct conf_changes *changes;
};

static const struct conf_section *section_named(const char *name)
{
    const struct conf_section *section = conf_sections;

    while (strcmp(section->name, name) != 0)
        section++;
    return section;
}

/* --- files --- */

struct conf_seen {
    char *path;
    struct file_version version;
};

static bool count_file(void *owner, const struct conf_place *place)
{
    (void)place;
    ++*(size_t *)owner;
    return true;
}

static bool see_file(void *owner, const struct conf_place *place)
{
    struct conf *conf = owner;
    struct conf_seen *seen = &conf->seen[conf->seen_count];

    seen->path = mem_copy_text(place->path, strlen(place->path));
    seen->version = file_version_of(place->path);
    return seen->path != NULL && ++conf->seen_count > 0;
}

bool conf_see_files(struct conf *conf)
{
    size_t count = 0;

    (void)conf_each_path(conf, count_file, &count);
    conf->seen = mem_array(count + 1, sizeof *conf->seen);
    return conf->seen != NULL && conf_each_path(conf, see_file, conf);
}

void conf_forget_files(struct conf *conf)
{
    for (size_t i = 0; i < conf->seen_count; i++)
        mem_free(conf->seen[i].path);
    mem_free(conf->seen);
}

static const struct file_version *seen_at(const struct conf *conf, const char *path)
{
    for (size_t i = 0; i < conf->seen_count; i++)
        if (strcmp(conf->seen[i].path, path) == 0)
            return &conf->seen[i].version;
    return NULL;
}

/* Whether it is of a file that is read once. Others are written here, or looked at all the time. */
static bool is_read_once(const struct conf_section *section, const struct conf_row *row)
{
    return row->kind == CONF_KIND_PATH && strcmp(section->name, "metrics") != 0 &&
           strcmp(section->name, "admin") != 0 && strcmp(section->name, "passwd") != 0 &&
           strcmp(row->name, "snapshot") != 0;
}

/* Both have the same path there: whether the file has changed between them. */
static bool same_content(const struct conf_section *section, const struct conf_row *row,
                         const struct conf *one, const struct conf *other, const void *values)
{
    const struct file_version *a, *b;
    const char *path;

    if (!is_read_once(section, row))
        return true;
    path = *(char *const *)((const char *)values + row->offset);
    a = seen_at(one, path);
    b = seen_at(other, path);
    return a == NULL || b == NULL || file_version_same(a, b);
}

/* --- values --- */

static bool same_words(const struct conf_words *one, const struct conf_words *other)
{
    if (one->count != other->count)
        return false;
    for (size_t i = 0; i < one->count; i++)
        if (strcmp(one->items[i], other->items[i]) != 0)
            return false;
    return true;
}

static bool same_secret(const struct secret *one, const struct secret *other)
{
    return one->len == other->len &&
           (one->len == 0 || memcmp(one->bytes, other->bytes, one->len) == 0);
}

/* `one` and `other` are structs of the row's section. */
static bool same_value(const struct conf_row *row, const void *one, const void *other)
{
    const void *a = (const char *)one + row->offset, *b = (const char *)other + row->offset;

    switch (row->kind) {
    case CONF_KIND_TEXT:
    case CONF_KIND_PATH:
        return strcmp(*(char *const *)a, *(char *const *)b) == 0;
    case CONF_KIND_WORDS:
        return same_words(a, b);
    case CONF_KIND_SECRET:
        return same_secret(a, b);
    default:
        return memcmp(a, b, conf_value_size(row)) == 0;
    }
}

static bool same_section(const struct conf_section *section, const void *one, const void *other)
{
    for (const struct conf_row *row = section->rows(); row->name != NULL; row++)
        if (!same_value(row, one, other))
            return false;
    return true;
}

bool conf_same_shard(const struct conf_shard *one, const struct conf_shard *other)
{
    return same_section(section_named("shard"), one, other);
}

/* Of a section that both have alike. */
static bool same_files(const struct conf_section *section, const struct conf *one,
                       const struct conf *other)
{
    for (const struct conf_row *row = section->rows(); row->name != NULL; row++)
        if (!same_content(section, row, one, other, (const char *)one + section->offset))
            return false;
    return true;
}

bool conf_same_auth(const struct conf *one, const struct conf *other)
{
    static const char *const names[] = {"auth",  "auth_cache", "passwd",  "ldap",
                                        "oauth", "username",   "throttle"};
    bool same = true;

    for (size_t i = 0; same && i < sizeof names / sizeof names[0]; i++) {
        const struct conf_section *section = section_named(names[i]);

        same = (strcmp(section->name, "throttle") == 0 && !one->throttle.shared) ||
               (same_section(section, (const char *)one + section->offset,
                             (const char *)other + section->offset) &&
                same_files(section, one, other));
    }
    return same;
}

/* False without memory. */
static bool copy_words(const struct conf_words *from, struct conf_words *to)
{
    *to = (struct conf_words){.items = mem_array(from->count + 1, sizeof *to->items)};
    for (; to->items != NULL && to->count < from->count; to->count++) {
        const char *text = from->items[to->count];

        to->items[to->count] = mem_copy_text(text, strlen(text));
        if (to->items[to->count] == NULL)
            return false;
    }
    return to->items != NULL;
}

/* The value of `from` takes the place of that of `to`. False without memory. */
static bool keep_value(const struct conf_row *row, const void *from, void *to)
{
    const void *value = (const char *)from + row->offset;
    void *place = (char *)to + row->offset;

    conf_row_release(row, place);
    switch (row->kind) {
    case CONF_KIND_TEXT:
    case CONF_KIND_PATH: {
        const char *text = *(char *const *)value;
        char *copy = mem_copy_text(text, strlen(text));

        memcpy(place, &copy, sizeof copy);
        return copy != NULL;
    }
    case CONF_KIND_WORDS:
        return copy_words(value, place);
    case CONF_KIND_SECRET:
        *(struct secret *)place = (struct secret){0};
        return secret_set(place, secret_span(value));
    default:
        memcpy(place, value, conf_value_size(row));
        return true;
    }
}

/* --- the lists --- */

static bool add(struct conf_words *list, const char *section, const char *title, const char *what)
{
    char name[NAME_MAX_BYTES];
    char **items = mem_resize(list->items, (list->count + 1) * sizeof *items);

    if (items == NULL)
        return false;
    list->items = items;
    if (title[0] == '\0')
        snprintf(name, sizeof name, "%s %s", section, what);
    else
        snprintf(name, sizeof name, "%s \"%.*s\" %s", section, CONF_TITLE_MAX, title, what);
    items[list->count] = mem_copy_text(name, strlen(name));
    return items[list->count] != NULL && ++list->count > 0;
}

void conf_changes_release(struct conf_changes *changes)
{
    conf_words_release(&changes->changed);
    conf_words_release(&changes->needs_restart);
    *changes = (struct conf_changes){0};
}

/* --- sections --- */

/*
 * Whether Redis is asked for routes decides what a process tells others of itself from its start
 * on: a promise to end in time, and what its users' moves wait for.
 */
static bool needs_restart(const struct pair *pair, const struct conf_row *row, const void *after)
{
    return row->change == CONF_RESTART ||
           ((const char *)after + row->offset == (const char *)&pair->after->route.sources &&
            conf_routes_by_redis(pair->before) != conf_routes_by_redis(pair->after));
}

static bool add_content(struct pair *pair, const struct conf_section *section, const char *title,
                        const struct conf_row *row)
{
    char what[NAME_MAX_BYTES];

    snprintf(what, sizeof what, "%s (its content)", row->name);
    return add(&pair->changes->changed, section->name, title, what);
}

/* Both have it. False without memory. */
static bool compare(struct pair *pair, const struct conf_section *section, const void *before,
                    void *after)
{
    const char *title = ((const struct conf_head *)after)->title;
    bool good = true;

    for (const struct conf_row *row = section->rows(); good && row->name != NULL; row++) {
        if (same_value(row, before, after)) {
            good = same_content(section, row, pair->before, pair->after, after) ||
                   add_content(pair, section, title, row);
            continue;
        }
        if (needs_restart(pair, row, after))
            good = add(&pair->changes->needs_restart, section->name, title, row->name) &&
                   keep_value(row, before, after);
        else
            good = add(&pair->changes->changed, section->name, title, row->name);
    }
    return good;
}

static size_t count_of(const struct conf_section *section, const struct conf *conf)
{
    size_t count;

    memcpy(&count, (const char *)conf + section->count_offset, sizeof count);
    return count;
}

static void *item_of(const struct conf_section *section, const struct conf *conf, size_t index)
{
    char *array;

    memcpy(&array, (const char *)conf + section->offset, sizeof array);
    return array + index * section->size;
}

/* Its place there, or the count. */
static size_t place_of(const struct conf_section *section, const struct conf *conf,
                       const char *title)
{
    size_t i = 0, count = count_of(section, conf);

    while (i < count && strcmp(((struct conf_head *)item_of(section, conf, i))->title, title) != 0)
        i++;
    return i;
}

static bool compare_many(struct pair *pair, const struct conf_section *section)
{
    size_t before_count = count_of(section, pair->before),
           after_count = count_of(section, pair->after), last = 0;
    struct conf_words *changed = &pair->changes->changed;
    bool good = true, in_order = true;

    for (size_t i = 0; good && i < after_count; i++) {
        struct conf_head *after = item_of(section, pair->after, i);
        size_t place = place_of(section, pair->before, after->title);

        if (place == before_count) {
            good = add(changed, section->name, after->title, "(new)");
            continue;
        }
        good = compare(pair, section, item_of(section, pair->before, place), after);
        in_order = in_order && place >= last;
        last = place;
    }
    for (size_t i = 0; good && i < before_count; i++) {
        const struct conf_head *before = item_of(section, pair->before, i);

        if (place_of(section, pair->after, before->title) == after_count)
            good = add(changed, section->name, before->title, "(removed)");
    }
    return good && (in_order || add(changed, section->name, "", "(order)"));
}

static bool compare_all(struct pair *pair)
{
    bool good = true;

    for (const struct conf_section *section = conf_sections; good && section->name != NULL;
         section++)
        good = section->many ? compare_many(pair, section)
                             : compare(pair, section, (const char *)pair->before + section->offset,
                                       (char *)pair->after + section->offset);
    return good;
}

/* --- shards --- */

static size_t id_of(const struct conf_words *titles, const char *title)
{
    size_t id = 0;

    while (id < titles->count && strcmp(titles->items[id], title) != 0)
        id++;
    return id;
}

/* Those that are new have the next ids. False without memory. */
static bool keep_ids(const struct conf *before, struct conf *after)
{
    struct conf_words titles = {
        .items = mem_array(before->shard_titles.count + after->shard_count + 1, sizeof(char *))};
    bool good = titles.items != NULL;

    for (size_t i = 0; good && i < before->shard_titles.count; i++)
        good = conf_words_add(&titles, before->shard_titles.items[i]);
    for (size_t i = 0; good && i < after->shard_count; i++) {
        struct conf_shard *shard = &after->shards[i];

        shard->id = id_of(&titles, shard->title);
        good = shard->id < titles.count || conf_words_add(&titles, shard->title);
    }
    conf_words_release(&after->shard_titles);
    after->shard_titles = titles;
    return good;
}

bool conf_follow(const struct conf *before, struct conf *after, struct conf_changes *changes)
{
    return keep_ids(before, after) && compare_all(&(struct pair){before, after, changes});
}
