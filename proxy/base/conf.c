/*
 * Owns the reading of proxy.conf: the tables made from settings.def, libconfuse, which knows the
 * syntax, and the filling of the structs. Values reach libconfuse as text and are converted here,
 * so that each message can say where, what was found and what was expected.
 */
#include "proxy/base/conf_private.h"

#include "proxy/base/mem.h"

#include <assert.h>
#include <confuse.h>
#include <errno.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* struct conf_row lists, a function for each section. Within it `self` is the section's struct. */
#define ROW_TEXT(min, max)
#define ROW_PATH(min, max)
#define ROW_WORDS(min, max)
#define ROW_FLAG(min, max)
#define ROW_SECRET(min, max)
#define ROW_NUMBER(low, high)    .min = low, .max = high,
#define ROW_DURATION(low, high)  .min = low, .max = high,
#define ROW_SIZE(low, high)      .min = low, .max = high,
#define ROW_CHOICE(list, unused) .words = list,
#define ROW(kind_, name_, change_, default_, min_, max_, help_)                                    \
    {.name = #name_,                                                                               \
     .kind = CONF_KIND_##kind_,                                                                    \
     .change = CONF_##change_,                                                                     \
     .default_text = default_,                                                                     \
     ROW_##kind_(min_, max_).help = help_,                                                         \
     .offset = offsetof(self, name_)},
#define ROWS(section, cardinality, rows, help)                                                     \
    static const struct conf_row *rows_of_##section(void)                                          \
    {                                                                                              \
        typedef struct conf_##section self;                                                        \
        static const struct conf_row list[] = {rows(ROW){0}};                                      \
        return list;                                                                               \
    }
SETTINGS_SECTIONS(ROWS)

