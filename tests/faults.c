/* Faults for tests/test_faults.py: the calls that libevent's libraries and this package's C code
 * make go through here, where the Nth of one kind fails. Nobody else's calls do: what is changed is
 * the table of addresses (ELF's GOT) by which a shared object finds the functions of others.
 *
 * Memory: each block that is allocated there and not yet freed is known, with who did it. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <link.h>
#include <poll.h>
#include <pthread.h>
#include <search.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/select.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/timerfd.h>
#include <sys/uio.h>
#include <unistd.h>

static char target[32];         /* the kind of call that is to fail */
static int first, times, error; /* from which one on, how many, with which errno */
static int calls, failed;
static int stray_closes;        /* of descriptors that are not open: closed twice, perhaps */

void faults_arm(const char *which, int number, int how_many, int number_of_error)
{
    snprintf(target, sizeof(target), "%s", which);
    first = number;
    times = how_many;
    error = number_of_error;
    calls = failed = 0;
}

/* How many have failed. */
int faults_disarm(void)
{
    target[0] = '\0';
    return failed;
}

int faults_stray_closes(void)
{
    return stray_closes;
}

static int fails(const char *which)
{
    if (strcmp(which, target) != 0)
        return 0;
    ++calls;
    if (calls < first || calls >= first + times)
        return 0;
    ++failed;
    errno = error;
    return 1;
}

/* ---- memory ---- */

#define MOST (1 << 16)

static struct { void *block; size_t n; void *caller; long number; } live[MOST];
static int n_live;
static long number_of_all;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static void *born(void *block, size_t n, void *caller)
{
    pthread_mutex_lock(&lock);
    if (block) {
        if (n_live == MOST)
            abort();
        live[n_live].block = block;
        live[n_live].n = n;
        live[n_live].number = ++number_of_all;
        live[n_live++].caller = caller;
    }
    pthread_mutex_unlock(&lock);
    return block;
}

static void died(void *block)
{
    int i;

    pthread_mutex_lock(&lock);
    for (i = n_live - 1; i >= 0; --i) /* the young die first */
        if (live[i].block == block) {
            live[i] = live[--n_live];
            break;
        }
    pthread_mutex_unlock(&lock);
}

long faults_now(void)
{
    return number_of_all;
}

int faults_live(void)
{
    return n_live;
}

/* A line for each block that came after that moment, with where it was allocated. */
void faults_tell(long after, char *out, int size)
{
    Dl_info info;
    int i, at = 0;

    out[0] = '\0';
    for (i = 0; i < n_live; ++i) {
        if (live[i].number > after && at < size && dladdr(live[i].caller, &info))
            at += snprintf(out + at, (size_t)(size - at), "%zu bytes, %s+%#lx\n", live[i].n,
                           strrchr(info.dli_fname, '/') + 1,
                           (unsigned long)((char *)live[i].caller - (char *)info.dli_fbase));
    }
}

static void *faulty_malloc(size_t n)
{
    return fails("malloc") ? NULL : born(malloc(n), n, __builtin_return_address(0));
}

static void *faulty_calloc(size_t count, size_t n)
{
    return fails("malloc") ? NULL : born(calloc(count, n), count * n, __builtin_return_address(0));
}

static void *faulty_realloc(void *old, size_t n)
{
    if (fails("malloc"))
        return NULL;
    died(old);
    return born(realloc(old, n), n, __builtin_return_address(0));
}

static char *faulty_strdup(const char *text)
{
    return fails("malloc") ? NULL : born(strdup(text), strlen(text) + 1, __builtin_return_address(0));
}

static void faulty_free(void *block)
{
    died(block);
    free(block);
}

static void *faulty_tsearch(const void *key, void **root, int (*compare)(const void *, const void *))
{
    return fails("malloc") ? NULL : tsearch(key, root, compare);
}

static FILE *faulty_open_memstream(char **text, size_t *n)
{
    return fails("malloc") ? NULL : open_memstream(text, n);
}

/* ---- what the system does ---- */

#define SYSTEM_CALLS(CALL)                                                                       \
    CALL(int, socket, (int a, int b, int c), (a, b, c))                                          \
    CALL(int, socketpair, (int a, int b, int c, int d[2]), (a, b, c, d))                         \
    CALL(int, accept4, (int a, struct sockaddr *b, socklen_t *c, int d), (a, b, c, d))           \
    CALL(int, bind, (int a, const struct sockaddr *b, socklen_t c), (a, b, c))                   \
    CALL(int, listen, (int a, int b), (a, b))                                                    \
    CALL(int, connect, (int a, const struct sockaddr *b, socklen_t c), (a, b, c))                \
    CALL(int, getsockopt, (int a, int b, int c, void *d, socklen_t *e), (a, b, c, d, e))         \
    CALL(int, setsockopt, (int a, int b, int c, const void *d, socklen_t e), (a, b, c, d, e))    \
    CALL(int, shutdown, (int a, int b), (a, b))                                                  \
    CALL(int, epoll_create1, (int a), (a))                                                       \
    CALL(int, epoll_create, (int a), (a))                                                        \
    CALL(int, epoll_ctl, (int a, int b, int c, struct epoll_event *d), (a, b, c, d))             \
    CALL(int, epoll_wait, (int a, struct epoll_event *b, int c, int d), (a, b, c, d))            \
    CALL(int, poll, (struct pollfd *a, nfds_t b, int c), (a, b, c))                              \
    CALL(int, select, (int a, fd_set *b, fd_set *c, fd_set *d, struct timeval *e),               \
         (a, b, c, d, e))                                                                        \
    CALL(int, timerfd_create, (int a, int b), (a, b))                                            \
    CALL(int, timerfd_settime,                                                                   \
         (int a, int b, const struct itimerspec *c, struct itimerspec *d), (a, b, c, d))         \
    CALL(int, pipe, (int a[2]), (a))                                                             \
    CALL(int, pipe2, (int a[2], int b), (a, b))                                                  \
    CALL(int, fstat, (int a, struct stat *b), (a, b))                                            \
    CALL(int, fcntl, (int a, int b, long c), (a, b, c))                                          \
    CALL(int, ioctl, (int a, unsigned long b, void *c), (a, b, c))                               \
    CALL(off_t, lseek, (int a, off_t b, int c), (a, b, c))                                       \
    CALL(int, sigaction, (int a, const struct sigaction *b, struct sigaction *c), (a, b, c))     \
    CALL(ssize_t, read, (int a, void *b, size_t c), (a, b, c))                                   \
    CALL(ssize_t, recv, (int a, void *b, size_t c, int d), (a, b, c, d))                         \
    CALL(ssize_t, readv, (int a, const struct iovec *b, int c), (a, b, c))                       \
    CALL(ssize_t, write, (int a, const void *b, size_t c), (a, b, c))                            \
    CALL(ssize_t, send, (int a, const void *b, size_t c, int d), (a, b, c, d))                   \
    CALL(ssize_t, writev, (int a, const struct iovec *b, int c), (a, b, c))                      \
    CALL(ssize_t, sendfile, (int a, int b, off_t *c, size_t d), (a, b, c, d))

