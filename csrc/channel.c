/* channel.c: the bytes between master and worker. Sizes a channel, passes, receives, recalls, nudges.
 *
 * The only file that knows cmsg. One connection is one message: its descriptor (SCM_RIGHTS) and one fan_record. It
 * never decides who gets a connection, and never closes one that was not passed.
 */
#define _GNU_SOURCE
#include "core.h"

#ifndef SCM_PIDFD
#define SCM_PIDFD 4 /* Linux 6.5; glibc may be older */
#endif
#ifndef SO_PASSRIGHTS
#define SO_PASSRIGHTS 83 /* Linux 6.16 */
#endif

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/sockios.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

/* Aligned for struct cmsghdr, and space for exactly one descriptor: a message that carried more would be truncated. */
typedef union {
    struct cmsghdr align;
    char bytes[CMSG_SPACE(sizeof(int))];
} fd_control;

/* To receive: space also for what any of those that share a socket may have the kernel add, before or behind the
 * descriptor: times, credentials, a security label, a pidfd (SO_TIMESTAMP, SO_PASSCRED, SO_PASSSEC, SO_PASSPIDFD). */
typedef union {
    struct cmsghdr align;
    char bytes[CMSG_SPACE(sizeof(int)) + 512];
} fd_received;

static void envelope(struct msghdr *message, struct iovec *data, fan_record *record, void *control, size_t bytes)
{
    *data = (struct iovec){.iov_base = record, .iov_len = sizeof *record};
    *message = (struct msghdr){.msg_iov = data, .msg_iovlen = 1, .msg_control = control, .msg_controllen = bytes};
}

static void enclose(struct msghdr *message, int fd)
{
    struct cmsghdr *header = CMSG_FIRSTHDR(message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof fd);
    memcpy(CMSG_DATA(header), &fd, sizeof fd);
}

static int enclosed(struct msghdr *message)
{
    int fd = -1, other;
    for (struct cmsghdr *header = CMSG_FIRSTHDR(message); header; header = CMSG_NXTHDR(message, header)) {
        if (header->cmsg_level != SOL_SOCKET || header->cmsg_len != CMSG_LEN(sizeof fd))
            continue;
        if (header->cmsg_type == SCM_RIGHTS)
            memcpy(&fd, CMSG_DATA(header), sizeof fd);
        else if (header->cmsg_type == SCM_PIDFD) {
            memcpy(&other, CMSG_DATA(header), sizeof other);
            fan_close(&other);
        }
    }
    return fd;
}

/* ---- birth, death, size ------------------------------------------------------------------------------------------ */

/* Workers share the reading end, and are not trusted with it: nothing goes back through it, or descriptors that are
 * never read would stay in flight for ever, and no worker puts a filter before it that drops what is passed. A channel to which
 * that could not be done is one all the same. */
static void protect(int write_fd, int read_fd)
{
    int on = 1;
    shutdown(write_fd, SHUT_RD);
    setsockopt(read_fd, SOL_SOCKET, SO_LOCK_FILTER, &on, sizeof on);
}

int fan_channel_open(fan_channel *channel)
{
    int ends[2];
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) < 0)
        return -errno;
    protect(ends[0], ends[1]);
    *channel = (fan_channel){.write_fd = ends[0], .read_fd = ends[1], .spill_fd = -1};
    return 0;
}

void fan_channel_close(fan_channel *channel)
{
    fan_close(&channel->write_fd);
    fan_close(&channel->read_fd);
    fan_close(&channel->spill_fd);
}

/* What one message takes of SO_SNDBUF: 768 bytes on Linux 6 (an sk_buff and a 512 byte head), whatever it carries.
 * Asked of the kernel, since it depends on its build, if a sandbox lets us. On the way each call is tried that master
 * and workers need and nothing replaces: *call is the one that failed. */
#define MESSAGE_BYTES 768

