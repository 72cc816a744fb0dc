/* Owns the syntax of the URLs that stores refer to. */
#include "proxy/imap/url.h"

#include <stdio.h>

static const char scheme[] = "imap://";

static int hex_digit(char ch)
{
    return ch >= '0' && ch <= '9'   ? ch - '0'
           : ch >= 'a' && ch <= 'f' ? ch - 'a' + 10
           : ch >= 'A' && ch <= 'F' ? ch - 'A' + 10
                                    : -1;
}

/* The octet at the front of `text`, which becomes shorter; -1 for half an encoded one. */
static int take_octet(struct span *text)
{
    char first = text->ptr[0];

    *text = span_after(*text, 1);
    if (first != '%')
        return (unsigned char)first;
    if (text->len < 2)
        return -1;

    int high = hex_digit(text->ptr[0]), low = hex_digit(text->ptr[1]);

    *text = span_after(*text, 2);
    return high < 0 || low < 0 ? -1 : high * 16 + low;
}

static bool read_user(struct span text, char user_out[URL_USER_MAX + 1])
{
    size_t len = 0;

    while (text.len > 0) {
        int octet = take_octet(&text);

        if (octet < ' ' || octet == 0x7f || len == URL_USER_MAX)
            return false;
        user_out[len++] = (char)octet;
    }
    user_out[len] = '\0';
    return true;
}

/* Without a port it reads as if one stood there, which is then dropped. */
static bool read_host(struct span text, struct url *url)
{
    char with_port[HOST_MAX + sizeof ":65535"];
    bool bracketed = text.len > 0 && text.ptr[0] == '[';
    const char *last = memrchr(text.ptr, bracketed ? ']' : ':', text.len);
    bool has_port = bracketed ? last != NULL && last + 1 < text.ptr + text.len : last != NULL;

    if (text.len >= HOST_MAX || memchr(text.ptr, '\0', text.len) != NULL)
        return false;
    snprintf(with_port, sizeof with_port, "%.*s%s", SPAN_ARG(text), has_port ? "" : ":143");
    if (!address_split(with_port, url->host, &url->port))
        return false;
    if (!has_port)
        url->port = 0;
    return true;
}

bool url_parse(struct span text, struct url *url_out)
{
    size_t scheme_len = sizeof scheme - 1;

    *url_out = (struct url){.port = 0};
    if (text.len > URL_MAX || text.len < scheme_len ||
        !span_is((struct span){text.ptr, scheme_len}, scheme))
        return false;
    text = span_after(text, scheme_len);

    const char *end = memchr(text.ptr, '/', text.len);
    struct span server = {text.ptr, end == NULL ? text.len : (size_t)(end - text.ptr)};
    const char *at = memrchr(server.ptr, '@', server.len);

    if (at == NULL)
        return read_host(server, url_out);

    struct span user = {server.ptr, (size_t)(at - server.ptr)};
    const char *auth = memchr(user.ptr, ';', user.len); /* ";AUTH=" and a mechanism, or "*" */

    if (auth != NULL)
        user.len = (size_t)(auth - user.ptr);
    return read_user(user, url_out->user) &&
           read_host(span_after(server, (size_t)(at - server.ptr) + 1), url_out);
}
