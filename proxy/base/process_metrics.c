/* Owns what the system tells of this process. */
#include "proxy/base/process_metrics.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <unistd.h>

static void print(FILE *out, const char *name, const char *type, const char *help, double value)
{
    fprintf(out, "# HELP %s %s.\n# TYPE %s %s\n%s %.17g\n", name, help, name, type, name, value);
}

/* Pages: all of it, and what is in memory. */
static bool read_memory(unsigned long *size_out, unsigned long *resident_out)
{
    FILE *in = fopen("/proc/self/statm", "re");
    char line[128], *rest;
    bool good = in != NULL && fgets(line, sizeof line, in) != NULL;

    if (good) {
        *size_out = strtoul(line, &rest, 10);
        *resident_out = strtoul(rest, NULL, 10);
    }
    if (in != NULL)
        (void)fclose(in);
    return good;
}

/* Not by opendir: the thread sanitizer does not see that it opens a descriptor, only its end. */
int process_count_descriptors(void)
{
    _Alignas(struct dirent64) char entries[4096];
    int folder = open("/proc/self/fd", O_RDONLY | O_DIRECTORY | O_CLOEXEC), count = 0;
    ssize_t len;

    if (folder < 0)
        return -1;
    while ((len = getdents64(folder, entries, sizeof entries)) > 0)
        for (const char *at = entries; at < entries + len;
             at += ((const struct dirent64 *)(const void *)at)->d_reclen)
            count += ((const struct dirent64 *)(const void *)at)->d_name[0] != '.';
    close(folder);
    return count - 1; /* without the folder's own */
}

static double seconds(const struct timeval *time)
{
    return (double)time->tv_sec + (double)time->tv_usec / 1e6;
}

void process_metrics_print(FILE *out, time_t started_at)
{
    double page_size = (double)sysconf(_SC_PAGESIZE);
    unsigned long size, resident;
    struct rusage usage;
    struct rlimit descriptors;
    int count = process_count_descriptors();

    fputs("# HELP imapmux_build_info Which version runs.\n# TYPE imapmux_build_info gauge\n"
          "imapmux_build_info{version=\"" IMAPMUX_VERSION "\"} 1\n",
          out);
    print(out, "process_start_time_seconds", "gauge", "When it was started, in Unix time",
          (double)started_at);
    if (getrusage(RUSAGE_SELF, &usage) == 0)
        print(out, "process_cpu_seconds_total", "counter", "Time of the processors spent",
              seconds(&usage.ru_utime) + seconds(&usage.ru_stime));
    if (read_memory(&size, &resident)) {
        print(out, "process_virtual_memory_bytes", "gauge", "Size of its memory",
              (double)size * page_size);
        print(out, "process_resident_memory_bytes", "gauge", "Of this, what is in memory",
              (double)resident * page_size);
    }
    if (count >= 0)
        print(out, "process_open_fds", "gauge", "Open descriptors", count);
    if (getrlimit(RLIMIT_NOFILE, &descriptors) == 0)
        print(out, "process_max_fds", "gauge", "How many it may have",
              (double)descriptors.rlim_cur);
}
