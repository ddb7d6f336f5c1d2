/*
 * load: asks a server on loopback, counts every answer and every failure, and times both.
 *
 * Closed loop (--closed C): C connections are always in flight, the next starts when one ends.
 * Open loop (--rate R): requests start by a schedule that does not care how the server does. Latency is counted
 * from the instant the schedule gave, so a server that stalls is charged for every request that had to wait.
 * Hold (--hold N): opens N connections, reads from each the id of the worker that has it, keeps all of them open
 * until the last has answered.
 * SIGTERM ends each of them early: nothing more is started, what is under way is finished, and all is said.
 *
 * One connection is one request: connect, send, read until the server closes, close. An answer is
 * "HTTP/1.x 200 ...\r\n\r\n<worker id>\n", so that wrk and ab can be pointed at the same server.
 *
 * Client addresses go round, from 127.64.0.1 on, so that no pair of addresses runs out of ports.
 * Only 127.0.0.0/8 can be asked: this is a bench, not a weapon.
 *
 * One thread, one epoll. It often shares a core with the server that it measures, so it spares system calls: on
 * loopback a request can be sent right after the non-blocking connect, a socket is registered once, for "the server
 * has closed", and then one recv reads everything.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <ctype.h>
#include <err.h>
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <math.h>
#include <netinet/in.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum {
    ANSWER_BYTES = 512, /* a longer answer is a wrong one */
    PATH_BYTES = 64, TEXT_BYTES = 128, /* of a path, and of a whole request */
    STARTS_PER_TURN = 64,
    EVENTS_PER_TURN = 64,
    WORKERS_MAX = 1024, /* different ids that can be told apart */
    SOURCES = 64, /* client addresses to go round in */
};

#define NS_PER_S INT64_C(1000000000)
/* A client of the closed loop that was refused comes again after so long: without a pause, 64 of them would take the CPU
 * from the server that is about to come back. */
#define REFUSED_PAUSE_NS INT64_C(10000000)

/* ---- time, chance ------------------------------------------------------------------------------------------ */

static int64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * NS_PER_S + t.tv_nsec;
}

static int64_t ns_of(double seconds)
{
    return (int64_t)(seconds * (double)NS_PER_S);
}

static double seconds_of(int64_t ns)
{
    return (double)ns / (double)NS_PER_S;
}

/* splitmix64 [Vigna]: the same numbers on every machine for the same seed. */
static double chance(uint64_t *state)
{
    uint64_t z = (*state += UINT64_C(0x9e3779b97f4a7c15));
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    z ^= z >> 31;
    return (double)(z >> 11) * 0x1p-53; /* [0, 1) */
}

/* ---- a histogram of times in ns whose percentiles are right to within 0.4 %, from 1 ns to half an hour -------- */

enum {
    HISTOGRAM_SUB = 128, /* buckets per power of two: at most 1/128 wide, the middle is reported */
    HISTOGRAM_TOP = 41, /* 2^41 ns is 36 minutes */
};

struct histogram {
    uint64_t bucket[(HISTOGRAM_TOP - 6) * HISTOGRAM_SUB];
    uint64_t count;
    int64_t max; /* exact */
    double sum;
};

/* Below 128 a bucket is one value; above, each power of two has 128 of equal width. */
static size_t bucket_of(int64_t value)
{
    uint64_t v = value < 0 ? 0 : (uint64_t)value;
    if (v >= UINT64_C(1) << HISTOGRAM_TOP)
        v = (UINT64_C(1) << HISTOGRAM_TOP) - 1;
    if (v < HISTOGRAM_SUB)
        return v;
    unsigned top_bit = 63U - (unsigned)__builtin_clzll(v);
    return (size_t)(top_bit - 6) * HISTOGRAM_SUB + (size_t)(v >> (top_bit - 7)) - HISTOGRAM_SUB;
}

