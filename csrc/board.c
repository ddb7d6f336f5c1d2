/* board.c: the shared pages, one a slot. A worker writes its own; the master only looks.
 *
 * Atomics, relaxed throughout but for `wanted` and what is done: each value stands for itself. Nothing here is needed
 * for a connection to arrive: a worker that lies harms itself. The master clamps what it reads and never uses it as an
 * index or a length.
 */
#define _GNU_SOURCE
#include "core.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#define PAGE_BYTES 4096 /* pages are larger on some machines; what is unmapped is rounded to theirs, see keep */

struct fan_board {
    _Atomic uint64_t generation;
    _Atomic uint64_t taken;
    _Atomic uint64_t done;
    _Atomic uint64_t truncated;
    _Atomic int64_t beat_ns;
    _Atomic int32_t threads;                        /* cells ever used */
    _Atomic int32_t wanted;                         /* set by the master: it waits for a connection to be done */
    _Atomic int64_t busy_since_ns[FAN_MAX_THREADS]; /* 0: idle */
    char pad[PAGE_BYTES - 6 * 8 - FAN_MAX_THREADS * 8];
};

static_assert(sizeof(struct fan_board) == PAGE_BYTES, "one page a slot");
static_assert(FAN_TURNS_BYTES % PAGE_BYTES == 0, "whole pages");

static size_t bytes_of(int slots)
{
    return (size_t)slots * PAGE_BYTES + FAN_TURNS_BYTES;
}

#define load(field) atomic_load_explicit(&(field), memory_order_relaxed)
#define store(field, value) atomic_store_explicit(&(field), (value), memory_order_relaxed)
#define add(field, value) atomic_fetch_add_explicit(&(field), (value), memory_order_relaxed)

fan_board *fan_board_map(int slots)
{
    void *pages = mmap(NULL, bytes_of(slots), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    return pages == MAP_FAILED ? NULL : pages;
}

/* Put a file in the place of the pages, which nobody uses yet. Returns its descriptor or -errno. It keeps its size: who
 * made it shorter, under the master's eyes, would end the master with a SIGBUS. */
int fan_board_share(fan_board *board, int slots)
{
    size_t bytes = bytes_of(slots);
    int fd = memfd_create("board", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd < 0)
        return -errno;
    if (ftruncate(fd, (off_t)bytes) == 0 &&
        fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) == 0 &&
        mmap(board, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0) != MAP_FAILED)
        return fd;
    int rc = -errno;
    close(fd);
    return rc;
}

void fan_board_unmap(fan_board *board, int slots)
{
    munmap(board, bytes_of(slots));
}

/* Unmap all pages but one, and the turns behind them. Where the machine's pages are larger, munmap refuses (EINVAL) and the
 * neighbours stay mapped: a worker's bug could then disturb their statistics, but no connection. */
void fan_board_keep(fan_board *board, int slots, int keep)
{
    if (keep > 0)
        munmap(board, (size_t)keep * PAGE_BYTES);
    if (keep + 1 < slots)
        munmap(board + keep + 1, (size_t)(slots - keep - 1) * PAGE_BYTES);
}

/* Where the machine's pages are larger its neighbours are mapped, too, see fan_board_keep. */
static void *map_at(int fd, size_t at, size_t bytes)
{
    size_t before = at % (size_t)sysconf(_SC_PAGESIZE);
    char *pages = mmap(NULL, before + bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, (off_t)(at - before));
    return pages == MAP_FAILED ? NULL : pages + before;
}

int fan_board_open(int fd, int slot, fan_board **board, fan_turns **turns)
{
    struct stat file;
    if (fstat(fd, &file) < 0)
        return -errno;
    void *page = map_at(fd, (size_t)slot * PAGE_BYTES, PAGE_BYTES);
    void *shared = page ? map_at(fd, (size_t)file.st_size - FAN_TURNS_BYTES, FAN_TURNS_BYTES) : NULL;
    if (!shared) {
        int rc = -errno;
        if (page)
            munmap(page, PAGE_BYTES);
        return rc;
    }
    *board = page;
    *turns = shared;
    return 0;
}

