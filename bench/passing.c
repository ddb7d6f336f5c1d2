/* passing.c: what it costs to pass connections as one message each, or several in one message.
 *
 * `cc -O2 -o passing bench/passing.c && ./passing` prints microseconds of CPU for each connection, for both ends together:
 * put into a SEQPACKET channel, taken out, both copies closed. Interleaved rounds, median of 9. No client is in it: what
 * is passed is an eventfd, which costs the kernel's fd passing the same as a TCP socket.
 */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define MOST 32
#define RECORD_BYTES 136 /* as the core's fan_record */
#define CONNECTIONS 40000
#define ROUNDS 9

static double cpu_us(void)
{
    struct timespec now;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
    return (double)now.tv_sec * 1e6 + (double)now.tv_nsec / 1e3;
}

static void check(int good, const char *what)
{
    if (!good) {
        perror(what);
        exit(1);
    }
}

/* `messages` messages with `each` descriptors. */
static void pass(const int *ends, int messages, int each)
{
    static char records[MOST][MOST * RECORD_BYTES];
    static union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(MOST * sizeof(int))];
    } controls[MOST];
    struct mmsghdr out[MOST];
    struct iovec data[MOST];
    int fds[MOST];
    for (int i = 0; i < messages; i++) {
        for (int j = 0; j < each; j++)
            check((fds[j] = eventfd(0, EFD_CLOEXEC)) >= 0, "eventfd");
        data[i] = (struct iovec){records[i], (size_t)each * RECORD_BYTES};
        out[i] = (struct mmsghdr){.msg_hdr = {.msg_iov = &data[i],
                                              .msg_iovlen = 1,
                                              .msg_control = controls[i].bytes,
                                              .msg_controllen = CMSG_SPACE((size_t)each * sizeof(int))}};
        struct cmsghdr *header = CMSG_FIRSTHDR(&out[i].msg_hdr);
        header->cmsg_level = SOL_SOCKET;
        header->cmsg_type = SCM_RIGHTS;
        header->cmsg_len = CMSG_LEN((size_t)each * sizeof(int));
        memcpy(CMSG_DATA(header), fds, (size_t)each * sizeof(int));
    }
    check(sendmmsg(ends[0], out, (unsigned)messages, 0) == messages, "sendmmsg");
    for (int i = 0; i < messages; i++) {
        memcpy(fds, CMSG_DATA(CMSG_FIRSTHDR(&out[i].msg_hdr)), (size_t)each * sizeof(int));
        for (int j = 0; j < each; j++)
            close(fds[j]);
        out[i].msg_hdr.msg_controllen = sizeof controls[i].bytes;
    }
    check(recvmmsg(ends[1], out, (unsigned)messages, MSG_CMSG_CLOEXEC | MSG_DONTWAIT, NULL) == messages, "recvmmsg");
    for (int i = 0; i < messages; i++) {
        memcpy(fds, CMSG_DATA(CMSG_FIRSTHDR(&out[i].msg_hdr)), (size_t)each * sizeof(int));
        for (int j = 0; j < each; j++)
            close(fds[j]);
    }
}

static double cost_us(const int *ends, int messages, int each)
{
    double begin_us = cpu_us();
    for (int done = 0; done < CONNECTIONS; done += messages * each)
        pass(ends, messages, each);
    return (cpu_us() - begin_us) / CONNECTIONS;
}

static int by_size(const void *a, const void *b)
{
    return (*(const double *)a > *(const double *)b) - (*(const double *)a < *(const double *)b);
}

int main(void)
{
    static const int batches[] = {1, 2, 4, 8, 16};
    int ends[2];
    check(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, ends) == 0, "socketpair");
    printf("batch  one each  several  difference (us per connection)\n");
    for (size_t i = 0; i < sizeof batches / sizeof *batches; i++) {
        double one[ROUNDS], several[ROUNDS];
        for (int round = 0; round < ROUNDS; round++) {
            one[round] = cost_us(ends, batches[i], 1);
            several[round] = cost_us(ends, 1, batches[i]);
        }
        qsort(one, ROUNDS, sizeof *one, by_size);
        qsort(several, ROUNDS, sizeof *several, by_size);
        printf("%5d  %8.2f  %7.2f  %10.2f\n", batches[i], one[ROUNDS / 2], several[ROUNDS / 2],
               one[ROUNDS / 2] - several[ROUNDS / 2]);
    }
    return 0;
}