static int64_t middle_of(size_t bucket)
{
    if (bucket < HISTOGRAM_SUB)
        return (int64_t)bucket;
    unsigned shift = (unsigned)(bucket / HISTOGRAM_SUB) - 1;
    uint64_t low = (uint64_t)(HISTOGRAM_SUB + bucket % HISTOGRAM_SUB) << shift;
    return (int64_t)(low + (UINT64_C(1) << shift) / 2);
}

static void histogram_add(struct histogram *h, int64_t value)
{
    h->bucket[bucket_of(value)]++;
    h->count++;
    h->sum += (double)value;
    if (value > h->max)
        h->max = value;
}

/* The smallest value that at least this share of all values does not exceed. */
static int64_t histogram_at(const struct histogram *h, double share)
{
    uint64_t rank = (uint64_t)ceil(share * (double)h->count), seen = 0;
    for (size_t i = 0; i < sizeof h->bucket / sizeof h->bucket[0]; i++) {
        seen += h->bucket[i];
        if (seen >= rank && seen > 0)
            return middle_of(i) < h->max ? middle_of(i) : h->max;
    }
    return 0;
}

static void histogram_print(const char *name, const struct histogram *h, const char *end)
{
    printf("\"%s\": {\"count\": %" PRIu64 ", \"mean\": %.0f, \"p50\": %" PRId64 ", \"p90\": %" PRId64
           ", \"p99\": %" PRId64 ", \"p999\": %" PRId64 ", \"max\": %" PRId64 "}%s",
           name, h->count, h->count ? h->sum / (double)h->count : 0.0, histogram_at(h, 0.5), histogram_at(h, 0.9),
           histogram_at(h, 0.99), histogram_at(h, 0.999), h->max, end);
}

/* ---- what was asked for ------------------------------------------------------------------------------------ */

struct options {
    struct sockaddr_in target;
    double closed; /* connections in flight, 0: open loop */
    double rate; /* arrivals per second, 0: as fast as it goes */
    double hold; /* connections to hold, 0: ask and close */
    double requests; /* on each connection, one after the other */
    double duration_s; /* requests start for this long after the warm-up */
    double warmup_s; /* requests before this are made but not timed */
    double timeout_s; /* per request, from its true start */
    double count; /* requests to start at most, 0: no limit */
    double max_open; /* in flight at most; an arrival beyond it is an error, "overflow" */
    double slow_fraction; /* of the requests that ask for slow_path */
    const char *path, *slow_path; /* what the others, and those, ask for */
    double exponential_us; /* mean of what all ask to wait, 0: they ask for these paths */
    double seed;
    double cpu; /* to run on, -1: any */
};

/* ---- one run ----------------------------------------------------------------------------------------------- */

enum error {
    REFUSED, /* ECONNREFUSED */
    RESET, /* ECONNRESET, EPIPE */
    TIMEOUT, /* no whole answer within --timeout */
    SHORT, /* closed before a whole answer, or while it was to be held */
    WRONG, /* a whole answer, but not a 200 with a worker id */
    OVERFLOW, /* due while --max-open were in flight: never sent */
    LOCAL, /* this side could not: no descriptor, port or memory */
    OTHER,
    ERRORS
};

static const char *const ERROR_NAMES[ERRORS] = {"refused", "reset", "timeout", "short",
                                                "wrong", "overflow", "local", "other"};

enum request_class { FAST, SLOW, CLASSES };

enum state { CONNECTING, WAITING, HELD };

struct request {
    int fd; /* -1: none */
    enum state state;
    enum request_class class;
    int64_t wait_us; /* what it asks the server to take, in exponential_us */
    size_t got; /* bytes of the answer */
    int asked; /* requests sent on this connection */
    int64_t due_ns; /* when the schedule wanted it */
    int64_t deadline_ns;
    struct request *older, *younger; /* all share one timeout, so the list of running ones is sorted by itself */
    struct request *next_free;
    char answer[ANSWER_BYTES];
};

struct worker {
    uint64_t id, answers;
};