fan_board *fan_board_page(fan_board *board, int slot)
{
    return board + slot;
}

fan_turns *fan_board_turns(fan_board *board, int slots)
{
    return (fan_turns *)(board + slots);
}

void fan_board_begin(fan_board *board, int slot, uint64_t generation)
{
    memset(&board[slot], 0, sizeof board[slot]);
    store(board[slot].generation, generation);
}

/* In a child that a worker forked: from now on it writes to a page of its own that nobody reads. */
void fan_board_disown(fan_board *page)
{
    if (mmap(page, PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == MAP_FAILED)
        munmap(page, PAGE_BYTES); /* rather a crash of the child than a lie about its parent */
}

uint64_t fan_board_taken(const fan_board *board, int slot)
{
    return load(board[slot].taken);
}

uint64_t fan_board_finished(const fan_board *board, int slot)
{
    return load(board[slot].done) + load(board[slot].truncated);
}

void fan_board_want(fan_board *board, int slot)
{
    atomic_store(&board[slot].wanted, 1);
    atomic_thread_fence(memory_order_seq_cst); /* before the look, which is a relaxed one */
}

/* How many of the first `threads` threads wait for a connection. */
int fan_board_idle(const fan_board *board, int slot, int threads)
{
    int idle = 0;
    for (int thread = 0; thread < threads && thread < FAN_MAX_THREADS; thread++)
        idle += load(board[slot].busy_since_ns[thread]) == 0;
    return idle;
}

void fan_board_look(const fan_board *board, int slot, fan_board_view *out)
{
    const struct fan_board *page = &board[slot];
    memset(out, 0, sizeof *out);
    out->generation = load(page->generation);
    out->truncated = load(page->truncated); /* what is lost is done with: it is nobody's load */
    out->done = load(page->done) + out->truncated;
    out->taken = load(page->taken); /* after done: done never seems to be ahead of an honest worker's taken */
    if (out->done > out->taken)
        out->done = out->taken;
    out->beat_ns = load(page->beat_ns);
    int threads = load(page->threads);
    out->threads = threads < 0 ? 0 : threads > FAN_MAX_THREADS ? FAN_MAX_THREADS : threads;
    for (int thread = 0; thread < out->threads; thread++) {
        int64_t since = load(page->busy_since_ns[thread]);
        if (since <= 0)
            continue;
        out->busy_threads++;
        if (out->busy_since_ns == 0 || since < out->busy_since_ns)
            out->busy_since_ns = since;
    }
}

/* The worker's side. */

/* Called for one thread after another, before any of them serves. */
void fan_board_enrol(fan_board *page, int thread)
{
    if (load(page->threads) <= thread)
        store(page->threads, thread + 1);
}

void fan_board_idle_now(fan_board *page, int thread)
{
    store(page->busy_since_ns[thread], 0);
}

/* It asks for a connection: from here on until it is idle one may be in its hands. */
void fan_board_busy_now(fan_board *page, int thread, int64_t now_ns)
{
    store(page->busy_since_ns[thread], now_ns);
    store(page->beat_ns, now_ns);
}

void fan_board_took(fan_board *page, int count)
{
    add(page->taken, (uint64_t)count);
}

void fan_board_beat(fan_board *page, int64_t now_ns)
{
    store(page->beat_ns, now_ns);
}

void fan_board_lost(fan_board *page, int count)
{
    add(page->truncated, (uint64_t)count);
    add(page->taken, (uint64_t)count);
}

/* The worker counts first, then looks at `wanted`; the master writes `wanted` first, then looks at the count. So at least one of
 * them sees the write of the other; that needs one order of all four accesses (sequential consistency). */
int fan_board_done(fan_board *page)
{
    atomic_fetch_add(&page->done, 1);
    return atomic_load(&page->wanted) && atomic_exchange(&page->wanted, 0);
}

uint64_t *fan_board_done_cell(fan_board *page)
{
    return (uint64_t *)&page->done;
}
