/* Any bytes as proxy.conf: it is read or refused, with a message, and nothing is left over. */
#include "proxy/base/conf.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char path[64];

static void remove_file(void)
{
    unlink(path);
}

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const unsigned char *bytes, size_t len);

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    (void)argc;
    (void)argv;
    snprintf(path, sizeof path, "/tmp/fuzz_conf.XXXXXX");
    int fd = mkstemp(path);
    if (fd < 0)
        abort();
    close(fd);
    atexit(remove_file);
    return 0;
}

int LLVMFuzzerTestOneInput(const unsigned char *bytes, size_t len)
{
    struct err err;
    FILE *file;

    /* No other files: a device or a FIFO would not end. */
    if (memmem(bytes, len, "include", 7) != NULL || memmem(bytes, len, "_file", 5) != NULL)
        return 0;
    file = fopen(path, "w");
    if (file == NULL || fwrite(bytes, 1, len, file) != len || fclose(file) != 0)
        abort();
    struct conf *conf = conf_open(path, &err);
    if ((conf == NULL) != (err.kind != ERR_NONE))
        abort();
    conf_close(&conf);
    return 0;
}