int fan_message_bytes(const char **call)
{
    fan_channel trial;
    *call = "socketpair";
    int rc = fan_channel_open(&trial);
    if (rc < 0)
        return rc;
    *call = "eventfd";
    int passenger = eventfd(0, EFD_CLOEXEC); /* no UNIX socket: those wake the kernel's garbage collector */
    int bytes = MESSAGE_BYTES, arrived = -1;
    if (passenger < 0)
        rc = -errno;
    else {
        fan_held held = {.fd = passenger}, *one = &held;
        fan_record record;
        *call = "sendmmsg";
        rc = fan_channel_pass(&trial, &one, 1);
        if (rc == 1 && ioctl(trial.write_fd, SIOCOUTQ, &bytes) < 0)
            bytes = MESSAGE_BYTES;
        if (rc == 1) {
            *call = "ioctl SIOCINQ";
            rc = fan_channel_untaken(&trial);
        }
        if (rc >= 0) {
            *call = "recvmmsg";
            rc = fan_channel_receive_many(trial.read_fd, 1, &record, &arrived);
        }
        if (rc >= 0) {
            *call = "shutdown";
            rc = shutdown(trial.write_fd, SHUT_WR) < 0 ? -errno : 0;
        }
    }
    fan_close(&arrived);
    fan_close(&passenger);
    fan_channel_close(&trial);
    return rc < 0 ? rc : bytes;
}

const char *fan_core_refused(void)
{
    const char *call;
    return fan_message_bytes(&call) < 0 ? call : NULL;
}

/* The kernel takes a message while less than SO_SNDBUF is in use, so n * message_bytes is full at n messages. It
 * doubles what setsockopt asks for and has a lower and an upper bound (socket(7)): what counts is what it granted, which
 * is what it was if it refuses. If it does not say, it is what was asked for: a message too many is refused later. */
int fan_channel_resize(fan_channel *channel, int messages, int message_bytes)
{
    int request = messages * message_bytes / 2, granted;
    socklen_t length = sizeof granted;
    setsockopt(channel->write_fd, SOL_SOCKET, SO_SNDBUF, &request, sizeof request);
    if (getsockopt(channel->write_fd, SOL_SOCKET, SO_SNDBUF, &granted, &length) < 0)
        granted = 2 * request;
    channel->size = (granted + message_bytes - 1) / message_bytes;
    /* unix_writable(): 4 * (bytes in use + 1) <= SO_SNDBUF */
    channel->quarter = (granted / 4 - 1) / message_bytes;
    return channel->size;
}

int fan_channel_untaken(const fan_channel *channel)
{
    int bytes;
    if (ioctl(channel->read_fd, SIOCINQ, &bytes) < 0)
        return -errno;
    return bytes / (int)sizeof(fan_record);
}

/* ---- passing ----------------------------------------------------------------------------------------------------- */

/* Pass connections in order. Returns how many the kernel took, at least 1, or -errno. The caller closes its copies. */
int fan_channel_pass(fan_channel *channel, fan_held *const *held, int count)
{
    struct mmsghdr messages[FAN_BATCH];
    struct iovec data[FAN_BATCH];
    fd_control controls[FAN_BATCH];

    assert(count > 0 && count <= FAN_BATCH);
    for (int i = 0; i < count; i++) {
        memset(&controls[i], 0, sizeof controls[i]);
        envelope(&messages[i].msg_hdr, &data[i], &held[i]->record, &controls[i], sizeof controls[i]);
        enclose(&messages[i].msg_hdr, held[i]->fd);
    }
    int passed = sendmmsg(channel->write_fd, messages, (unsigned)count, MSG_NOSIGNAL | MSG_DONTWAIT);
    return passed < 0 ? -errno : passed;
}

/* Undo what any reader can set for all: with SO_PEEK_OFF no reader that waits sees a message, without SO_PASSRIGHTS none with a
 * descriptor is taken (EPERM). Whether the latter was so, and is no more. If this fails nothing is worse. */
bool fan_channel_mend(fan_channel *channel)
{
    int off = -1, on = 1, passes = on;
    socklen_t length = sizeof passes;
    setsockopt(channel->read_fd, SOL_SOCKET, SO_PEEK_OFF, &off, sizeof off);
    getsockopt(channel->read_fd, SOL_SOCKET, SO_PASSRIGHTS, &passes, &length);
    return !passes && setsockopt(channel->read_fd, SOL_SOCKET, SO_PASSRIGHTS, &on, sizeof on) == 0;
}

/* A message without a connection: it takes its place in the queue, but wakes the next sleeping reader now. */
int fan_channel_nudge(fan_channel *channel)
{
    fan_record record = {.listener = FAN_NUDGE};
    struct msghdr message;
    struct iovec data;
    envelope(&message, &data, &record, NULL, 0);
    return sendmsg(channel->write_fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT) < 0 ? -errno : 0;
}

