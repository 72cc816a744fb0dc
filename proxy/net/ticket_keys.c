/* Owns the forms of ticket keys: in memory, as text, and in files. */
#include "proxy/net/ticket_keys.h"

#include "proxy/base/line.h"

#include <errno.h>
#include <openssl/evp.h>
#include <openssl/rand.h>
#include <string.h>

/* --- one key --- */

bool ticket_key_make(struct secret *out, struct err *err)
{
    unsigned char octets[TICKET_KEY_SIZE];
    bool made = RAND_priv_bytes(octets, sizeof octets) == 1 &&
                secret_set(out, (struct span){(const char *)octets, sizeof octets});

    secret_wipe(octets, sizeof octets);
    return made || err_set(err, ERR_INTERNAL, "no memory for a ticket key");
}

/* The length of a key in so many characters of base64, or 0. */
static size_t key_size(struct span text)
{
    if (text.len == (TICKET_KEY_SIZE + 2) / 3 * 4)
        return TICKET_KEY_SIZE;
    return text.len == (TICKET_KEY_SHORT + 2) / 3 * 4 ? TICKET_KEY_SHORT : 0;
}

bool ticket_key_read(struct span text, struct secret *out, struct err *err)
{
    unsigned char octets[TICKET_KEY_TEXT];
    size_t size = key_size(text), padding = (3 - size % 3) % 3;
    const char *end = memchr(text.ptr, '=', text.len);
    bool good = size > 0 && (end == NULL ? padding == 0 : end == text.ptr + text.len - padding);

    if (good) /* it counts the padding in, and skips blanks at the ends */
        good = EVP_DecodeBlock(octets, (const unsigned char *)text.ptr, (int)text.len) ==
               (int)(size + padding);
    if (!good)
        err_set(err, ERR_CONFIG, "this is not 80 or 48 octets in base64");
    else if (!secret_set(out, (struct span){(const char *)octets, size}))
        good = err_set(err, ERR_INTERNAL, "no memory for a ticket key");
    secret_wipe(octets, sizeof octets);
    return good;
}

void ticket_key_write(const struct secret *key, char text_out[TICKET_KEY_TEXT])
{
    EVP_EncodeBlock((unsigned char *)text_out, (const unsigned char *)key->bytes, (int)key->len);
}

/* --- several --- */

static bool read_line(const char *line, const char *path, size_t number, struct ticket_keys *out,
                      struct err *err)
{
    struct err why = {0};

    if (line[0] == '\0')
        return true;
    if (out->count == TICKET_KEYS_MAX)
        return err_set(err, ERR_CONFIG, "%s:%zu: more than %d keys", path, number, TICKET_KEYS_MAX);
    if (!ticket_key_read(span_of(line), &out->keys[out->count], &why))
        return err_set(err, why.kind, "%s:%zu: %s", path, number, why.text);
    out->count++;
    return true;
}

static bool read_lines(FILE *file, const char *path, struct ticket_keys *out, struct err *err)
{
    char line[TICKET_KEY_TEXT + 1];
    enum line_result result;
    bool good = true;

    for (size_t number = 1; good && (result = line_read(file, line, sizeof line)) != LINE_END;
         number++) {
        if (result == LINE_BAD)
            line[0] = '-'; /* no key */
        good = read_line(line, path, number, out, err);
    }
    secret_wipe(line, sizeof line);
    if (good && ferror(file))
        return err_set(err, ERR_CONFIG, "%s: it cannot be read", path);
    if (good && out->count == 0)
        return err_set(err, ERR_CONFIG, "%s: there is no key in it", path);
    return good;
}

bool ticket_keys_read(const char *path, struct ticket_keys *out, struct err *err)
{
    char buffer[BUFSIZ];
    FILE *file = fopen(path, "re");

    *out = (struct ticket_keys){0};
    if (file == NULL)
        return err_set(err, ERR_CONFIG, "%s: %s", path, strerrordesc_np(errno));
    setvbuf(file, buffer, _IOFBF, sizeof buffer); /* ours, to be wiped */

    bool good = read_lines(file, path, out, err);

    fclose(file);
    secret_wipe(buffer, sizeof buffer);
    if (!good)
        ticket_keys_release(out);
    return good;
}

bool ticket_keys_copy(struct ticket_keys *out, const struct ticket_keys *from)
{
    *out = (struct ticket_keys){0};
    for (; out->count < from->count; out->count++) {
        if (!secret_set(&out->keys[out->count], secret_span(&from->keys[out->count]))) {
            ticket_keys_release(out);
            return false;
        }
    }
    return true;
}

void ticket_keys_release(struct ticket_keys *keys)
{
    for (size_t i = 0; i < keys->count; i++)
        secret_release(&keys->keys[i]);
    keys->count = 0;
}