struct run {
    const struct options *options;
    int epoll;
    char text[CLASSES][TEXT_BYTES]; /* the requests as sent */
    size_t text_len[CLASSES];

    struct request *requests, *free, *oldest, *youngest;
    int open; /* in flight, held ones too */
    int held;
    int64_t *paused_until; /* closed loop: a ring of when refused clients come again, the first one first */
    int paused, paused_first;
    bool stopped; /* by SIGTERM */

    int64_t begin_ns, window_ns, end_ns; /* first request; first timed one; no more start from here */
    int64_t next_ns; /* open loop: the next arrival */
    uint64_t arrival_state, class_state; /* two sources of chance, so that arrivals do not depend on classes */
    uint64_t source; /* the next client address */

    uint64_t started, answered, errors[ERRORS];
    uint64_t in_window; /* answers that came between window_ns and end_ns */
    int64_t last_ns; /* the last answer */
    struct histogram latency[CLASSES], late_start;
    struct worker workers[WORKERS_MAX];
    int workers_count;
    int64_t idle_ns, longest_turn_ns;
};

static void unlist(struct run *run, struct request *request)
{
    *(request->older ? &request->older->younger : &run->oldest) = request->younger;
    *(request->younger ? &request->younger->older : &run->youngest) = request->older;
}

static void release(struct run *run, struct request *request)
{
    if (request->state != HELD)
        unlist(run, request);
    else
        run->held--;
    if (request->fd >= 0)
        close(request->fd); /* leaves the epoll by itself: no other process has this socket */
    request->next_free = run->free;
    run->free = request;
    run->open--;
}

static void fail(struct run *run, struct request *request, enum error error)
{
    run->errors[error]++;
    if (request->state == HELD)
        run->answered--; /* it had answered, but then it was not held */
    release(run, request);
    if (error == REFUSED && run->options->closed > 0)
        run->paused_until[(run->paused_first + run->paused++) % (int)run->options->closed] = now_ns() + REFUSED_PAUSE_NS;
}

static enum error error_of(int number)
{
    switch (number) {
    case ECONNREFUSED: return REFUSED;
    case ECONNRESET:
    case EPIPE: return RESET;
    case ETIMEDOUT: return TIMEOUT;
    case EMFILE:
    case ENFILE:
    case ENOBUFS:
    case ENOMEM:
    case EADDRNOTAVAIL:
    case EADDRINUSE: return LOCAL;
    default: return OTHER;
    }
}

/* Beyond WORKERS_MAX the last entry takes them all: it shows, and nothing is lost from the sum. */
static void count_worker(struct run *run, uint64_t id)
{
    int i = 0;
    while (i < run->workers_count && run->workers[i].id != id)
        i++;
    if (i == run->workers_count && i < WORKERS_MAX)
        run->workers[run->workers_count++].id = id;
    run->workers[i < WORKERS_MAX ? i : WORKERS_MAX - 1].answers++;
}

/* -1 and the worker's id, or the error. */
static int parse_answer(const struct request *request, uint64_t *id)
{
    const char *text = request->answer, *end = text + request->got;
    const char *body = memmem(text, request->got, "\r\n\r\n", 4);
    if (body == NULL || end[-1] != '\n' || body + 4 == end)
        return SHORT;
    if (request->got < 13 || memcmp(text, "HTTP/1.", 7) != 0 || memcmp(text + 8, " 200", 4) != 0)
        return WRONG;
    char *rest;
    *id = strtoull(body + 4, &rest, 10);
    return isdigit((unsigned char)body[4]) && rest == end - 1 ? -1 : WRONG;
}

static void transmit(struct run *run, struct request *request);

/* Whether the server keeps the connection open after its answer: then the answer's own end tells that it is whole. */
static bool stays_open(const struct options *o)
{
    return o->hold > 0 || o->requests > 1;
}

/* Of a request: servers keep a connection open that is asked by HTTP/1.1. */
static const char *ending(const struct options *o)
{
    return stays_open(o) ? "HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" : "HTTP/1.0\r\n\r\n";
}

