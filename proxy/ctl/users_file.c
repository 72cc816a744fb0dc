/* Owns how a file of names is read. */
#include "proxy/ctl/users_file.h"

#include "proxy/base/mem.h"
#include "proxy/ctl/move.h"

#include <string.h>

enum { COMPLAINTS_MAX = 20 };

static const char blanks[] = " \t\r\n";

bool users_is_name(const char *name)
{
    json_t *text = json_string(name); /* NULL if it is no UTF-8 */
    size_t len = strlen(name);

    json_decref(text);
    for (size_t i = 0; i < len; i++)
        if ((unsigned char)name[i] <= ' ' || name[i] == 0x7f)
            return false;
    return text != NULL && len > 0 && len <= MOVE_NAME_MAX;
}

/* What is left without comment and blanks around it; "" when that is nothing. */
static char *cut(char *line)
{
    char *start = line + strspn(line, blanks), *comment = strchr(start, '#');
    size_t len;

    while (comment != NULL && comment > start && strchr(blanks, comment[-1]) == NULL)
        comment = strchr(comment + 1, '#'); /* within a name */
    if (comment != NULL)
        *comment = '\0';
    len = strlen(start);
    while (len > 0 && strchr(blanks, start[len - 1]) != NULL)
        start[--len] = '\0';
    return start;
}

json_t *users_read(FILE *in, const char *name, FILE *complaints)
{
    json_t *users = json_object();
    char *line = NULL;
    size_t size = 0, wrong = 0, number = 0;
    ssize_t len;

    while ((len = getline(&line, &size, in)) >= 0) {
        bool is_text = strlen(line) == (size_t)len;
        const char *user = cut(line);

        number++;
        if (is_text && *user == '\0')
            continue;
        if (is_text && users_is_name(user))
            json_object_set_new(users, user, json_object());
        else if (++wrong <= COMPLAINTS_MAX)
            fprintf(complaints, "%s:%zu: this cannot be the name of a user\n", name, number);
    }
    mem_free(line);
    if (ferror(in))
        fprintf(complaints, "%s: it cannot be read\n", name);
    if (wrong == 0 && !ferror(in))
        return users;
    json_decref(users);
    return NULL;
}
