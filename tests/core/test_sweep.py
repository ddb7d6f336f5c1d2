"""The sweep: each system call of the core fails at its 1st, 2nd, 3rd ... occurrence, with each error that its man page
has for it, until a life meets no failure. Nothing crashes, is lost, doubled or left open, and the service goes on.

The errors that only a bug of ours could cause (EBADF, EFAULT, EINVAL, ...) are left out, but for those calls that have
no others. `make faults` goes through all occurrences; `make test` through some of each, by the seed.
"""

from __future__ import annotations

import errno
import os
import random
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import TypeVar

import pytest

from pyfanout.config import Policy
from pyfanout.core import POOL, EndFds, Event, EventKind, WorkerEnds
from pyfanout.errors import CoreError

from .kit import DEADLINE_S, Faults, House, Worker, descriptors

T = TypeVar("T")

PATIENCE_US = 1000
"""For which a blocking worker waits here: the same thread plays the master."""

WATCHED = 7
"""The token of what Python watches."""

SOME = 4
"""Occurrences of each call that the short sweep looks at, besides the first."""

ERRORS: dict[str, tuple[int, ...]] = {
    # accept(2); the last line is what Linux passes on from the network
    "accept4": (
        *(errno.EAGAIN, errno.ECONNABORTED, errno.EINTR, errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM),
        *(errno.EPERM, errno.EPROTO, errno.ENOSR, errno.ESOCKTNOSUPPORT, errno.EPROTONOSUPPORT, errno.ETIMEDOUT),
        *(errno.ENETDOWN, errno.ENOPROTOOPT, errno.EHOSTDOWN, errno.ENONET, errno.EHOSTUNREACH, errno.EOPNOTSUPP),
        errno.ENETUNREACH,
    ),
    "poll": (errno.EINTR, errno.ENOMEM),
    # send(2), unix(7)
    "sendmmsg": (
        *(errno.EAGAIN, errno.EINTR, errno.ENOBUFS, errno.ENOMEM, errno.ETOOMANYREFS),
        *(errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN, errno.ECONNREFUSED, errno.EACCES, errno.EPERM),
    ),
    "sendmsg": (errno.EAGAIN, errno.EINTR, errno.ENOBUFS, errno.ENOMEM, errno.EPIPE, errno.ECONNRESET),
    "recvmsg": (errno.EINTR, errno.ENOMEM),  # EAGAIN is never wrong: nobody else reads what is recalled
    "recv": (errno.EINTR, errno.ENOMEM),
    "recvmmsg": (errno.EAGAIN, errno.EINTR, errno.ENOMEM),
    "epoll_wait": (errno.EINTR,),
    "epoll_ctl": (errno.ENOMEM, errno.ENOSPC),
    "epoll_create1": (errno.EMFILE, errno.ENFILE, errno.ENOMEM),
    "eventfd": (errno.EMFILE, errno.ENFILE, errno.ENODEV, errno.ENOMEM),
    "memfd_create": (errno.EMFILE, errno.ENFILE, errno.ENOMEM),
    "ftruncate": (errno.EINTR, errno.ENOSPC),
    "timerfd_create": (errno.EMFILE, errno.ENFILE, errno.ENODEV, errno.ENOMEM),
    "timerfd_settime": (errno.EINVAL,),
    "socketpair": (errno.EMFILE, errno.ENFILE, errno.ENOMEM),
    "setsockopt": (errno.ENOMEM, errno.ENOBUFS),
    "getsockopt": (errno.ENOBUFS,),
    "shutdown": (errno.ENOTCONN, errno.ENOBUFS),
    "ioctl": (errno.EINVAL,),
    "fcntl": (errno.EMFILE, errno.EINTR),
    "mmap": (errno.EAGAIN, errno.ENFILE, errno.ENOMEM),
    "calloc": (errno.ENOMEM,),
}


