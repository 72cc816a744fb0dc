/*
 * Preloaded into imapmux by test_no_memory.py: makes chosen allocations fail, whoever asks for them:
 * imapmux itself, OpenSSL, libuv, hiredis, libldap or the C library.
 *
 * The test and the process share a file, which the environment names in FAILING_MALLOC. The test
 * writes there which allocation shall be the first to fail, counted from now, and how many after it
 * fail, too; it reads how many there have been, and who asked for the one that failed. The thread
 * that runs main() has a turn of its own: it writes metrics, at its own times, and would spoil the
 * count of the others.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <execinfo.h>
#include <fcntl.h>
#include <link.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define CALLER __builtin_return_address(0)

enum { FRAMES_MAX = 24 };

/* The shared file: 64-bit words, which test_no_memory.py knows by number. */
struct control {
    _Atomic uint64_t first; /* the number of the first that fails; 0: nothing is counted */
    _Atomic uint64_t in_a_row;
    _Atomic uint64_t own_only;  /* only what the program itself asks for, and not its libraries */
    _Atomic uint64_t main_only; /* only the thread that runs main(), else only the others */
    _Atomic uint64_t count;     /* since `first` was set; the test sets it to 0 before */
    _Atomic uint64_t failed;
    void *asked[FRAMES_MAX]; /* return addresses of the first that failed, the innermost first */
};

static struct control *control;
static uintptr_t program_start, program_end; /* where the program itself lies */

enum thread_kind { NOT_YET_ASKED, MAIN, OTHER, LOOKS_AT_ITS_STACK };
static _Thread_local enum thread_kind thread_kind __attribute__((tls_model("initial-exec")));

static void *(*real_malloc)(size_t size);
static void *(*real_calloc)(size_t count, size_t size);
static void *(*real_realloc)(void *block, size_t size);
static int (*real_posix_memalign)(void **block_out, size_t alignment, size_t size);
static void *(*real_aligned_alloc)(size_t alignment, size_t size);

/* dlsym's answer is no function pointer in the eyes of ISO C. */
static void find(const char *name, void *function_out)
{
    void *found = dlsym(RTLD_NEXT, name);

    memcpy(function_out, &found, sizeof found);
}

static void find_all(void)
{
    find("malloc", &real_malloc);
    find("calloc", &real_calloc);
    find("realloc", &real_realloc);
    find("posix_memalign", &real_posix_memalign);
    find("aligned_alloc", &real_aligned_alloc);
}

/* The first object that the dynamic linker tells of is the program. */
static int note_program(struct dl_phdr_info *object, size_t size, void *unused)
{
    (void)size;
    (void)unused;
    program_start = object->dlpi_addr;
    for (int i = 0; i < object->dlpi_phnum; i++) {
        const ElfW(Phdr) *part = &object->dlpi_phdr[i];
        uintptr_t end = object->dlpi_addr + part->p_vaddr + part->p_memsz;

        if (part->p_type == PT_LOAD && end > program_end)
            program_end = end;
    }
    return 1;
}

__attribute__((constructor)) static void open_control(void)
{
    const char *path = getenv("FAILING_MALLOC");
    int fd = path == NULL ? -1 : open(path, O_RDWR | O_CLOEXEC);
    void *warm[1];

    if (fd < 0)
        return;
    dl_iterate_phdr(note_program, NULL);
    backtrace(warm, 1); /* loads what it needs, which takes memory, before anything may fail */
    void *shared = mmap(NULL, sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (shared != MAP_FAILED)
        control = shared;
}

static void remember_who_asked(void)
{
    void *frames[FRAMES_MAX + 2];
    int count = backtrace(frames, FRAMES_MAX + 2);

    for (int i = 2; i < count; i++) /* without this function and the next one */
        control->asked[i - 2] = frames[i];
}

/* Counts an allocation that will return to `caller`; whether it is one that fails. */
static bool fails(const void *caller)
{
    bool own = (uintptr_t)caller >= program_start && (uintptr_t)caller < program_end;

    if (control == NULL || atomic_load_explicit(&control->first, memory_order_relaxed) == 0)
        return false;
    if (thread_kind == NOT_YET_ASKED)
        thread_kind = getpid() == gettid() ? MAIN : OTHER;
    if (thread_kind != (atomic_load(&control->main_only) != 0 ? MAIN : OTHER) ||
        (atomic_load(&control->own_only) != 0 && !own))
        return false;
    uint64_t number = atomic_fetch_add(&control->count, 1) + 1;
    uint64_t first = atomic_load(&control->first);

    if (first == 0 || number < first || number >= first + atomic_load(&control->in_a_row))
        return false;
    if (atomic_fetch_add(&control->failed, 1) == 0) {
        enum thread_kind kind = thread_kind;

        thread_kind = LOOKS_AT_ITS_STACK;
        remember_who_asked();
        thread_kind = kind;
    }
    errno = ENOMEM;
    return true;
}

void *malloc(size_t size)
{
    if (real_malloc == NULL)
        find_all();
    return fails(CALLER) ? NULL : real_malloc(size);
}

void *calloc(size_t count, size_t size)
{
    if (real_calloc == NULL)
        find_all();
    return fails(CALLER) ? NULL : real_calloc(count, size);
}

void *realloc(void *block, size_t size)
{
    if (real_realloc == NULL)
        find_all();
    return size > 0 && fails(CALLER) ? NULL : real_realloc(block, size);
}

void *reallocarray(void *block, size_t count, size_t size)
{
    size_t total;

    if (__builtin_mul_overflow(count, size, &total)) {
        errno = ENOMEM;
        return NULL;
    }
    if (real_realloc == NULL)
        find_all();
    return total > 0 && fails(CALLER) ? NULL : real_realloc(block, total);
}

int posix_memalign(void **block_out, size_t alignment, size_t size)
{
    if (real_posix_memalign == NULL)
        find_all();
    return fails(CALLER) ? ENOMEM : real_posix_memalign(block_out, alignment, size);
}

void *aligned_alloc(size_t alignment, size_t size)
{
    if (real_aligned_alloc == NULL)
        find_all();
    return fails(CALLER) ? NULL : real_aligned_alloc(alignment, size);
}

/* The sanitizer has copies of these that do not come to malloc above. */

static char *copy_text(const char *text, size_t len, const void *caller)
{
    if (real_malloc == NULL)
        find_all();
    char *copy = fails(caller) ? NULL : real_malloc(len + 1);

    if (copy == NULL)
        return NULL;
    memcpy(copy, text, len);
    copy[len] = '\0';
    return copy;
}

char *strndup(const char *text, size_t len)
{
    return copy_text(text, strnlen(text, len), CALLER);
}

char *strdup(const char *text)
{
    return copy_text(text, strlen(text), CALLER);
}