static void finish(struct run *run, struct request *request, uint64_t id)
{
    if (request->asked < run->options->requests) {
        request->got = 0;
        transmit(run, request);
        return;
    }
    int64_t now = now_ns();
    run->answered++;
    run->last_ns = now;
    count_worker(run, id);
    if (now >= run->window_ns && now < run->end_ns)
        run->in_window++;
    if (request->due_ns >= run->window_ns)
        histogram_add(&run->latency[request->class], now - request->due_ns);
    if (run->options->hold == 0) {
        release(run, request);
        return;
    }
    unlist(run, request);
    request->state = HELD;
    run->held++;
}

/* Something came, or the server closed. `closed`: the kernel said that nothing more will come after what is there. */
static void receive(struct run *run, struct request *request, bool closed)
{
    for (;;) {
        size_t room = sizeof request->answer - request->got;
        if (room == 0) {
            fail(run, request, WRONG);
            return;
        }
        ssize_t n = recv(request->fd, request->answer + request->got, room, 0);
        if (n < 0) {
            if (errno == EINTR)
                continue;
            if (errno != EAGAIN)
                fail(run, request, error_of(errno));
            return;
        }
        if (request->state == HELD) {
            fail(run, request, n > 0 ? WRONG : SHORT);
            return;
        }
        request->got += (size_t)n;
        uint64_t id;
        bool over = n == 0 || (closed && (size_t)n < room);
        int error = over != stays_open(run->options) ? parse_answer(request, &id) : SHORT;
        if (error < 0)
            finish(run, request, id);
        else if (over || error != SHORT)
            fail(run, request, (enum error)error);
        else
            continue;
        return;
    }
}

/* Sends the request; what does not fit into an empty socket's buffer at once never will. */
static void transmit(struct run *run, struct request *request)
{
    const char *text = run->text[request->class];
    size_t len = run->text_len[request->class];
    char own[TEXT_BYTES];
    if (run->options->exponential_us > 0) {
        len = (size_t)snprintf(own, sizeof own, "GET /wait/%" PRId64 " %s", request->wait_us, ending(run->options));
        text = own;
    }
    ssize_t n = send(request->fd, text, len, MSG_NOSIGNAL);
    bool known = request->state == CONNECTING || request->asked > 0;
    uint32_t wanted = stays_open(run->options) ? EPOLLIN | EPOLLRDHUP : EPOLLRDHUP;
    if (n < 0 && errno == EAGAIN && !known) {
        request->state = CONNECTING; /* the accept queue is full: the kernel tries again in a second */
        wanted = EPOLLOUT;
    } else if (n < 0) {
        fail(run, request, error_of(errno));
        return;
    } else if ((size_t)n != len) {
        fail(run, request, OTHER);
        return;
    } else {
        request->state = WAITING;
        if (request->asked++ > 0)
            return; /* it is waited for already */
    }
    struct epoll_event event = {.events = wanted, .data.ptr = request};
    if (epoll_ctl(run->epoll, known ? EPOLL_CTL_MOD : EPOLL_CTL_ADD, request->fd, &event) < 0)
        fail(run, request, error_of(errno));
}

/* 0, or -1 and errno. The port is chosen at connect, when the whole pair of addresses is known. */
static int open_socket(struct run *run, struct request *request)
{
    uint32_t source = UINT32_C(0x7f400001) + (uint32_t)(run->source++ % SOURCES);
    struct sockaddr_in from = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(source)};
    int on = 1;
    request->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (request->fd < 0 || setsockopt(request->fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &on, sizeof on) < 0)
        return -1;
    return bind(request->fd, (struct sockaddr *)&from, sizeof from);
}

