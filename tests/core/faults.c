/* faults.c: lets chosen system calls of the core fail, and counts them. Loaded by the tests, see kit.py.
 *
 * It puts its own functions into the core's relocation slots, so that the calls of the core alone are met: those of
 * Python, in the same process, are not. It works beside the sanitizers, which a preloaded library would have to race.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <link.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

typedef struct {
    const char *name;
    void *replacement;
    atomic_long calls;  /* seen */
    atomic_long skip;   /* that succeed before the next failure */
    atomic_long times;  /* how many fail then */
    atomic_long failed; /* so far */
    atomic_int error;
} fault;

static atomic_int longest = -1; /* sendmmsg takes no more messages than this; -1: all */

#define NAMES(each)                                                                                          \
    each(int, accept4, -1, (int fd, struct sockaddr *address, socklen_t *bytes, int flags),                  \
         (fd, address, bytes, flags))                                                                        \
    each(int, poll, -1, (struct pollfd *asked, nfds_t count, int timeout_ms), (asked, count, timeout_ms))    \
    each(int, sendmmsg, -1, (int fd, struct mmsghdr *messages, unsigned count, int flags),                   \
         (fd, messages, longest >= 0 && count > (unsigned)longest ? (unsigned)longest : count, flags))       \
    each(ssize_t, sendmsg, -1, (int fd, const struct msghdr *message, int flags), (fd, message, flags))      \
    each(ssize_t, recvmsg, -1, (int fd, struct msghdr *message, int flags), (fd, message, flags))            \
    each(ssize_t, recv, -1, (int fd, void *data, size_t bytes, int flags), (fd, data, bytes, flags))         \
    each(int, recvmmsg, -1, (int fd, struct mmsghdr *messages, unsigned count, int flags, struct timespec *t), \
         (fd, messages, count, flags, t))                                                                    \
    each(int, epoll_wait, -1, (int set, struct epoll_event *events, int cap, int timeout_ms),                \
         (set, events, cap, timeout_ms))                                                                     \
    each(int, epoll_ctl, -1, (int set, int op, int fd, struct epoll_event *event), (set, op, fd, event))     \
    each(int, epoll_create1, -1, (int flags), (flags))                                                       \
    each(int, eventfd, -1, (unsigned value, int flags), (value, flags))                                      \
    each(int, memfd_create, -1, (const char *name, unsigned flags), (name, flags))                           \
    each(int, ftruncate, -1, (int fd, off_t bytes), (fd, bytes))                                             \
    each(int, timerfd_create, -1, (int clock, int flags), (clock, flags))                                    \
    each(int, timerfd_settime, -1, (int fd, int flags, const struct itimerspec *at, struct itimerspec *before), \
         (fd, flags, at, before))                                                                            \
    each(int, socketpair, -1, (int domain, int type, int protocol, int *ends), (domain, type, protocol, ends)) \
    each(int, setsockopt, -1, (int fd, int level, int option, const void *value, socklen_t bytes),             \
         (fd, level, option, value, bytes))                                                                    \
    each(int, getsockopt, -1, (int fd, int level, int option, void *value, socklen_t *bytes),                  \
         (fd, level, option, value, bytes))                                                                    \
    each(int, shutdown, -1, (int fd, int how), (fd, how))                                                    \
    each(int, ioctl, -1, (int fd, unsigned long request, void *argument), (fd, request, argument))           \
    each(int, fcntl, -1, (int fd, int command, long argument), (fd, command, argument))                      \
    each(void *, mmap, MAP_FAILED, (void *at, size_t bytes, int protection, int flags, int fd, off_t offset), \
         (at, bytes, protection, flags, fd, offset))                                                         \
    each(void *, calloc, NULL, (size_t count, size_t bytes), (count, bytes))

#define NUMBER(type, function, failure, parameters, arguments) NUMBER_##function,
enum { NAMES(NUMBER) COUNT };

static fault faults[COUNT];

static int failing(int which)
{
    fault *call = &faults[which];
    call->calls++;
    if (call->times == 0)
        return 0;
    if (call->skip > 0) {
        call->skip--;
        return 0;
    }
    call->times--;
    call->failed++;
    return call->error;
}