/* ---- receiving --------------------------------------------------------------------------------------------------- */

/* 1: *fd is the caller's. 0: end-of-file. -ENOMSG: a nudge. -ENOBUFS: the descriptor did not fit into this process and
 * the kernel has closed it (MSG_CTRUNC). Other -errno: nothing was received. */
static int opened(struct msghdr *message, size_t bytes, const fan_record *record, int *fd)
{
    *fd = enclosed(message);
    if (bytes == 0)
        return 0;
    if (*fd >= 0)
        return 1;
    return bytes == sizeof *record && record->listener == FAN_NUDGE ? -ENOMSG : -ENOBUFS;
}

int fan_channel_receive(int channel_fd, int flags, fan_record *record, int *fd)
{
    struct msghdr message;
    struct iovec data;
    fd_received control;
    envelope(&message, &data, record, &control, sizeof control);
    ssize_t bytes = recvmsg(channel_fd, &message, flags | MSG_CMSG_CLOEXEC);
    return bytes < 0 ? -errno : opened(&message, (size_t)bytes, record, fd);
}

/* How many descriptors this process can receive, at most `want`; or -errno if none (EMFILE, ENFILE). Asked by taking
 * them: a table may be full but for some holes, and nothing else tells. */
int fan_channel_room(int channel_fd, int want)
{
    int fds[FAN_BATCH], count = 0;
    assert(want > 0 && want <= FAN_BATCH);
    while (count < want && (fds[count] = fcntl(channel_fd, F_DUPFD_CLOEXEC, 0)) >= 0)
        count++;
    int error = errno;
    for (int i = 0; i < count; i++)
        close(fds[i]);
    return count ? count : -error;
}

/* Wait for a message, or end-of-file, and leave it there. 1, 0 at end-of-file, or -errno.
 *
 * Waiting and taking are two calls, because a process that is killed or stopped while it sleeps in a plain recvmsg still
 * takes a message that comes before it is scheduled, and the client is lost with it. A peek has nothing to lose. The
 * sleepers are woken in turn, one for each message, as in a plain recvmsg (unix_dgram_recvmsg waits exclusively). */
int fan_channel_wait(int channel_fd)
{
    char first;
    ssize_t bytes;
    while ((bytes = recv(channel_fd, &first, 1, MSG_PEEK)) < 0) {
        if (errno != EAGAIN)
            return -errno;
        int flags = fcntl(channel_fd, F_GETFL);
        if (flags >= 0 && !(flags & O_NONBLOCK))
            return -EAGAIN; /* SO_RCVTIMEO */
        /* A process with a duplicate has set O_NONBLOCK, for all. */
        if (flags < 0 || fcntl(channel_fd, F_SETFL, flags & ~O_NONBLOCK) < 0)
            return -errno;
    }
    return bytes > 0;
}

/* What is there, at most `count` messages. A place whose message held no connection has fd -1 and the record of a
 * nudge, or another record if the connection was lost. Returns how many messages, 0 at end-of-file, or -errno. */
int fan_channel_receive_many(int channel_fd, int count, fan_record *records, int *fds)
{
    struct mmsghdr messages[FAN_BATCH];
    struct iovec data[FAN_BATCH];
    fd_received controls[FAN_BATCH];

    assert(count > 0 && count <= FAN_BATCH);
    for (int i = 0; i < count; i++)
        envelope(&messages[i].msg_hdr, &data[i], &records[i], &controls[i], sizeof controls[i]);
    int received = recvmmsg(channel_fd, messages, (unsigned)count, MSG_DONTWAIT | MSG_CMSG_CLOEXEC, NULL);
    if (received < 0)
        return -errno;
    for (int i = 0; i < received; i++)
        if (opened(&messages[i].msg_hdr, messages[i].msg_len, &records[i], &fds[i]) == 0)
            return i; /* end-of-file fills the rest of the array with empty messages */
    return received;
}

/* Take one connection back, on the master's copy of the reading end. 1, 0 if nothing waits, or -errno. */
int fan_channel_recall(int channel_fd, fan_held *out)
{
    int rc;
    do
        rc = fan_channel_receive(channel_fd, MSG_DONTWAIT, &out->record, &out->fd);
    while (rc == -ENOMSG);
    return rc == -EAGAIN ? 0 : rc;
}