static void start(struct run *run, int64_t due_ns, int64_t now)
{
    enum request_class class = FAST;
    if (run->options->slow_fraction > 0 && chance(&run->class_state) < run->options->slow_fraction)
        class = SLOW;
    int64_t wait_us = 0;
    if (run->options->exponential_us > 0)
        wait_us = (int64_t)(-log1p(-chance(&run->class_state)) * run->options->exponential_us);
    run->started++;
    if (run->open == run->options->max_open) {
        run->errors[OVERFLOW]++;
        return;
    }
    struct request *request = run->free;
    run->free = request->next_free;
    run->open++;
    *request = (struct request){.fd = -1, .state = WAITING, .class = class, .wait_us = wait_us, .due_ns = due_ns,
                                .deadline_ns = now + ns_of(run->options->timeout_s), .older = run->youngest};
    *(run->youngest ? &run->youngest->younger : &run->oldest) = request;
    run->youngest = request;
    if (due_ns >= run->window_ns)
        histogram_add(&run->late_start, now - due_ns);

    const struct sockaddr *target = (const struct sockaddr *)&run->options->target;
    if (open_socket(run, request) < 0 ||
        (connect(request->fd, target, sizeof run->options->target) < 0 && errno != EINPROGRESS)) {
        fail(run, request, error_of(errno));
        return;
    }
    transmit(run, request);
}

static bool may_start(const struct run *run, int64_t at_ns)
{
    if (run->stopped)
        return false;
    if (run->options->hold > 0)
        return run->started < run->options->hold;
    return at_ns < run->end_ns && (run->options->count == 0 || run->started < run->options->count);
}

/* When the next one may start: by the schedule, or as soon as a client of the closed loop is free. */
static int64_t next_start(const struct run *run, int64_t now)
{
    if (run->options->rate > 0)
        return run->next_ns;
    if (run->options->closed == 0 || run->open + run->paused < run->options->closed)
        return now;
    return run->paused > 0 ? run->paused_until[run->paused_first] : INT64_MAX;
}

/* A turn starts only so many that answers are looked at in between. */
static void start_due(struct run *run)
{
    const struct options *o = run->options;
    for (int i = 0; i < STARTS_PER_TURN; i++) {
        int64_t now = now_ns();
        for (; run->paused > 0 && run->paused_until[run->paused_first] <= now; run->paused--)
            run->paused_first = (run->paused_first + 1) % (int)o->closed;
        int64_t due_ns = next_start(run, now);
        if (due_ns > now || !may_start(run, due_ns))
            return;
        if (o->rate > 0)
            run->next_ns += ns_of(-log1p(-chance(&run->arrival_state)) / o->rate);
        start(run, due_ns, now);
    }
}

static void expire(struct run *run)
{
    int64_t now = now_ns();
    while (run->oldest != NULL && run->oldest->deadline_ns <= now) {
        /* A reset, so that a connection without a use leaves no port behind. */
        struct linger none = {.l_onoff = 1, .l_linger = 0};
        setsockopt(run->oldest->fd, SOL_SOCKET, SO_LINGER, &none, sizeof none);
        fail(run, run->oldest, TIMEOUT);
    }
}

static void loop(struct run *run)
{
    struct epoll_event events[EVENTS_PER_TURN];
    int64_t turn_ns = run->begin_ns;
    for (;;) {
        expire(run);
        start_due(run);
        int64_t before = now_ns(), next = next_start(run, before);
        int64_t wake = run->oldest ? run->oldest->deadline_ns : INT64_MAX;
        bool more = may_start(run, next);
        if (!more && run->open == run->held)
            break;
        if (more && next < wake)
            wake = next; /* something has to be done even if no answer comes */
        if (before - turn_ns > run->longest_turn_ns)
            run->longest_turn_ns = before - turn_ns;
        int64_t wait = wake > before ? wake - before : 0;
        struct timespec timeout = {wait / NS_PER_S, wait % NS_PER_S};
        int n = epoll_pwait2(run->epoll, events, EVENTS_PER_TURN, wake == INT64_MAX ? NULL : &timeout, NULL);
        if (n < 0 && errno != EINTR)
            err(1, "epoll_pwait2");
        turn_ns = now_ns();
        run->idle_ns += turn_ns - before;
        for (int i = 0; i < n; i++) {
            struct request *request = events[i].data.ptr;
            if (request == NULL) {
                run->stopped = true; /* as at the end of the duration */
                run->end_ns = turn_ns < run->end_ns ? turn_ns : run->end_ns;
            } else if (request->state == CONNECTING)
                transmit(run, request);
            else
                receive(run, request, (events[i].events & (EPOLLRDHUP | EPOLLHUP)) != 0);
        }
    }
}

