/* Owns the list of the files that TLS is made of, and their versions. */
#include "proxy/net/tls_files.h"

#include "proxy/base/file_version.h"
#include "proxy/base/mem.h"

enum { OF_TLS = 3, OF_CERTIFICATE = 3, OF_SHARD = 1 };

struct tls_files {
    size_t count;
    struct file_version versions[]; /* in the order of the configuration */
};

static void add(struct tls_files *files, const char *path)
{
    if (path[0] != '\0')
        files->versions[files->count++] = file_version_of(path);
}

struct tls_files *tls_files_look(const struct conf *conf)
{
    size_t most = OF_TLS + OF_CERTIFICATE * conf->certificate_count + OF_SHARD * conf->shard_count;
    struct tls_files *files = mem_new(sizeof *files + most * sizeof(struct file_version));

    if (files == NULL)
        return NULL;
    add(files, conf->tls.client_ca_file);
    add(files, conf->tls.client_crl_file);
    if (conf->tls.ticket_keys == TICKET_KEYS_FILE)
        add(files, conf->tls.ticket_keys_file);
    for (size_t i = 0; i < conf->certificate_count; i++) {
        add(files, conf->certificates[i].chain);
        add(files, conf->certificates[i].key);
        add(files, conf->certificates[i].ocsp_file);
    }
    for (size_t i = 0; i < conf->shard_count; i++)
        add(files, conf->shards[i].tls_ca_file);
    return files;
}

bool tls_files_same(const struct tls_files *a, const struct tls_files *b)
{
    if (a->count != b->count)
        return false;
    for (size_t i = 0; i < a->count; i++)
        if (!file_version_same(&a->versions[i], &b->versions[i]))
            return false;
    return true;
}

void tls_files_free(struct tls_files **files)
{
    mem_free(*files);
    *files = NULL;
}