#define DEFINE(type, function, failure, parameters, arguments) \
    static type failing_##function parameters                  \
    {                                                          \
        int error = failing(NUMBER_##function);                \
        if (error) {                                           \
            errno = error;                                     \
            return failure;                                    \
        }                                                      \
        return function arguments;                             \
    }
NAMES(DEFINE)

#define ENTRY(type, function, failure, parameters, arguments) {.name = #function, .replacement = failing_##function},
static fault faults[COUNT] = {NAMES(ENTRY)};

static _Atomic(struct timespec *) stopped; /* NULL: the clock goes */

static int stopping_clock_gettime(clockid_t clock, struct timespec *now)
{
    const struct timespec *then = stopped;
    if (!then)
        return clock_gettime(clock, now);
    *now = *then;
    return 0;
}

static int find(const char *name)
{
    for (int i = 0; i < COUNT; i++)
        if (strcmp(faults[i].name, name) == 0)
            return i;
    abort();
}

/* What stands in for a function of this name; NULL: nothing does. */
static void *replacement_of(const char *name)
{
    if (strcmp(name, "clock_gettime") == 0)
        return stopping_clock_gettime;
    for (int which = 0; which < COUNT; which++)
        if (strcmp(faults[which].name, name) == 0)
            return faults[which].replacement;
    return NULL;
}

static int patch(const struct link_map *map, const ElfW(Rela) *relocations, size_t bytes, const ElfW(Sym) *symbols,
                 const char *strings)
{
    int patched = 0;
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    for (size_t i = 0; relocations && i < bytes / sizeof *relocations; i++) {
        void *replacement = replacement_of(strings + symbols[ELF64_R_SYM(relocations[i].r_info)].st_name);
        if (!replacement)
            continue;
        void **slot = (void **)(map->l_addr + relocations[i].r_offset);
        char *start = (char *)((uintptr_t)slot & ~(uintptr_t)(page - 1));
        if (mprotect(start, page, PROT_READ | PROT_WRITE) < 0)
            return -errno;
        *slot = replacement;
        patched++;
    }
    return patched;
}

/* Meet the calls of the shared object that the address `inside` belongs to. How many functions are met, or -errno. */
int faults_install(const void *inside)
{
    Dl_info info;
    struct link_map *map = NULL;
    const ElfW(Rela) *lazy = NULL, *eager = NULL;
    size_t lazy_bytes = 0, eager_bytes = 0;
    const ElfW(Sym) *symbols = NULL;
    const char *strings = NULL;
    if (!dladdr1(inside, &info, (void **)&map, RTLD_DL_LINKMAP) || !map)
        return -ENOENT;
    for (const ElfW(Dyn) *entry = map->l_ld; entry->d_tag != DT_NULL; entry++) {
        void *pointer = (void *)entry->d_un.d_ptr;
        if (entry->d_tag == DT_JMPREL)
            lazy = pointer;
        else if (entry->d_tag == DT_PLTRELSZ)
            lazy_bytes = entry->d_un.d_val;
        else if (entry->d_tag == DT_RELA)
            eager = pointer;
        else if (entry->d_tag == DT_RELASZ)
            eager_bytes = entry->d_un.d_val;
        else if (entry->d_tag == DT_SYMTAB)
            symbols = pointer;
        else if (entry->d_tag == DT_STRTAB)
            strings = pointer;
    }
    int first = patch(map, lazy, lazy_bytes, symbols, strings);
    int second = patch(map, eager, eager_bytes, symbols, strings);
    return first < 0 ? first : second < 0 ? second : first + second;
}

void faults_set(const char *name, int error, long skip, long times)
{
    fault *call = &faults[find(name)];
    call->times = 0;
    call->error = error;
    call->skip = skip;
    call->times = times;
}

long faults_calls(const char *name)
{
    return faults[find(name)].calls;
}

long faults_failed(const char *name)
{
    return faults[find(name)].failed;
}

/* sendmmsg takes at most `count` messages at once from now on; -1: no limit. */
void faults_limit(int count)
{
    longest = count;
}

/* The core's clock stands still from now on. */
void faults_stop_clock(void)
{
    static struct timespec then;
    clock_gettime(CLOCK_MONOTONIC, &then);
    stopped = &then;
}

void faults_reset(void)
{
    longest = -1;
    stopped = NULL;
    for (int i = 0; i < COUNT; i++) {
        faults[i].times = 0;
        faults[i].calls = faults[i].failed = faults[i].skip = 0;
    }
}
