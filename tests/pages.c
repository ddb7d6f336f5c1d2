/* pages.c: preloaded, makes up a machine whose pages are larger, of PAGE_BYTES (an environment variable). What counts in pages
 * behaves as there: addresses that are no multiple are refused, lengths are rounded up. Only for a program's own calls; the C
 * library does not ask itself.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

static size_t page_bytes(void)
{
    static size_t bytes;
    if (bytes == 0)
        bytes = strtoul(getenv("PAGE_BYTES"), NULL, 10);
    return bytes;
}

static bool is_whole(uintptr_t number)
{
    return number % page_bytes() == 0;
}

static size_t rounded(size_t bytes)
{
    return (bytes + page_bytes() - 1) / page_bytes() * page_bytes();
}

static char *map(void *at, size_t bytes, int protection, int flags, int fd, off_t offset)
{
    return (char *)syscall(SYS_mmap, at, bytes, protection, flags, fd, offset);
}

static void unmap(char *from, const char *to)
{
    if (from < to)
        syscall(SYS_munmap, from, (size_t)(to - from));
}

void *mmap(void *at, size_t bytes, int protection, int flags, int fd, off_t offset)
{
    bool fixed = flags & (MAP_FIXED | MAP_FIXED_NOREPLACE);
    if (!is_whole((uintptr_t)offset) || (fixed && !is_whole((uintptr_t)at))) {
        errno = EINVAL;
        return MAP_FAILED;
    }
    if (fixed || bytes == 0)
        return map(at, rounded(bytes), protection, flags, fd, offset);
    bytes = rounded(bytes);
    char *room = map(NULL, bytes + page_bytes(), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (room == MAP_FAILED)
        return room;
    char *start = (char *)rounded((uintptr_t)room), *end = room + bytes + page_bytes();
    unmap(room, start);
    unmap(start + bytes, end);
    char *pages = map(start, bytes, protection, flags | MAP_FIXED, fd, offset);
    if (pages == MAP_FAILED) {
        int error = errno;
        unmap(start, start + bytes);
        errno = error;
    }
    return pages;
}

/* As programs call it that are built for large files. */
void *mmap64(void *at, size_t bytes, int protection, int flags, int fd, off64_t offset)
{
    return mmap(at, bytes, protection, flags, fd, (off_t)offset);
}

int munmap(void *at, size_t bytes)
{
    if (is_whole((uintptr_t)at))
        return (int)syscall(SYS_munmap, at, rounded(bytes));
    errno = EINVAL;
    return -1;
}

long sysconf(int name)
{
    if (name == _SC_PAGESIZE)
        return (long)page_bytes();
    return ((long (*)(int))dlsym(RTLD_NEXT, "sysconf"))(name);
}

int getpagesize(void)
{
    return (int)page_bytes();
}
