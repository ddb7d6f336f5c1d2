/* life.c: a life of the core without Python, for the tools that cannot look through it: ThreadSanitizer and valgrind. See
 * test_threads.py.
 *
 * One process is the master, two workers in the pool with THREADS threads each, an event loop with a channel of its own,
 * and the clients. Half way the event loop leaves with clients in its channel, which are recalled, and a thread of the pool
 * is cancelled. Then a graceful stop. Each client must be answered with one byte, once.
 */
#define _GNU_SOURCE
#include "fanout.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

enum { POOL_WORKERS = 2, THREADS = 3, CLIENT_THREADS = 2, LOOP = POOL_WORKERS, SEATS, UNREAD_TURNS = 20 };

static int clients; /* of each client thread */
static atomic_int answered;
#ifdef RACE /* must be found */
static int served;
#define COUNT(counter) counter++
#else
static atomic_int served;
#define COUNT(counter) atomic_fetch_add(&counter, 1)
#endif
static struct sockaddr_in address = {.sin_family = AF_INET};
static atomic_bool loop_leaves;

#define CHECK(condition)                                                                    \
    do {                                                                                    \
        if (!(condition)) {                                                                 \
            fprintf(stderr, "line %d: %s, errno %d\n", __LINE__, #condition, errno);        \
            exit(1);                                                                        \
        }                                                                                   \
    } while (0)

struct reader {
    fan_receiver *receiver;
    fan_score *score;
    int fd;
};

static void answer(const struct reader *reader, const fan_connection *conn)
{
    CHECK(write(conn->fd, "x", 1) == 1);
    close(conn->fd);
    fan_score_done(reader->score);
    COUNT(served);
}

static void *thread_of_the_pool(void *argument)
{
    struct reader *reader = argument;
    fan_connection conn;
    for (;;) {
        int rc = fan_take_wait(reader->receiver);
        if (rc >= 0)
            rc = fan_take(reader->receiver, &conn, 0);
        if (rc == 1)
            answer(reader, &conn);
        else if (rc == 0 || rc == -ECANCELED)
            return NULL;
        else
            CHECK(rc == -EAGAIN || rc == -EINTR);
    }
}

static void *event_loop(void *argument)
{
    struct reader *reader = argument;
    fan_connection conns[8];
    struct pollfd readable = {.fd = reader->fd, .events = POLLIN};
    while (!atomic_load(&loop_leaves)) {
        if (poll(&readable, 1, 1) <= 0)
            continue;
        int rc = fan_take_ready(reader->receiver, conns, 8);
        CHECK(rc >= 0 || rc == -EAGAIN || rc == -EINTR);
        if (rc == 0)
            break;
        for (int i = 0; i < rc; i++)
            answer(reader, &conns[i]);
    }
    return NULL;
}

static void *ask(void *argument)
{
    (void)argument;
    for (int i = 0; i < clients; i++) {
        int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        char bytes[2];
        CHECK(fd >= 0);
        CHECK(connect(fd, (struct sockaddr *)&address, sizeof address) == 0);
        CHECK(recv(fd, bytes, sizeof bytes, MSG_WAITALL) == 1);
        close(fd);
        atomic_fetch_add(&answered, 1);
    }
    return NULL;
}

/* Until so many are answered, or the core has finished. */
static void dispatch(fan_core *core, int until)
{
    fan_event events[8];
    fan_score_view view;
    for (;;) {
        int count = fan_core_run(core, 1000000, events, 8);
        CHECK(count >= 0);
        for (int i = 0; i < count; i++)
            if (events[i].kind == FAN_EVENT_FINISHED)
                return;
        for (int seat = 0; seat < SEATS; seat++) {
            fan_seat_look(core, seat, &view);
            CHECK(view.done <= view.taken);
        }
        if (until && atomic_load(&answered) >= until)
            return;
    }
}

int main(int argc, char **argv)
{
    clients = argc > 1 ? atoi(argv[1]) : 500;
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    socklen_t bytes = sizeof address;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    CHECK(bind(listener, (struct sockaddr *)&address, sizeof address) == 0 && listen(listener, 128) == 0);
    CHECK(getsockname(listener, (struct sockaddr *)&address, &bytes) == 0);
    CHECK(fan_interrupt_with(SIGURG) == 0);

    fan_core *core;
    CHECK(fan_core_new(SEATS, FAN_LEAST_CONNECTIONS, &core) == 0);
    CHECK(fan_core_share(core) == 0);
    CHECK(fan_core_listen(core, listener) == 0);
    struct reader readers[SEATS][THREADS];
    pthread_t threads[SEATS][THREADS], askers[CLIENT_THREADS];
    for (int seat = 0; seat < SEATS; seat++) {
        int count = seat == LOOP ? 1 : THREADS;
        fan_ends ends;
        CHECK(fan_seat_begin(core, seat, 1, seat) == 0);
        fan_seat_ends(core, seat, &ends);
        CHECK(fan_ends_map(&ends, seat) == 0);
        for (int i = 0; i < count; i++) {
            int fd = seat == LOOP ? ends.seat_fd : ends.pool_fd;
            fan_turns *turns = seat == LOOP ? NULL : ends.turns;
            readers[seat][i] = (struct reader){fan_receiver_new(fd, ends.score, i, turns, seat), ends.score, fd};
            CHECK(readers[seat][i].receiver != NULL);
            CHECK(pthread_create(&threads[seat][i], NULL, seat == LOOP ? event_loop : thread_of_the_pool,
                                 &readers[seat][i]) == 0);
        }
        CHECK(fan_seat_enter(core, seat, seat != LOOP, seat == LOOP ? 0 : THREADS, seat == LOOP ? 8 : 24, 0) > 0);
    }
    for (int i = 0; i < CLIENT_THREADS; i++)
        CHECK(pthread_create(&askers[i], NULL, ask, NULL) == 0);

    dispatch(core, CLIENT_THREADS * clients / 2);
    atomic_store(&loop_leaves, true);
    pthread_join(threads[LOOP][0], NULL);
    for (int i = 0; i < UNREAD_TURNS; i++) /* its channel gets some that nobody reads */
        CHECK(fan_core_run(core, 1000000, (fan_event[8]){0}, 8) >= 0);
    fan_seat_leave(core, LOOP);
    fan_receiver_cancel(readers[0][0].receiver);
    dispatch(core, CLIENT_THREADS * clients);
    while (fan_receiver_sleeps(readers[0][0].receiver)) {
        pthread_kill(threads[0][0], SIGURG);
        usleep(1000);
    }
    fan_core_finish(core, 128);
    dispatch(core, 0);
    for (int i = 0; i < CLIENT_THREADS; i++)
        pthread_join(askers[i], NULL);
    for (int seat = 0; seat < POOL_WORKERS; seat++)
        for (int i = 0; i < THREADS; i++)
            pthread_join(threads[seat][i], NULL);
    fan_counters counters;
    fan_core_count(core, &counters);
    CHECK(counters.accepted + counters.recalled == counters.passed && counters.recalled > 0);
    CHECK(atomic_load(&answered) == CLIENT_THREADS * clients && served == atomic_load(&answered));
    for (int seat = 0; seat < SEATS; seat++)
        for (int i = 0; i < (seat == LOOP ? 1 : THREADS); i++)
            fan_receiver_free(readers[seat][i].receiver);
    fan_core_free(core);
    printf("answered %d, recalled %d\n", atomic_load(&answered), (int)counters.recalled);
    return 0;
}