/* ---- before and after -------------------------------------------------------------------------------------- */

static void prepare(struct run *run, const struct options *o)
{
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    if (setrlimit(RLIMIT_NOFILE, &files) < 0 || (rlim_t)o->max_open + 16 > files.rlim_max)
        errx(2, "%.0f open connections need more descriptors than are allowed", o->max_open);
    if (o->cpu >= 0) {
        cpu_set_t set;
        CPU_ZERO(&set);
        CPU_SET((size_t)o->cpu, &set);
        if (sched_setaffinity(0, sizeof set, &set) < 0)
            err(2, "cannot run on cpu %.0f", o->cpu);
    }
    prctl(PR_SET_TIMERSLACK, 1UL); /* 50 us by default: most of what is measured */

    run->options = o;
    run->arrival_state = (uint64_t)o->seed;
    run->class_state = ~run->arrival_state;
    const char *const paths[CLASSES] = {[FAST] = o->path, [SLOW] = o->slow_path};
    for (int i = 0; i < CLASSES; i++)
        run->text_len[i] = (size_t)snprintf(run->text[i], sizeof run->text[i], "GET /%s %s", paths[i], ending(o));
    run->epoll = epoll_create1(EPOLL_CLOEXEC);
    run->requests = calloc((size_t)o->max_open, sizeof *run->requests);
    run->paused_until = calloc((size_t)o->max_open, sizeof *run->paused_until);
    sigset_t term;
    sigemptyset(&term);
    sigaddset(&term, SIGTERM);
    sigprocmask(SIG_BLOCK, &term, NULL);
    int told = signalfd(-1, &term, SFD_CLOEXEC);
    struct epoll_event event = {.events = EPOLLIN | EPOLLONESHOT, .data.ptr = NULL}; /* it is not read */
    if (run->epoll < 0 || run->requests == NULL || run->paused_until == NULL || told < 0 ||
        epoll_ctl(run->epoll, EPOLL_CTL_ADD, told, &event) < 0)
        err(1, "start");
    for (int i = (int)o->max_open - 1; i >= 0; i--) {
        run->requests[i].next_free = run->free;
        run->free = &run->requests[i];
    }
    run->begin_ns = run->next_ns = now_ns();
    run->window_ns = run->begin_ns + ns_of(o->warmup_s);
    run->end_ns = run->window_ns + ns_of(o->duration_s);
}

