/* scoreboard.c: the shared pages, one a seat. A worker writes its own; the master only looks.
 *
 * Atomics, relaxed throughout but for `wanted` and what is done: each value stands for itself. Nothing here is needed
 * for a connection to arrive: a worker that lies harms itself. The master clamps what it reads and never uses it as an
 * index or a length.
 */
#define _GNU_SOURCE
#include "core.h"

#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#if ATOMIC_LLONG_LOCK_FREE != 2 /* else the lock would be in each process's own memory, and protect nothing */
#error pyfanout cannot be built for this processor: it has no lock-free 64-bit atomics, with which processes share counters
#endif

struct fan_score {
    _Atomic uint64_t generation;
    _Atomic uint64_t taken;
    _Atomic uint64_t done;
    _Atomic uint64_t lost;
    _Atomic int64_t beat_ns;
    _Atomic int32_t threads;                        /* cells ever used */
    _Atomic int32_t wanted;                         /* set by the master: it waits for a connection to be done */
    _Atomic int64_t busy_since_ns[FAN_MAX_THREADS]; /* 0: idle */
};

#define load(field) atomic_load_explicit(&(field), memory_order_relaxed)
#define store(field, value) atomic_store_explicit(&(field), (value), memory_order_relaxed)
#define add(field, value) atomic_fetch_add_explicit(&(field), (value), memory_order_relaxed)

/* ---- the pages of all seats ---------------------------------------------------------------------------------------- */

/* The kernel maps and unmaps whole pages, and rounds or refuses all else. Their size is the machine's (4 KiB, 16, 64), which
 * the processor's kind does not tell: aarch64 has all three. */
static size_t whole_pages(size_t bytes)
{
    size_t page_bytes = (size_t)sysconf(_SC_PAGESIZE);
    return (bytes + page_bytes - 1) / page_bytes * page_bytes;
}

static size_t bytes_before(const fan_scoreboard *scoreboard, int seat)
{
    return (size_t)seat * scoreboard->each_bytes;
}

/* Of the scores of all seats, and of the turns. */
static size_t bytes_of(const fan_scoreboard *scoreboard)
{
    return bytes_before(scoreboard, scoreboard->seats) + whole_pages(FAN_TURNS_BYTES);
}

/* A page costs memory only when it is written to: with 2048 seats this takes 8 MiB of addresses, 128 MiB where a page has 64
 * KiB, but no more memory than one page for each seat that was ever used, and the turns. */
int fan_scoreboard_map(fan_scoreboard *scoreboard, int seats)
{
    fan_scoreboard mapped = {.seats = seats, .each_bytes = whole_pages(sizeof(fan_score))};
    mapped.memory = mmap(NULL, bytes_of(&mapped), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (mapped.memory == MAP_FAILED)
        return -errno;
    *scoreboard = mapped;
    return 0;
}

/* Put a file in the place of the pages, which no worker uses yet. Returns its descriptor or -errno. It keeps its size: who
 * made it shorter, under the master's eyes, would end the master with a SIGBUS. */
int fan_scoreboard_share(const fan_scoreboard *scoreboard)
{
    size_t bytes = bytes_of(scoreboard);
    int fd = memfd_create("scoreboard", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd < 0)
        return -errno;
    if (ftruncate(fd, (off_t)bytes) == 0 &&
        fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) == 0 &&
        mmap(scoreboard->memory, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0) != MAP_FAILED)
        return fd;
    int rc = -errno;
    close(fd);
    return rc;
}

/* No-op if they are not mapped. */
void fan_scoreboard_unmap(const fan_scoreboard *scoreboard)
{
    if (scoreboard->memory)
        munmap(scoreboard->memory, bytes_of(scoreboard));
}

/* Unmap all scores but one, which is returned; the turns behind them stay. */
fan_score *fan_scoreboard_keep(const fan_scoreboard *scoreboard, int seat)
{
    if (seat > 0)
        munmap(scoreboard->memory, bytes_before(scoreboard, seat));
    if (seat + 1 < scoreboard->seats)
        munmap(fan_scoreboard_at(scoreboard, seat + 1), bytes_before(scoreboard, scoreboard->seats - seat - 1));
    return fan_scoreboard_at(scoreboard, seat);
}

