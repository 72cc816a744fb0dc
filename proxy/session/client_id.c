/* Owns which fields of a client's ID go on to the store. */
#include "proxy/session/client_id.h"

#include <stdlib.h>
#include <strings.h>

void client_id_init(struct client_id *id)
{
    buf_init(&id->fields, CLIENT_ID_MAX);
    id->proxy_ttl = CLIENT_ID_PROXY_TTL;
}

void client_id_release(struct client_id *id)
{
    buf_release(&id->fields);
    id->proxy_ttl = CLIENT_ID_PROXY_TTL;
}

/* Adds `"text"` with what must be escaped escaped; false if it cannot stand in a quoted string. */
static bool add_quoted(struct buf *out, const char *text, size_t len)
{
    if (!buf_append_text(out, "\""))
        return false;
    for (size_t i = 0; i < len; i++) {
        if ((unsigned char)text[i] < ' ' || (unsigned char)text[i] > '~')
            return false;
        if ((text[i] == '"' || text[i] == '\\') && !buf_append_text(out, "\\"))
            return false;
        if (!buf_append(out, (struct span){text + i, 1}))
            return false;
    }
    return buf_append_text(out, "\"");
}

/*
 * The client is a proxy itself, and tells how many may follow it: one less may follow us. Whoever
 * lies about it only locks itself out.
 */
static void note_proxy_ttl(struct client_id *id, const char *text)
{
    unsigned long told = strtoul(text, NULL, 10);

    if (told <= CLIENT_ID_PROXY_TTL)
        id->proxy_ttl = told == 0 ? 0 : (unsigned)told - 1;
}

/*
 * Keeps one field, unless it would pretend to be ours or does not fit (RFC 2971 3.3: 30 and 1024
 * octets).
 */
static void keep_field(struct client_id *id, const struct arg *name, const struct arg *value)
{
    char key[31], text[1025];
    struct buf quoted;

    if (value->kind == ARG_NIL || name->value_len >= sizeof key || value->value_len >= sizeof text)
        return;
    arg_copy(name, key, sizeof key);
    arg_copy(value, text, sizeof text);
    if (strcasecmp(key, "x-proxy-ttl") == 0)
        note_proxy_ttl(id, text);
    if (strncasecmp(key, "x-", 2) == 0)
        return;
    buf_init(&quoted, CLIENT_ID_MAX);
    if (add_quoted(&quoted, key, name->value_len) && buf_append_text(&quoted, " ") &&
        add_quoted(&quoted, text, value->value_len) &&
        buf_len(&quoted) + 1 + buf_len(&id->fields) <= id->fields.ceiling) {
        if (buf_len(&id->fields) > 0)
            buf_append_text(&id->fields, " ");
        buf_append(&id->fields, buf_span(&quoted));
    }
    buf_release(&quoted);
}

bool client_id_read(struct client_id *id, struct args *args)
{
    struct arg name, value;
    enum args_id more = ARGS_ID_BAD;

    buf_release(&id->fields);
    if (args_space(args))
        for (bool started = false; (more = args_id(args, started, &name, &value)) == ARGS_ID_PAIR;
             started = true)
            keep_field(id, &name, &value);
    return more != ARGS_ID_BAD && args_end(args);
}