static void report(const struct run *run)
{
    const struct options *o = run->options;
    int64_t wall_ns = now_ns() - run->begin_ns;
    bool ended_early = o->hold > 0 || (o->count > 0 && run->started >= o->count);
    int64_t window_end_ns = ended_early && run->last_ns < run->end_ns ? run->last_ns : run->end_ns;
    double window_s = window_end_ns > run->window_ns ? seconds_of(window_end_ns - run->window_ns) : 0;
    struct timespec cpu;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &cpu);
    double waited_ns = -1; /* ready to run, while another had the core */
    FILE *schedstat = fopen("/proc/self/schedstat", "re");
    if (schedstat == NULL || fscanf(schedstat, "%*u %lf", &waited_ns) != 1)
        waited_ns = -1e9;
    uint64_t errors_total = 0;
    for (int i = 0; i < ERRORS; i++)
        errors_total += run->errors[i];

    printf("{\"mode\": \"%s\", \"seed\": %.0f, ", o->hold ? "hold" : o->rate > 0 ? "open" : "closed", o->seed);
    printf("\"started\": %" PRIu64 ", \"answered\": %" PRIu64 ", \"errors_total\": %" PRIu64 ", \"errors\": {",
           run->started, run->answered, errors_total);
    for (int i = 0; i < ERRORS; i++)
        printf("%s\"%s\": %" PRIu64, i ? ", " : "", ERROR_NAMES[i], run->errors[i]);
    printf("}, \"window_s\": %.6f, \"answers_in_window\": %" PRIu64 ", \"answers_per_s\": %.3f, \"latency_ns\": {", window_s,
           run->in_window, window_s > 0 ? (double)run->in_window / window_s : 0.0);
    histogram_print("fast", &run->latency[FAST], ", ");
    histogram_print("slow", &run->latency[SLOW], "}, ");
    histogram_print("late_start_ns", &run->late_start, ", ");
    printf("\"self\": {\"wall_s\": %.6f, \"cpu_s\": %.6f, \"busy_fraction\": %.4f, \"waited_for_cpu_s\": %.6f, "
           "\"longest_turn_ns\": %" PRId64 "}, \"workers\": {",
           seconds_of(wall_ns), seconds_of(cpu.tv_sec * NS_PER_S + cpu.tv_nsec),
           1 - (double)run->idle_ns / (double)wall_ns, waited_ns / 1e9, run->longest_turn_ns);
    for (int i = 0; i < run->workers_count; i++)
        printf("%s\"%" PRIu64 "\": %" PRIu64, i ? ", " : "", run->workers[i].id, run->workers[i].answers);
    printf("}}\n");
}

/* --histogram: whole numbers from stdin, their percentiles to stdout. How the tests check the histogram. */
static int histogram_main(void)
{
    static struct histogram h;
    int64_t value;
    while (scanf("%" SCNd64, &value) == 1)
        histogram_add(&h, value);
    printf("{");
    histogram_print("stdin", &h, "}\n");
    return 0;
}

static const char *const USAGE =
    "usage: load [--closed C | --rate R | --hold N [--rate R]] [options] 127.0.0.1:PORT\n"
    "  --closed C         C connections always in flight (default 1); a refused one comes again after 10 ms\n"
    "  --rate R           open loop: R requests per second, exponential distances\n"
    "  --hold N           open N connections (at once, or at --rate), hold all until the last has answered\n"
    "  --requests N       on each connection, one after the other; it is answered when all are (default 1)\n"
    "  --duration S       start requests for S seconds (default 5), or until SIGTERM; --count N: and at most N of them\n"
    "  --warmup S         before that, S seconds of requests that are not timed (default 0)\n"
    "  --timeout S        for one request (default 10)\n"
    "  --max-open N       open loop: in flight at most, beyond is an error 'overflow' (default 10000)\n"
    "  --path NAME        ask for /NAME (default fast, or hold, or keep)\n"
    "  --slow-fraction F  and this often (default 0) for --slow-path NAME (default slow)\n"
    "  --exponential US   ask for /wait/T instead, T whole microseconds from an exponential distribution of this mean\n"
    "  --seed N           of arrivals and of which are slow (default 1)\n"
    "  --cpu N            run on this core\n"
    "  --histogram        only: percentiles of the whole numbers on stdin\n";

static double number(const char *name, const char *text, double least, double most)
{
    char *end;
    errno = 0;
    double value = strtod(text, &end);
    if (end == text || *end != '\0' || errno != 0 || !(value >= least && value <= most))
        errx(2, "--%s wants a number from %g to %g, not '%s'", name, least, most, text);
    return value;
}

