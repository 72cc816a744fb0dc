/*
 * Owns how the octets of a key set are had: read from a file, or asked for with libcurl, which is
 * told to be strict and brief.
 */
#include "auth/token/jwks_fetch.h"

#include <curl/curl.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

enum { READ_SIZE = 16384, HTTP_OK = 200 };

static bool read_file(const char *path, struct buf *out, struct file_version *file_out,
                      struct err *err);
static int read_open_file(int fd, struct buf *out, struct file_version *file_out);
static bool ask_server(const struct conf_oauth *conf, const atomic_bool *stop, struct buf *out,
                       struct err *err);
static bool set_options(CURL *curl, const struct conf_oauth *conf);
static size_t take_octets(char *octets, size_t size, size_t count, void *out);
static int check_stop(void *stop, curl_off_t down_total, curl_off_t down, curl_off_t up_total,
                      curl_off_t up);

bool jwks_is_url(const char *keys)
{
    return *keys != '/';
}

bool jwks_fetch(const struct conf_oauth *conf, const atomic_bool *stop, struct buf *out,
                struct file_version *file_out, struct err *err)
{
    return jwks_is_url(conf->keys) ? ask_server(conf, stop, out, err)
                                   : read_file(conf->keys, out, file_out, err);
}

/* --- a file --- */

static bool read_file(const char *path, struct buf *out, struct file_version *file_out,
                      struct err *err)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a FIFO would keep us waiting */
    int failure = fd < 0 ? errno : read_open_file(fd, out, file_out);

    if (fd < 0)
        *file_out = file_version_of(path);
    else
        close(fd);
    return failure == 0 || err_set(err, ERR_UNAVAILABLE, "%.160s: %s", path, strerror(failure));
}

/* 0, or what went wrong. */
static int read_open_file(int fd, struct buf *out, struct file_version *file_out)
{
    *file_out = file_version_of_open(fd);
    for (;;) {
        char *room = buf_reserve(out, READ_SIZE);

        if (room == NULL)
            return buf_len(out) + READ_SIZE > out->ceiling ? EFBIG : ENOMEM;

        ssize_t count = read(fd, room, READ_SIZE);

        if (count <= 0)
            return count == 0 ? 0 : errno;
        buf_commit(out, (size_t)count);
    }
}

/* --- a URL --- */

static bool ask_server(const struct conf_oauth *conf, const atomic_bool *stop, struct buf *out,
                       struct err *err)
{
    CURL *curl = curl_easy_init(); /* prepares the library, too, whichever thread comes first */
    char reason[CURL_ERROR_SIZE] = "";
    long status = 0;
    CURLcode code = CURLE_OUT_OF_MEMORY;

    if (curl != NULL && set_options(curl, conf)) {
        curl_easy_setopt(curl, CURLOPT_WRITEDATA, out);
        curl_easy_setopt(curl, CURLOPT_XFERINFODATA, (void *)stop);
        curl_easy_setopt(curl, CURLOPT_ERRORBUFFER, reason);
        code = curl_easy_perform(curl);
        curl_easy_getinfo(curl, CURLINFO_RESPONSE_CODE, &status);
    }
    curl_easy_cleanup(curl);
    if (code == CURLE_WRITE_ERROR)
        return err_set(err, ERR_UNAVAILABLE, "%.120s: the answer is too long", conf->keys);
    if (code != CURLE_OK)
        return err_set(err, ERR_UNAVAILABLE, "%.120s: %s", conf->keys,
                       *reason == '\0' ? curl_easy_strerror(code) : reason);
    return status == HTTP_OK ||
           err_set(err, ERR_UNAVAILABLE, "%.120s: the answer has status %ld", conf->keys, status);
}

static bool set_options(CURL *curl, const struct conf_oauth *conf)
{
    bool in_clear = strncmp(conf->keys, "http://", 7) == 0;
    bool ok = curl_easy_setopt(curl, CURLOPT_URL, conf->keys) == CURLE_OK &&
              curl_easy_setopt(curl, CURLOPT_PROTOCOLS_STR, in_clear ? "http" : "https") == 0 &&
              curl_easy_setopt(curl, CURLOPT_FOLLOWLOCATION, 0L) == CURLE_OK &&
              curl_easy_setopt(curl, CURLOPT_USERAGENT, "imapmux/" IMAPMUX_VERSION) == CURLE_OK &&
              curl_easy_setopt(curl, CURLOPT_NOSIGNAL, 1L) == CURLE_OK &&
              curl_easy_setopt(curl, CURLOPT_TIMEOUT_MS, (long)JWKS_FETCH_MAX_MS) == CURLE_OK &&
              /* else the time-out would wait for a resolver that hangs */
              curl_easy_setopt(curl, CURLOPT_QUICK_EXIT, 1L) == CURLE_OK &&
              curl_easy_setopt(curl, CURLOPT_NOPROGRESS, 0L) == CURLE_OK &&
              curl_easy_setopt(curl, CURLOPT_XFERINFOFUNCTION, check_stop) == CURLE_OK &&
              curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, take_octets) == CURLE_OK;

    /* What comes from this machine does not leave it for a proxy that the environment names. */
    if (in_clear)
        ok = ok && curl_easy_setopt(curl, CURLOPT_PROXY, "") == CURLE_OK;
    /* Debian's build would trust the system's folder of authorities beside the file. */
    if (*conf->keys_ca_file != '\0')
        ok = ok && curl_easy_setopt(curl, CURLOPT_CAPATH, NULL) == CURLE_OK &&
             curl_easy_setopt(curl, CURLOPT_CAINFO, conf->keys_ca_file) == CURLE_OK;
    return ok;
}

static size_t take_octets(char *octets, size_t size, size_t count, void *out)
{
    return buf_append(out, (struct span){octets, size * count}) ? size * count : 0;
}

static int check_stop(void *stop, curl_off_t down_total, curl_off_t down, curl_off_t up_total,
                      curl_off_t up)
{
    (void)down_total;
    (void)down;
    (void)up_total;
    (void)up;
    return atomic_load((const atomic_bool *)stop) ? 1 : 0;
}