#define PLACE_ONE(section) .offset = offsetof(struct conf, section),
#define PLACE_MANY(section)                                                                        \
    .offset = offsetof(struct conf, section##s),                                                   \
    .count_offset = offsetof(struct conf, section##_count), .many = true,
#define SECTION(section, cardinality, settings, help_)                                             \
    {.name = #section,                                                                             \
     .rows = rows_of_##section,                                                                    \
     .help = help_,                                                                                \
     PLACE_##cardinality(section).size = sizeof(struct conf_##section)},
const struct conf_section conf_sections[] = {SETTINGS_SECTIONS(SECTION){0}};

/*
 * The same as libconfuse wants it. No option has a default there; ours apply. START is no setting:
 * libconfuse reads its default when a section opens, and the callback then notes the line, which is
 * not kept otherwise.
 */
#define START "start of section"
static int on_start(cfg_t *cfg, cfg_opt_t *opt, const char *value, void *result);
static int on_value(cfg_t *cfg, cfg_opt_t *opt, const char *value, void *result);
static int on_include(cfg_t *cfg, cfg_opt_t *opt, int argc, const char **argv);
static void on_error(cfg_t *cfg, const char *format, va_list args)
    __attribute__((format(printf, 2, 0)));

#define OPT_SCALAR(name)                                  CFG_STR_CB(name, NULL, CFGF_NODEFAULT, on_value),
#define OPT_TEXT(name)                                    OPT_SCALAR(name)
#define OPT_PATH(name)                                    OPT_SCALAR(name)
#define OPT_FLAG(name)                                    OPT_SCALAR(name)
#define OPT_NUMBER(name)                                  OPT_SCALAR(name)
#define OPT_DURATION(name)                                OPT_SCALAR(name)
#define OPT_SIZE(name)                                    OPT_SCALAR(name)
#define OPT_CHOICE(name)                                  OPT_SCALAR(name)
#define OPT_SECRET(name)                                  OPT_SCALAR(name) OPT_SCALAR(name "_file")
#define OPT_WORDS(name)                                   CFG_STR_LIST_CB(name, NULL, CFGF_NODEFAULT, on_value),
#define OPT(kind, name, change, default_, min, max, help) OPT_##kind(#name)
#define OPTS(section, cardinality, rows, help)                                                     \
    static cfg_opt_t opts_of_##section[] = {CFG_STR_LIST_CB(START, "{x}", 0, on_start),            \
                                            rows(OPT) CFG_END()};
SETTINGS_SECTIONS(OPTS)

/*
 * ONE sections are MULTI, too, so that a second one is seen; libconfuse would merge it into the
 * first.
 */
#define FLAGS_ONE  CFGF_MULTI
#define FLAGS_MANY (CFGF_MULTI | CFGF_TITLE | CFGF_NO_TITLE_DUPES)
#define SEC(section, cardinality, rows, help)                                                      \
    CFG_SEC(#section, opts_of_##section, FLAGS_##cardinality),
static cfg_opt_t all_opts[] = {SETTINGS_SECTIONS(SEC) CFG_FUNC("include", on_include), CFG_END()};

enum {
    /* In the flags of a cfg_opt_t, beyond libconfuse's own: it has been set in this section. */
    SEEN = 1 << 24,
    INCLUDE_DEPTH_MAX = 8
};

/*
 * libconfuse hands no pointer of ours to its callbacks, and its lexer is one for the process,
 * anyway.
 */
static struct conf_reader *current_reader;

static bool parse(struct conf_reader *reader, const char *path);
static bool parse_text(struct conf_reader *reader, const char *path, char *text, size_t len);
static bool set_folder(struct conf_reader *reader);
static struct conf *build(struct conf_reader *reader);
static bool fill_section(struct conf_reader *reader, const struct conf_section *section,
                         struct conf *conf);
static bool fill_one(struct conf_reader *reader, const struct conf_section *section, cfg_t *cfg,
                     void *out);
static void note_place(const struct conf_words *files, cfg_t *cfg, struct conf_head *head);
static bool fill_words(const struct conf_row *row, cfg_t *cfg, struct conf_words *words_out);
static bool fill_secret(struct conf_reader *reader, const struct conf_row *row, cfg_t *cfg,
                        struct secret *secret_out);
static const char *text_of(cfg_t *cfg, const char *name);
static int start_line(cfg_t *cfg);
static bool number_shards(struct conf *conf);
static struct conf *open_next(const char *path, const struct conf *running,
                              struct conf_changes *changes, struct err *err);
static bool take_place(struct conf_reader *reader, struct conf *conf, const struct conf *running,
                       struct conf_changes *changes);
static void release_section(const struct conf_section *section, struct conf *conf);
static void release_one(const struct conf_section *section, void *values);
static void wipe_secrets(cfg_t *cfg);

struct conf *conf_open(const char *path, struct err *err)
{
    return open_next(path, NULL, NULL, err);
}

struct conf *conf_reopen(const char *path, const struct conf *running,
                         struct conf_changes *changes_out, struct err *err)
{
    *changes_out = (struct conf_changes){0};
    return open_next(path, running, changes_out, err);
}

/* `running` is NULL when there is none. */
static struct conf *open_next(const char *path, const struct conf *running,
                              struct conf_changes *changes, struct err *err)
{
    struct err unheard = {0};
    struct conf_reader reader = {.path = path, .err = err == NULL ? &unheard : err};
    struct conf *conf = NULL;

    *reader.err = (struct err){0};
    reader.cfg = cfg_init(all_opts, CFGF_NONE);
    if (reader.cfg == NULL) {
        err_set(reader.err, ERR_INTERNAL, "%s: no memory", path);
        return NULL;
    }
    cfg_set_error_function(reader.cfg, on_error);
    current_reader = &reader;
    if (set_folder(&reader) && parse(&reader, path))
        conf = build(&reader);
    if (conf != NULL && !(conf_check(&reader, conf) &&
                          (running == NULL || take_place(&reader, conf, running, changes))))
        conf_close(&conf);
    current_reader = NULL;
    conf_words_release(&reader.files);
    wipe_secrets(reader.cfg);
    cfg_free(reader.cfg);
    return conf;
}

/* The file is good, but together with what stays as it is it may not be. */
static bool take_place(struct conf_reader *reader, struct conf *conf, const struct conf *running,
                       struct conf_changes *changes)
{
    if (!conf_follow(running, conf, changes))
        return err_set(reader->err, ERR_INTERNAL, "%s: no memory", reader->path);
    return conf_check(reader, conf);
}

void conf_close(struct conf **conf)
{
    const struct conf *own = *conf;

    *conf = NULL;
    conf_release(&own);
}

const struct conf *conf_hold(const struct conf *conf)
{
    atomic_fetch_add(&((struct conf *)conf)->holders, 1);
    return conf;
}

void conf_release(const struct conf **conf)
{
    struct conf *c = (struct conf *)*conf;

    *conf = NULL;
    if (c == NULL || atomic_fetch_sub(&c->holders, 1) > 0)
        return;
    for (const struct conf_section *section = conf_sections; section->name != NULL; section++)
        release_section(section, c);
    conf_forget_files(c);
    conf_words_release(&c->shard_titles);
    conf_words_release(&c->files);
    mem_free(c);
}

bool conf_has_word(const struct conf_words *words, const char *word)
{
    for (size_t i = 0; i < words->count; i++)
        if (strcmp(words->items[i], word) == 0)
            return true;
    return false;
}

bool conf_routes_by_redis(const struct conf *conf)
{
    return conf_has_word(&conf->route.sources, "redis");
}

bool conf_uses_redis(const struct conf *conf)
{
    return conf_routes_by_redis(conf) || conf->limits.shared || conf->throttle.shared ||
           conf->tls.ticket_keys == TICKET_KEYS_REDIS;
}

const struct conf_shard *conf_find_shard(const struct conf *conf, const char *title)
{
    for (size_t i = 0; i < conf->shard_count; i++) {
        if (strcmp(conf->shards[i].title, title) == 0)
            return &conf->shards[i];
    }
    return NULL;
}

const struct conf_shard *conf_shard_of(const struct conf *conf, size_t id)
{
    for (size_t i = 0; i < conf->shard_count; i++) {
        if (conf->shards[i].id == id)
            return &conf->shards[i];
    }
    return NULL;
}

bool conf_blame(const void *section, struct err *err)
{
    const struct conf_head *head = section;
    struct err why;

    if (err == NULL || head->in_file == NULL)
        return false;
    why = *err;
    return err_set(err, why.kind, "%.*s:%d: %s", (int)(sizeof why.text / 2), head->in_file,
                   head->line, why.text);
}

bool conf_fail(struct conf_reader *reader, const char *file, int line, const char *format, ...)
{
    char text[sizeof reader->err->text];
    va_list args;

    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    if (reader->err->kind != ERR_NONE)
        return false;
    if (line == 0)
        return err_set(reader->err, ERR_CONFIG, "%s: %s", file, text);
    return err_set(reader->err, ERR_CONFIG, "%s:%d: %s", file, line, text);
}

bool conf_fail_in(struct conf_reader *reader, const char *section, size_t index, const char *format,
                  ...)
{
    char text[sizeof reader->err->text];
    va_list args;

    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    if (index >= cfg_size(reader->cfg, section))
        return conf_fail(reader, reader->path, 0, "%s", text);
    cfg_t *cfg = cfg_getnsec(reader->cfg, section, (unsigned)index);
    return conf_fail(reader, cfg->filename, start_line(cfg), "%s", text);
}

/* Relative names start from the folder of the main file, wherever that is mentioned. */
static bool set_folder(struct conf_reader *reader)
{
    char whole[PATH_MAX];

    if (realpath(reader->path, whole) == NULL)
        return conf_fail(reader, reader->path, 0, "%s", strerror(errno));
    char *slash = strrchr(whole, '/');
    assert(slash != NULL);
    *slash = '\0';
    snprintf(reader->folder, sizeof reader->folder, "%s", whole);
    return true;
}

static bool parse(struct conf_reader *reader, const char *path)
{
    size_t len;
    char *text = conf_load(path, CONF_FILE_MAX, &len);

    if (text == NULL && reader->depth > 0)
        return false; /* the include says it, with its line */
    if (text == NULL)
        return conf_fail(reader, path, 0, "%s", conf_why_unread(path));
    bool ok = conf_note_file(reader, path) && parse_text(reader, path, text, len);
    secret_wipe(text, len);
    mem_free(text);
    return ok;
}

static bool parse_text(struct conf_reader *reader, const char *path, char *text, size_t len)
{
    cfg_t *cfg = reader->cfg;
    char *outer_name = cfg->filename;
    int outer_line = cfg->line, line = 0;
    const char *problem = NULL;

    if (!conf_blank_comments(text, len, &problem, &line))
        return conf_fail(reader, path, line, "%s", problem);
    FILE *file = fmemopen(text, len, "r");
    if (file == NULL)
        return conf_fail(reader, path, 0, "%s", strerror(errno));
    cfg->filename = mem_copy_text(path, strlen(path)); /* the last one is freed by cfg_free */
    bool ok = cfg->filename != NULL && cfg_parse_fp(cfg, file) == CFG_SUCCESS;
    fclose(file);
    if (!ok)
        conf_fail(reader, path, cfg->line, "this is not understood");
    if (outer_name != NULL) {
        mem_free(cfg->filename);
        cfg->filename = outer_name;
    }
    cfg->line = outer_line;
    return ok;
}

static int on_include(cfg_t *cfg, cfg_opt_t *opt, int argc, const char **argv)
{
    struct conf_reader *reader = current_reader;

    (void)opt;
    if (argc != 1) {
        conf_fail(reader, cfg->filename, cfg->line, "include takes the name of one file");
        return -1;
    }
    if (reader->depth == INCLUDE_DEPTH_MAX) {
        conf_fail(reader, cfg->filename, cfg->line, "includes are nested more than %d deep",
                  INCLUDE_DEPTH_MAX);
        return -1;
    }
    char *path = conf_path(reader->folder, argv[0]);
    reader->depth++;
    bool ok = path != NULL && parse(reader, path);
    reader->depth--;
    if (!ok)
        conf_fail(reader, cfg->filename, cfg->line, "cannot include \"%s\": %s", argv[0],
                  path == NULL ? strerror(errno) : conf_why_unread(path));
    mem_free(path);
    return ok ? 0 : -1;
}

static int on_start(cfg_t *cfg, cfg_opt_t *opt, const char *value, void *result)
{
    static char line[16]; /* copied by libconfuse */

    (void)opt;
    (void)value;
    snprintf(line, sizeof line, "%d", cfg->line);
    *(const char **)result = line;
    return 0;
}

/* The row of an option; *is_file_out says that it is the `_file` beside a SECRET. */
static const struct conf_row *find_row(const char *section_name, const char *name,
                                       bool *is_file_out)
{
    const struct conf_section *section = conf_sections;
    size_t len = strlen(name),
           base_len = len > 5 && strcmp(name + len - 5, "_file") == 0 ? len - 5 : 0;

    while (strcmp(section->name, section_name) != 0)
        section++;
    *is_file_out = false;
    for (const struct conf_row *row = section->rows(); row->name != NULL; row++) {
        if (strcmp(row->name, name) == 0)
            return row;
        *is_file_out = row->kind == CONF_KIND_SECRET && strlen(row->name) == base_len &&
                       memcmp(row->name, name, base_len) == 0;
        if (*is_file_out)
            return row;
    }
    return NULL;
}

/* `listener "imaps"`, or `log`. */
static const char *describe(cfg_t *cfg, char out[CONF_EXPECTED_MAX])
{
    if (cfg->title == NULL)
        snprintf(out, CONF_EXPECTED_MAX, "%s", cfg->name);
    else
        snprintf(out, CONF_EXPECTED_MAX, "%s \"%.63s\"", cfg->name, cfg->title);
    return out;
}

/*
 * Checks a value as it is read, while libconfuse still knows the line; fill_one converts it for
 * good.
 */
static int on_value(cfg_t *cfg, cfg_opt_t *opt, const char *text, void *result)
{
    struct conf_reader *reader = current_reader;
    char where[CONF_EXPECTED_MAX], expected[CONF_EXPECTED_MAX];
    union conf_value value = {0};
    bool is_file;
    const struct conf_row *row = find_row(cfg->name, opt->name, &is_file);

    assert(row != NULL);
    if ((opt->flags & SEEN) != 0 && opt->nvalues == 1) {
        conf_fail(reader, cfg->filename, cfg->line, "setting \"%s\" of %s appears twice", opt->name,
                  describe(cfg, where));
        return -1;
    }
    opt->flags |= SEEN;
    bool ok = true; /* a secret may hold anything, and no message may hold it */
    if (is_file || row->kind == CONF_KIND_WORDS)
        ok = conf_is_text(text);
    else if (row->kind != CONF_KIND_SECRET)
        ok = conf_value_read(row, reader->folder, text, &value);
    conf_value_release(row, &value);
    conf_expected(row, expected);
    if (!ok) {
        conf_fail(reader, cfg->filename, cfg->line,
                  "setting \"%s\" of %s: found \"%.60s\", expected %s", opt->name,
                  describe(cfg, where), text, expected);
        return -1;
    }
    *(const char **)result = text;
    return 0;
}

/* What libconfuse itself complains of: syntax, and names that it does not know. */
static void on_error(cfg_t *cfg, const char *format, va_list args)
{
    static const char unknown[] = "no such option '";
    char text[sizeof current_reader->err->text], name[sizeof text];

    vsnprintf(text, sizeof text, format, args);
    if (strncmp(text, unknown, sizeof unknown - 1) == 0) {
        snprintf(name, sizeof name, "%s", text + sizeof unknown - 1);
        name[strcspn(name, "'")] = '\0';
        conf_say_unknown(cfg->name, name, text, sizeof text);
    }
    conf_fail(current_reader, cfg->filename == NULL ? current_reader->path : cfg->filename,
              cfg->line, "%s", text);
}

static struct conf *build(struct conf_reader *reader)
{
    struct conf *conf = mem_new(sizeof *conf);
    bool ok = conf != NULL;

    for (const struct conf_section *section = conf_sections; ok && section->name != NULL; section++)
        ok = fill_section(reader, section, conf);
    if (ok && number_shards(conf) && conf_see_files(conf)) {
        conf->read_at = time(NULL);
        conf->files = reader->files;
        reader->files = (struct conf_words){0};
        return conf;
    }
    if (reader->err->kind == ERR_NONE)
        err_set(reader->err, ERR_INTERNAL, "%s: no memory", reader->path);
    conf_close(&conf);
    return NULL;
}

static bool fill_section(struct conf_reader *reader, const struct conf_section *section,
                         struct conf *conf)
{
    unsigned found = cfg_size(reader->cfg, section->name);
    char *out = (char *)conf + section->offset;
    size_t count = found;

    if (!section->many && found > 1)
        return conf_fail_in(reader, section->name, 1, "section \"%s\" appears twice",
                            section->name);
    if (!section->many)
        return fill_one(reader, section, found == 0 ? NULL : cfg_getsec(reader->cfg, section->name),
                        out);
    if (found == 0)
        return true;
    char *array = mem_array(count, section->size);
    if (array == NULL)
        return false;
    memcpy(out, &array, sizeof array);
    memcpy((char *)conf + section->count_offset, &count, sizeof count);
    for (unsigned i = 0; i < found; i++) {
        if (!fill_one(reader, section, cfg_getnsec(reader->cfg, section->name, i),
                      array + i * section->size))
            return false;
    }
    return true;
}

/* In the order of the file. */
static bool number_shards(struct conf *conf)
{
    struct conf_words *titles = &conf->shard_titles;

    titles->items = mem_array(conf->shard_count + 1, sizeof *titles->items);
    for (size_t i = 0; titles->items != NULL && i < conf->shard_count; i++) {
        conf->shards[i].id = i;
        if (!conf_words_add(titles, conf->shards[i].title))
            return false;
    }
    return titles->items != NULL;
}

/* Where the section stands: in a file that was noted when it was read. */
static void note_place(const struct conf_words *files, cfg_t *cfg, struct conf_head *head)
{
    for (size_t i = 0; i < files->count && head->in_file == NULL; i++)
        if (strcmp(files->items[i], cfg->filename) == 0)
            head->in_file = files->items[i];
    head->line = start_line(cfg);
}

/* `cfg` is NULL for a section that is not in the file. */
static bool fill_one(struct conf_reader *reader, const struct conf_section *section, cfg_t *cfg,
                     void *out)
{
    const char *title = cfg == NULL || cfg->title == NULL ? "" : cfg->title;
    struct conf_head *head = out;

    head->title = mem_copy_text(title, strlen(title));
    if (head->title == NULL)
        return false;
    if (cfg != NULL)
        note_place(&reader->files, cfg, head);
    for (const struct conf_row *row = section->rows(); row->name != NULL; row++) {
        void *member = (char *)out + row->offset;
        const char *text = text_of(cfg, row->name);
        union conf_value value;

        if (row->kind == CONF_KIND_WORDS) {
            if (!fill_words(row, cfg, member))
                return false;
        } else if (row->kind == CONF_KIND_SECRET) {
            if (!fill_secret(reader, row, cfg, member))
                return false;
        } else {
            if (!conf_value_read(row, reader->folder, text == NULL ? row->default_text : text,
                                 &value))
                return false;
            conf_value_store(row, &value, out);
        }
    }
    return true;
}

static bool fill_words(const struct conf_row *row, cfg_t *cfg, struct conf_words *words)
{
    bool is_set = cfg != NULL && (cfg_getopt(cfg, row->name)->flags & CFGF_MODIFIED) != 0;
    unsigned count = is_set ? cfg_size(cfg, row->name) : *row->default_text != '\0';

    if (count == 0)
        return true;
    words->items = mem_array(count, sizeof *words->items);
    if (words->items == NULL)
        return false;
    for (unsigned i = 0; i < count; i++) {
        const char *text = is_set ? cfg_getnstr(cfg, row->name, i) : row->default_text;

        if (!conf_words_add(words, text))
            return false;
    }
    return true;
}

static bool fill_secret(struct conf_reader *reader, const struct conf_row *row, cfg_t *cfg,
                        struct secret *secret_out)
{
    char name[64], where[CONF_EXPECTED_MAX];
    size_t len;

    snprintf(name, sizeof name, "%s_file", row->name);
    const char *text = text_of(cfg, row->name), *file = text_of(cfg, name);
    if (file == NULL || *file == '\0')
        return secret_set(secret_out, span_of(text == NULL ? row->default_text : text));
    describe(cfg, where);
    if (text != NULL && *text != '\0')
        return conf_fail(reader, cfg->filename, start_line(cfg),
                         "%s: both \"%s\" and \"%s\" are set", where, row->name, name);
    char *path = conf_path(reader->folder, file);
    char *content = path == NULL || !conf_note_file(reader, path)
                        ? NULL
                        : conf_load(path, CONF_SECRET_FILE_MAX, &len);
    if (content == NULL)
        conf_fail(reader, cfg->filename, start_line(cfg), "setting \"%s\" of %s: %.60s: %s", name,
                  where, file, path == NULL ? strerror(errno) : conf_why_unread(path));
    mem_free(path);
    if (content == NULL)
        return false;
    struct span value = {content, len};
    if (value.len > 0 && content[value.len - 1] == '\n')
        value.len--;
    bool ok = value.len > 0 && secret_set(secret_out, value);
    secret_wipe(content, len);
    mem_free(content);
    return ok || conf_fail(reader, cfg->filename, start_line(cfg),
                           "setting \"%s\" of %s: %.60s is empty", name, where, file);
}

/* What the file says; NULL when it says nothing. */
static const char *text_of(cfg_t *cfg, const char *name)
{
    return cfg == NULL || cfg_size(cfg, name) == 0 ? NULL : cfg_getstr(cfg, name);
}

static int start_line(cfg_t *cfg)
{
    return (int)strtol(cfg_getstr(cfg, START), NULL, 10);
}

static void release_section(const struct conf_section *section, struct conf *conf)
{
    char *field = (char *)conf + section->offset, *array;
    size_t count;

    if (!section->many) {
        release_one(section, field);
        return;
    }
    memcpy(&count, (char *)conf + section->count_offset, sizeof count);
    memcpy(&array, field, sizeof array);
    for (size_t i = 0; i < count; i++)
        release_one(section, array + i * section->size);
    mem_free(array);
}

static void release_one(const struct conf_section *section, void *values)
{
    for (const struct conf_row *row = section->rows(); row->name != NULL; row++)
        conf_row_release(row, (char *)values + row->offset);
    mem_free(((struct conf_head *)values)->title);
}

/* libconfuse frees its copies of the passwords without wiping them. */
static void wipe_secrets(cfg_t *cfg)
{
    for (const struct conf_section *section = conf_sections; section->name != NULL; section++) {
        for (const struct conf_row *row = section->rows(); row->name != NULL; row++) {
            if (row->kind != CONF_KIND_SECRET)
                continue;
            for (unsigned i = 0; i < cfg_size(cfg, section->name); i++) {
                char *text = cfg_getstr(cfg_getnsec(cfg, section->name, i), row->name);

                if (text != NULL)
                    secret_wipe(text, strlen(text));
            }
        }
    }
}