static struct sockaddr_in loopback(char *text)
{
    struct sockaddr_in address = {.sin_family = AF_INET};
    char *port = strrchr(text, ':');
    if (port != NULL)
        *port++ = '\0';
    if (port == NULL || inet_pton(AF_INET, text, &address.sin_addr) != 1)
        errx(2, "the target is 127.0.0.1:port, not '%s'", text);
    if (ntohl(address.sin_addr.s_addr) >> 24 != 127)
        errx(2, "refused: %s is not a loopback address", text);
    address.sin_port = htons((uint16_t)number("target port", port, 1, 65535));
    return address;
}

static struct options parse(int argc, char **argv)
{
    struct options o = {.requests = 1, .duration_s = 5, .timeout_s = 10, .max_open = 10000, .slow_path = "slow",
                        .seed = 1, .cpu = -1};
    const struct { const char *name; double *value, least, most; const char **text; } knobs[] = {
        {"closed", &o.closed, 1, 1e5, NULL}, {"rate", &o.rate, 0.001, 1e7, NULL}, {"hold", &o.hold, 1, 1e6, NULL},
        {"requests", &o.requests, 1, 1e6, NULL}, {"duration", &o.duration_s, 0.001, 3600, NULL},
        {"count", &o.count, 1, 1e15, NULL}, {"warmup", &o.warmup_s, 0, 3600, NULL},
        {"timeout", &o.timeout_s, 0.001, 600, NULL}, {"max-open", &o.max_open, 1, 1e6, NULL},
        {"slow-fraction", &o.slow_fraction, 0, 1, NULL}, {"exponential", &o.exponential_us, 1, 1e6, NULL},
        {"seed", &o.seed, 0, 9e15, NULL}, {"cpu", &o.cpu, 0, CPU_SETSIZE - 1, NULL},
        {"path", NULL, 0, 0, &o.path}, {"slow-path", NULL, 0, 0, &o.slow_path},
    };
    enum { KNOBS = sizeof knobs / sizeof *knobs, HISTOGRAM = KNOBS, HELP, ALL };
    struct option known[ALL + 1] = {[HISTOGRAM] = {"histogram", 0, NULL, HISTOGRAM}, [HELP] = {"help", 0, NULL, HELP}};
    for (int i = 0; i < KNOBS; i++)
        known[i] = (struct option){knobs[i].name, 1, NULL, i};

    int choice;
    while ((choice = getopt_long(argc, argv, "", known, NULL)) != -1) {
        if (choice == HISTOGRAM)
            exit(histogram_main());
        if (choice >= KNOBS) {
            fputs(USAGE, choice == HELP ? stdout : stderr);
            exit(choice == HELP ? 0 : 2);
        }
        if (knobs[choice].text != NULL)
            *knobs[choice].text = optarg;
        else
            *knobs[choice].value = number(knobs[choice].name, optarg, knobs[choice].least, knobs[choice].most);
    }
    if (optind != argc - 1)
        errx(2, "give one target, 127.0.0.1:PORT (--help says more)");
    o.target = loopback(argv[optind]);
    if (o.hold > 0 && o.requests > 1)
        errx(2, "--requests does not go with --hold");
    if (o.closed > 0 && (o.rate > 0 || o.hold > 0))
        errx(2, "--closed goes neither with --rate nor with --hold");
    if (o.exponential_us > 0 && o.slow_fraction > 0)
        errx(2, "--exponential does not go with --slow-fraction");
    if (o.path == NULL)
        o.path = o.hold > 0 ? "hold" : o.requests > 1 ? "keep" : "fast";
    if (strlen(o.path) > PATH_BYTES || strlen(o.slow_path) > PATH_BYTES)
        errx(2, "--path and --slow-path want at most %d characters", PATH_BYTES);
    if (o.closed == 0 && o.rate == 0 && o.hold == 0)
        o.closed = 1;
    if (o.hold > 0 || o.closed > 0)
        o.max_open = o.hold > 0 ? o.hold : o.closed;
    return o;
}

int main(int argc, char **argv)
{
    static struct run run; /* its histograms are too large for a stack */
    struct options options = parse(argc, argv);
    prepare(&run, &options);
    loop(&run);
    report(&run);
    return 0;
}
