/* passing.c: what it costs to pass connections as one message each, or several in one message.
 *
 * `cc -O2 -o passing bench/passing.c && ./passing` prints microseconds of CPU for each connection, for both ends together:
 * put into a SEQPACKET channel, taken out, both copies closed. Interleaved rounds, the least of 9. No client is in it: what
 * is passed is an eventfd, which costs the kernel's fd passing the same as a TCP socket.
 */
#define _GNU_SOURCE
#include <err.h>
#include <stdio.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { MOST = 16, RECORD_BYTES = 136, CONNECTIONS = 40000, ROUNDS = 9 }; /* a record is as the core's fan_record */

/* `count` messages with `each` descriptors. */
static void pass(const int *ends, int count, int each)
{
    static char records[MOST][MOST * RECORD_BYTES];
    static _Alignas(struct cmsghdr) char controls[MOST][CMSG_SPACE(MOST * sizeof(int))];
    struct mmsghdr messages[MOST];
    struct iovec data[MOST];
    for (int i = 0; i < count; i++) {
        data[i] = (struct iovec){records[i], (size_t)each * RECORD_BYTES};
        messages[i].msg_hdr = (struct msghdr){.msg_iov = &data[i], .msg_iovlen = 1, .msg_control = controls[i]};
        messages[i].msg_hdr.msg_controllen = CMSG_SPACE((size_t)each * sizeof(int));
        struct cmsghdr *header = CMSG_FIRSTHDR(&messages[i].msg_hdr);
        *header = (struct cmsghdr){CMSG_LEN((size_t)each * sizeof(int)), SOL_SOCKET, SCM_RIGHTS};
        for (int j = 0; j < each; j++)
            ((int *)CMSG_DATA(header))[j] = eventfd(0, EFD_CLOEXEC);
    }
    if (sendmmsg(ends[0], messages, (unsigned)count, 0) != count)
        err(1, "sendmmsg");
    for (int copy = 0; copy < 2; copy++) {
        for (int i = 0; i < count * each; i++)
            close(((int *)CMSG_DATA(CMSG_FIRSTHDR(&messages[i / each].msg_hdr)))[i % each]);
        if (copy == 0 && recvmmsg(ends[1], messages, (unsigned)count, MSG_CMSG_CLOEXEC | MSG_DONTWAIT, NULL) != count)
            err(1, "recvmmsg");
    }
}

static double cost_us(const int *ends, int count, int each)
{
    struct timespec begin, end;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &begin);
    for (int done = 0; done < CONNECTIONS; done += count * each)
        pass(ends, count, each);
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &end);
    return ((double)(end.tv_sec - begin.tv_sec) * 1e6 + (double)(end.tv_nsec - begin.tv_nsec) / 1e3) / CONNECTIONS;
}

int main(void)
{
    int ends[2];
    if (socketpair(AF_UNIX, SOCK_SEQPACKET, 0, ends) < 0)
        err(1, "socketpair");
    printf("batch  one each  several (us per connection)\n");
    for (int batch = 1; batch <= MOST; batch *= 2) {
        double one = 1e9, several = 1e9;
        for (int round = 0; round < ROUNDS; round++) {
            double once = cost_us(ends, batch, 1), both = cost_us(ends, 1, batch);
            one = once < one ? once : one;
            several = both < several ? both : several;
        }
        printf("%5d  %8.2f  %7.2f\n", batch, one, several);
    }
    return 0;
}