fan_turns *fan_scoreboard_turns(const fan_scoreboard *scoreboard)
{
    return (fan_turns *)fan_scoreboard_at(scoreboard, scoreboard->seats);
}

/* ---- one page ------------------------------------------------------------------------------------------------------ */

int fan_ends_map(fan_ends *ends, int seat)
{
    size_t score_bytes = whole_pages(sizeof(fan_score)), turns_bytes = whole_pages(FAN_TURNS_BYTES);
    struct stat file;
    if (fstat(ends->scoreboard_fd, &file) < 0)
        return -errno;
    off_t at = (off_t)((size_t)seat * score_bytes), turns_at = file.st_size - (off_t)turns_bytes;
    void *page = mmap(NULL, score_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, ends->scoreboard_fd, at);
    if (page == MAP_FAILED)
        return -errno;
    void *shared = mmap(NULL, turns_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, ends->scoreboard_fd, turns_at);
    if (shared == MAP_FAILED) {
        int rc = -errno;
        munmap(page, score_bytes);
        return rc;
    }
    ends->score = page;
    ends->turns = shared;
    return 0;
}

void fan_score_begin(fan_score *page, uint64_t generation)
{
    memset(page, 0, sizeof *page);
    store(page->generation, generation);
}

/* In a child that a worker forked: from now on it writes to a page of its own that is never read. */
void fan_score_disown(fan_score *page)
{
    size_t bytes = whole_pages(sizeof *page);
    if (mmap(page, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == MAP_FAILED)
        munmap(page, bytes); /* rather a crash of the child than a lie about its parent */
}

uint64_t fan_score_taken(const fan_score *page)
{
    return load(page->taken);
}

uint64_t fan_score_finished(const fan_score *page)
{
    return load(page->done) + load(page->lost);
}

void fan_score_want(fan_score *page)
{
    atomic_store(&page->wanted, 1);
    atomic_thread_fence(memory_order_seq_cst); /* before the look, which is a relaxed one */
}

/* How many of the first `threads` threads wait for a connection. */
int fan_score_idle(const fan_score *page, int threads)
{
    int idle = 0;
    for (int thread = 0; thread < threads && thread < FAN_MAX_THREADS; thread++)
        idle += load(page->busy_since_ns[thread]) == 0;
    return idle;
}

void fan_score_look(const fan_score *page, fan_score_view *out)
{
    memset(out, 0, sizeof *out);
    out->generation = load(page->generation);
    out->lost = load(page->lost); /* what is lost is done with: it is no load */
    out->done = load(page->done) + out->lost;
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
void fan_score_enrol(fan_score *page, int thread)
{
    if (load(page->threads) <= thread)
        store(page->threads, thread + 1);
}

void fan_score_idle_now(fan_score *page, int thread)
{
    store(page->busy_since_ns[thread], 0);
}

/* It asks for a connection: from here on until it is idle one may be in its hands. */
void fan_score_busy_now(fan_score *page, int thread, int64_t now_ns)
{
    store(page->busy_since_ns[thread], now_ns);
    store(page->beat_ns, now_ns);
}

void fan_score_took(fan_score *page, int count)
{
    add(page->taken, (uint64_t)count);
}

void fan_score_beat(fan_score *page, int64_t now_ns)
{
    store(page->beat_ns, now_ns);
}

void fan_score_lost(fan_score *page, int count)
{
    add(page->lost, (uint64_t)count);
    add(page->taken, (uint64_t)count);
}

/* The worker counts first, then looks at `wanted`; the master writes `wanted` first, then looks at the count. So at least one
 * of them sees the write of the other; that needs one order of all four accesses (sequential consistency). */
int fan_score_done(fan_score *page)
{
    atomic_fetch_add(&page->done, 1);
    return atomic_load(&page->wanted) && atomic_exchange(&page->wanted, 0);
}

uint64_t *fan_score_done_cell(fan_score *page)
{
    return (uint64_t *)&page->done;
}
