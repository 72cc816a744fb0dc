/* Owns the document: page.html with what belongs into its places, "{{name}}". */
#include "proxy/http/page.h"

#include "proxy/http/assets.h"

#include <openssl/evp.h>
#include <string.h>
#include <time.h>

/* --- the policy --- */

/* "sha256-..." of a text, as the policy has it. */
static bool hash(const char *text, char out[64])
{
    unsigned char digest[EVP_MAX_MD_SIZE], encoded[48];
    unsigned len = 0;

    if (EVP_Digest(text, strlen(text), digest, &len, EVP_sha256(), NULL) != 1)
        return false;
    EVP_EncodeBlock(encoded, digest, (int)len); /* 44 octets, and a NUL */
    snprintf(out, 64, "sha256-%s", (const char *)encoded);
    return true;
}

bool page_policy(char policy_out[PAGE_POLICY_MAX])
{
    char style[64], script[64];

    if (!hash(asset_style, style) || !hash(asset_script, script))
        return false;
    snprintf(policy_out, PAGE_POLICY_MAX,
             "default-src 'none'; style-src '%s'; script-src '%s'; connect-src 'self'; "
             "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
             style, script);
    return true;
}

/* --- texts --- */

static void print_text(FILE *out, const char *text)
{
    for (; *text != '\0'; text++) {
        switch (*text) {
        case '<':
            fputs("&lt;", out);
            break;
        case '>':
            fputs("&gt;", out);
            break;
        case '&':
            fputs("&amp;", out);
            break;
        case '"':
            fputs("&quot;", out);
            break;
        default:
            fputc(*text, out);
        }
    }
}

/* "max_connections" as "max connections". */
static void print_name(FILE *out, const char *name)
{
    for (; *name != '\0'; name++)
        fputc(*name == '_' ? ' ' : *name, out);
}

static void print_time(FILE *out, json_int_t unix_time)
{
    time_t time = (time_t)unix_time;
    struct tm utc;
    char text[32];

    if (gmtime_r(&time, &utc) != NULL && strftime(text, sizeof text, "%F %R UTC", &utc) > 0)
        fputs(text, out);
}

/* --- any JSON as tables --- */

static void print_value(FILE *out, const char *name, const json_t *value);

static bool is_moment(const char *name)
{
    return strcmp(name, "since") == 0 || strcmp(name, "not_after") == 0 || strcmp(name, "now") == 0;
}

/* Names and values. */
static void print_object(FILE *out, const json_t *object)
{
    const char *name;
    json_t *value;

    fputs("<dl>", out);
    json_object_foreach ((json_t *)object, name, value) {
        fputs("<div><dt>", out);
        print_name(out, name);
        fputs("</dt><dd>", out);
        print_value(out, name, value);
        fputs("</dd></div>", out);
    }
    fputs("</dl>", out);
}

static void print_head(FILE *out, const json_t *row)
{
    const char *name;
    json_t *value;

    fputs("<thead><tr>", out);
    json_object_foreach ((json_t *)row, name, value) {
        fputs("<th scope=\"col\">", out);
        print_name(out, name);
        fputs("</th>", out);
    }
    fputs("</tr></thead>", out);
}

static void print_cells(FILE *out, const json_t *row)
{
    const char *name;
    json_t *value;

    json_object_foreach ((json_t *)row, name, value) {
        fputs("<td>", out);
        print_value(out, name, value);
        fputs("</td>", out);
    }
}

/* Objects with the same members. A list within has no head of its own. */
static void print_list(FILE *out, const json_t *list, bool has_head)
{
    json_t *row;
    size_t i;

    if (json_array_size(list) == 0) {
        fputs("none", out);
        return;
    }
    fputs("<table>", out);
    if (has_head)
        print_head(out, json_array_get(list, 0));
    json_array_foreach(list, i, row)
    {
        fputs("<tr>", out);
        print_cells(out, row);
        fputs("</tr>", out);
    }
    fputs("</table>", out);
}

static void print_value(FILE *out, const char *name, const json_t *value)
{
    if (json_is_object(value))
        print_object(out, value);
    else if (json_is_array(value))
        print_list(out, value, strcmp(name, "addresses") != 0);
    else if (json_is_string(value))
        print_text(out, json_string_value(value));
    else if (json_is_integer(value) && is_moment(name) && json_integer_value(value) > 1000000000)
        print_time(out, json_integer_value(value));
    else if (json_is_integer(value))
        fprintf(out, "%lld", (long long)json_integer_value(value));
    else if (json_is_real(value))
        fprintf(out, "%.2f", json_real_value(value));
    else
        fputs("&ndash;", out);
}

/* --- the places of the document --- */

/* What is worst, or that all is well. */
static const json_t *first_problem(const json_t *status)
{
    return json_array_get(json_object_get(status, "problems"), 0);
}

static void print_headline(FILE *out, const json_t *status)
{
    const json_t *problem = first_problem(status), *since = json_object_get(problem, "since");

    if (problem == NULL) {
        fputs("All well", out);
        return;
    }
    print_text(out, json_string_value(json_object_get(problem, "text")));
    if (json_is_integer(since)) {
        fputs(" since ", out);
        print_time(out, json_integer_value(since));
    }
}

static void print_level(FILE *out, const json_t *status)
{
    const json_t *problem = first_problem(status);

    fputs(problem == NULL ? "well" : json_string_value(json_object_get(problem, "level")), out);
}

static void print_host(FILE *out, const json_t *status)
{
    print_text(out, json_string_value(json_object_get(json_object_get(status, "process"), "host")));
}

static void print_plain(FILE *out, const json_t *status)
{
    const char *name;
    json_t *value;

    json_object_foreach ((json_t *)status, name, value) {
        fputs("<section><h2>", out);
        print_name(out, name);
        fputs("</h2>", out);
        print_value(out, name, value);
        fputs("</section>\n", out);
    }
}

static void print_style(FILE *out, const json_t *status)
{
    (void)status;
    fputs(asset_style, out);
}

static void print_script(FILE *out, const json_t *status)
{
    (void)status;
    fputs(asset_script, out);
}

static const struct {
    const char *name;
    void (*print)(FILE *out, const json_t *status);
} places[] = {
    {"style", print_style},       {"script", print_script}, {"host", print_host},
    {"headline", print_headline}, {"level", print_level},   {"plain", print_plain},
};

/* `name` is what stands between the braces. */
static void fill(FILE *out, const char *name, size_t len, const json_t *status)
{
    for (size_t i = 0; i < sizeof places / sizeof places[0]; i++)
        if (strlen(places[i].name) == len && memcmp(places[i].name, name, len) == 0)
            places[i].print(out, status);
}

void page_print(FILE *out, const json_t *status)
{
    const char *rest = asset_page, *place;

    while ((place = strstr(rest, "{{")) != NULL) {
        size_t len = strcspn(place + 2, "}");

        fwrite(rest, 1, (size_t)(place - rest), out);
        fill(out, place + 2, len, status);
        rest = place + 2 + len + 2;
    }
    fputs(rest, out);
}