#define DEFINE(type, name, parameters, arguments) \
    static type faulty_##name parameters { return fails(#name) ? -1 : name arguments; }
SYSTEM_CALLS(DEFINE)

/* The descriptor is closed all the same, as Linux has it. */
static int faulty_close(int fd)
{
    int rc = close(fd);

    if (rc < 0 && errno == EBADF)
        ++stray_closes;
    return fails("close") ? -1 : rc;
}

/* ---- getting in between ---- */

static const struct { const char *name; void *ours; } table[] = {
#define ENTRY(type, name, parameters, arguments) {#name, (void *)faulty_##name},
    SYSTEM_CALLS(ENTRY)
    {"malloc", (void *)faulty_malloc},
    {"calloc", (void *)faulty_calloc},
    {"realloc", (void *)faulty_realloc},
    {"strdup", (void *)faulty_strdup},
    {"free", (void *)faulty_free},
    {"tsearch", (void *)faulty_tsearch},
    {"open_memstream", (void *)faulty_open_memstream},
    {"close", (void *)faulty_close},
};

static void *replacement(const char *name)
{
    size_t i, n = strlen(name);

    if (n > 2 && strcmp(name + n - 2, "64") == 0)
        n -= 2; /* fcntl64 and so on */
    for (i = 0; i < sizeof(table) / sizeof(*table); ++i)
        if (strncmp(table[i].name, name, n) == 0 && table[i].name[n] == '\0')
            return table[i].ours;
    return NULL;
}

/* glibc gives addresses in the dynamic section, musl offsets. */
static void *address(const struct dl_phdr_info *info, ElfW(Addr) value)
{
    return (void *)(value < info->dlpi_addr ? info->dlpi_addr + value : value);
}

static void replace(void **slot, void *ours)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    char *start = (char *)((uintptr_t)slot & ~(page - 1));

    if (mprotect(start, page, PROT_READ | PROT_WRITE) < 0)
        abort();
    *slot = ours;
}

static int change(struct dl_phdr_info *info, size_t size, void *arg)
{
    const char *name = strrchr(info->dlpi_name, '/'), *names = NULL;
    ElfW(Rela) *tables[2] = {NULL, NULL};
    size_t lengths[2] = {0, 0}, k, j;
    ElfW(Sym) *symbols = NULL;
    ElfW(Dyn) *d = NULL;
    int i, *count = arg;

    (void)size;
    if (!name || !strstr(name, "libevent"))
        return 0;
    for (i = 0; i < info->dlpi_phnum; ++i)
        if (info->dlpi_phdr[i].p_type == PT_DYNAMIC)
            d = (ElfW(Dyn) *)(info->dlpi_addr + info->dlpi_phdr[i].p_vaddr);
    for (; d && d->d_tag != DT_NULL; ++d)
        switch (d->d_tag) {
        case DT_STRTAB: names = address(info, d->d_un.d_ptr); break;
        case DT_SYMTAB: symbols = address(info, d->d_un.d_ptr); break;
        case DT_JMPREL: tables[0] = address(info, d->d_un.d_ptr); break;
        case DT_PLTRELSZ: lengths[0] = d->d_un.d_val; break;
        case DT_RELA: tables[1] = address(info, d->d_un.d_ptr); break;
        case DT_RELASZ: lengths[1] = d->d_un.d_val; break;
        }
    for (k = 0; k < 2; ++k)
        for (j = 0; tables[k] && j < lengths[k] / sizeof(ElfW(Rela)); ++j) {
            ElfW(Rela) *r = &tables[k][j];
            size_t symbol = r->r_info >> 32;
            void *ours = symbol ? replacement(names + symbols[symbol].st_name) : NULL;

            if (ours) {
                replace((void **)(info->dlpi_addr + r->r_offset), ours);
                ++*count;
            }
        }
    return 0;
}

/* How many addresses were changed; for good, so call it in a process of its own. */
int faults_install(void)
{
    int count = 0;

    dl_iterate_phdr(change, &count);
    return count;
}