class Life:
    """A core with four workers, two of which share the pool and block: clients come over TCP and UNIX, two workers
    leave, one is replaced, one seat ends, the server stops. With what joined workers need, a loop of the
    program's own, something that Python watches, and looks at everything all the time."""

    def __init__(self, faults: Faults, policy: Policy) -> None:
        self.faults = faults
        self.policy = policy
        self.taken: list[int] = []
        self.heard: list[Event] = []
        self.workers: dict[int, Worker] = {}

    def live(self) -> None:
        with ExitStack() as stack:
            self.watched, speaks = (stack.enter_context(end) for end in socket.socketpair())
            house = self.house = stack.enter_context(self.insist(lambda: House(4, self.policy, shared=True)))
            self.insist(house.core.poll_fd)
            self.insist(house.listen)
            self.insist(lambda: house.listen("", socket.AF_UNIX))
            self.insist(lambda: house.core.watch(self.watched.fileno(), WATCHED))
            for seat, pool in enumerate((False, False, True, True)):
                self.fork(seat, pool)
            house.connect(15)
            house.connect(10, 1)
            self.drive(25)
            house.connect(20)
            house.settle()  # they wait in channels
            for seat in (1, 3):
                self.workers.pop(seat).leave()
            house.core.end(3)
            speaks.send(b"!")
            self.drive(45)  # what waited for the one goes to others, and the pool's other reader was nudged
            self.insist(self.be_a_guest)
            self.fork(1, False)
            house.connect(5, 1)
            self.drive(50)
            house.connect(5)
            house.core.stop_new(0)
            house.core.finish(100)
            self.drive(55)
            house.check()
        assert sorted(self.taken) == list(range(55)), "each client has one worker"
        assert [event.token for event in self.heard] == [WATCHED]

    def be_a_guest(self) -> None:
        """For a moment: what it was sent is mapped, and unmapped as in a child that it forks."""
        ends = WorkerEnds.of(EndFds(*map(os.dup, self.house.core.ends(0))), 0)
        ends.disown()
        os.close(ends.pool_fd)
        os.close(ends.seat_fd)

    def insist(self, act: Callable[[], T]) -> T:
        """As the master does: what the system refuses is tried again."""
        for _ in range(3):
            try:
                return act()
            except (CoreError, MemoryError):
                continue
        return act()

    def fork(self, seat: int, pool: bool) -> None:
        house = self.house

        def enter() -> Worker:
            house.begin(seat)
            worker = Worker(house, seat, house.ends(seat), pool)
            if pool:
                with socket.socket(fileno=os.dup(worker.fd)) as channel:
                    channel.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("@ll", 0, PATIENCE_US))
            house.core.enter(seat, pool=pool, threads=int(pool), size=8)
            return worker

        self.workers[seat] = self.insist(enter)

    def drive(self, count: int) -> None:
        """Until so many have arrived: the core runs, workers take, and whose channel broke is replaced."""
        end = time.monotonic() + DEADLINE_S
        while len(self.taken) < count:
            assert time.monotonic() < end, f"{len(self.taken)} of {count}: {self.house.core.count()}"
            self.house.events.clear()
            self.house.events += self.house.core.run(2_000_000)
            self.insist(lambda: self.house.core.arm(0))
            if self.house.said(EventKind.WATCHED):
                self.watched.recv(1)
                self.heard += self.house.said(EventKind.WATCHED)
            for seat in range(4):
                assert self.house.core.look(seat).done <= 55
                assert self.house.core.untaken(seat) >= 0
            for event in self.house.said(EventKind.CHANNEL_BROKEN):
                self.replace_readers_of(event.token)
            for worker in self.workers.values():
                self.take(worker)

    def replace_readers_of(self, token: int) -> None:
        for seat, worker in list(self.workers.items()):
            if token == (POOL if worker.pool else seat):
                worker.leave()
                self.fork(seat, worker.pool)

    def take(self, worker: Worker) -> None:
        """All that is there; a call that fails takes nothing, and is made again."""
        for _ in range(100):
            if worker.pool:
                rc = worker.receiver.take(False)
                raws = iter([worker.receiver.arrival])
            else:
                rc, raws = worker.receiver.take_ready(8)
            if rc == 0 or (rc < 0 and worker.waiting() == 0):
                return
            if rc > 0:
                self.taken += [self.house.arrived(raw, keep=False).client for raw in raws]
                worker.done(rc)
        raise AssertionError(f"taking does not come to an end: {os.strerror(-rc)}")


def sweep(faults: Faults, call: str, error: int, policy: Policy, occurrences: Iterator[int]) -> int:
    """How many lives met the failure. Ends with the first that does not."""
    for met, after in enumerate(occurrences):
        before = descriptors()
        faults.reset()
        faults.fail(call, error, after=after)
        where = f"{call} fails with {errno.errorcode[error]} at its occurrence {after + 1}"
        try:
            Life(faults, policy).live()
            reached = faults.failed(call) > 0
        except BaseException as failure:
            failure.add_note(where)
            raise
        assert descriptors() == before, where
        if not reached:
            return met
    return -1


CASES = [(call, error) for call, errors in ERRORS.items() for error in errors]


@pytest.mark.parametrize(("call", "error"), CASES, ids=[f"{call}-{errno.errorcode[error]}" for call, error in CASES])
def test_each_occurrence_may_fail(faults: Faults, rng: random.Random, call: str, error: int) -> None:
    policy = rng.choice(list(Policy))
    if os.environ.get("FAULTS") == "all":
        met = sweep(faults, call, error, policy, iter(range(10_000)))
        print(f"{met} occurrences")
        assert met > 0, f"the life never calls {call}"
        return
    Life(faults, policy).live()
    total = faults.calls(call)
    assert total, f"the life never calls {call}"
    chosen = sorted({0, *rng.sample(range(total), min(SOME, total))})
    print(f"occurrences {chosen} of {total}")
    sweep(faults, call, error, policy, iter(chosen))
