"""A random life of a core against an oracle: every connection is in exactly one place, at all times.

The places: the kernel's queue, the master's hands, a channel, a worker. The clients number themselves, so that what is
taken can be compared with what was sent. The seed is printed; --seed repeats it.
"""

from __future__ import annotations

import errno
import random
import socket
from collections import Counter
from collections.abc import Callable

import pytest

from pyfanout.config import Policy
from pyfanout.core import EventKind

from .kit import Faults, House, Worker, clients_of, descriptors, free_descriptors

STEPS = 150


class Life:
    """A house and what must be true of it."""

    def __init__(self, house: House, faults: Faults, rng: random.Random, log: list[str]) -> None:
        self.house, self.faults, self.rng, self.log = house, faults, rng, log
        self.workers: dict[int, Worker] = {}
        self.retired: list[Worker] = []
        """Out of rotation, but alive: they may take still."""
        self.taken: Counter[int] = Counter()
        self.live: dict[int, int] = {}

    # ---- what may happen

    def clients(self) -> None:
        count = self.rng.choice([1, 1, 2, 5, 40])
        self.log.append(f"connect {count}")
        self.house.connect(count, self.rng.randrange(len(self.house.addresses)))

    def run(self) -> None:
        self.log.append("run")
        self.house.settle()

    def run_longer(self) -> None:
        ms = self.rng.randint(1, 12)
        self.log.append(f"run {ms} ms")
        self.house.run_for(ms * 1_000_000)

    def enter(self) -> None:
        empty = [seat for seat in range(self.house.seats) if seat not in self.workers]
        if empty:
            seat, size, pool = self.rng.choice(empty), self.rng.choice([6, 8, 12, 32, 64]), self.rng.random() < 0.3
            most = self.rng.choice([0, 0, 0, 7])
            self.log.append(f"enter {seat} size={size} pool={pool} most={most}")
            self.workers[seat] = self.house.worker(seat, size, pool=pool, most=most)
            self.live[seat] = 0

    def leave(self) -> None:
        if self.workers:
            seat = self.rng.choice(list(self.workers))
            worker = self.workers.pop(seat)
            self.log.append(f"leave {seat}")
            worker.leave()
            if self.rng.random() < 0.3:
                self.retired = [*self.retired[-1:], worker]

    def take(self) -> None:
        for worker in self.rng.sample(list(self.workers.values()), self.rng.randint(0, len(self.workers))):
            self._take(worker, self.rng.choice([1, 3, 32, 1000]))
        if self.retired and self.rng.random() < 0.3:
            self._take(self.rng.choice(self.retired), self.rng.randint(1, 4))

    def _take(self, worker: Worker, cap: int) -> None:
        clients = clients_of(worker.take(cap, keep=False))
        self.log.append(f"{worker.seat} takes {clients}")
        self.taken.update(clients)
        self.live[worker.seat] = self.live.get(worker.seat, 0) + len(clients)

    def done(self) -> None:
        for seat, worker in self.workers.items():
            count = self.rng.randint(0, self.live[seat])
            worker.done(count)
            self.live[seat] -= count

    def lie(self) -> None:
        if self.workers:
            worker = self.rng.choice(list(self.workers.values()))
            self.log.append(f"{worker.seat} lies")
            worker.done(self.rng.randint(1, 1000))

    def shut_down(self) -> None:
        if self.workers and self.rng.random() < 0.3:
            worker = self.rng.choice(list(self.workers.values()))
            self.log.append(f"{worker.seat} shuts its channel down")
            worker.shut_down(self.rng.choice([socket.SHUT_RD, socket.SHUT_RDWR, socket.SHUT_WR]))

    def fault(self) -> None:
        call, errors = self.rng.choice(
            [
                ("sendmmsg", [errno.EAGAIN, errno.ENOBUFS, errno.ETOOMANYREFS, errno.EINTR, errno.EPIPE]),
                ("accept4", [errno.EMFILE, errno.ENOMEM, errno.ECONNABORTED, errno.EINTR]),
                ("socketpair", [errno.EMFILE]),
                ("recvmsg", [errno.EINTR, errno.ENOMEM]),
                ("epoll_wait", [errno.EINTR]),
            ]
        )
        error, after, times = self.rng.choice(errors), self.rng.randint(0, 3), self.rng.randint(1, 2)
        self.log.append(f"{call} will fail: {errno.errorcode[error]} after={after} times={times}")
        self.faults.fail(call, error, after=after, times=times)

    def part(self) -> None:
        limit = self.rng.choice([-1, -1, 1, 2, 5])
        self.log.append(f"sendmmsg takes {limit}")
        self.faults.limit(limit)

    def shortage(self) -> None:
        free = self.rng.choice([0, 0, 1, 2, 3, 5])
        self.log.append(f"run with {free} descriptors")
        with free_descriptors(free):
            self.house.settle()

    # ---- what must be true

    def check(self) -> None:
        house = self.house
        house.check()
        for event in house.said(EventKind.CHANNEL_BROKEN):
            house.events.remove(event)
            self.log.append(f"broken: {event.token}")
            for seat, worker in list(self.workers.items()):
                if seat == event.token or (worker.pool and event.token < 0):  # the supervisor does the same
                    self.workers.pop(seat).leave()
                    self._take(worker, 1000)
        assert not house.said(EventKind.LISTENER_FAILED)
        assert max(self.taken.values(), default=1) == 1, "taken twice"
        count = house.core.count()
        assert count["lost"] == 0
        in_channels = sum(house.untaken())
        places = in_channels + count["held"] + self.taken.total()
        assert count["accepted"] <= places <= count["accepted"] + count["nudges"]

    def end(self) -> None:
        """Everybody arrives."""
        self.log.append("the end")
        self.faults.reset()
        for worker in self.retired:
            self._take(worker, 1000)
        while self.workers:
            self.workers.popitem()[1].leave()

        def stuck_or_done() -> bool:
            for worker in list(self.workers.values()):
                self._take(worker, 1000)
            return self.taken.total() >= len(self.house.clients) or bool(self.house.said(EventKind.CHANNEL_BROKEN))

        while self.taken.total() < len(self.house.clients):  # again when a channel turns out to be broken
            for seat in range(self.house.seats):
                if seat not in self.workers:
                    self.workers[seat] = self.house.worker(seat, 32, pool=seat == 0)  # the pool holds some, too
            self.house.run_until(stuck_or_done, "the others arrive")
            self.check()
        assert sorted(self.taken) == list(range(len(self.house.clients)))
        assert self.taken.total() == len(self.house.clients)
        assert sum(self.house.untaken()) <= self.house["nudges"]
        self.house.check()


CHANCES: list[tuple[Callable[[Life], None], int]] = [
    (Life.clients, 10),
    (Life.run, 10),
    (Life.run_longer, 2),
    (Life.take, 12),
    (Life.done, 4),
    (Life.enter, 4),
    (Life.leave, 2),
    (Life.lie, 1),
    (Life.shut_down, 1),
    (Life.fault, 3),
    (Life.part, 1),
    (Life.shortage, 1),
]


@pytest.mark.parametrize("turn", range(4))
@pytest.mark.parametrize("policy", Policy, ids=str)
def test_a_random_life(faults: Faults, rng: random.Random, policy: Policy, turn: int) -> None:
    acts, weights = zip(*CHANCES, strict=True)
    log: list[str] = []
    before = descriptors()
    try:
        with House(rng.randint(1, 5), policy) as house:
            house.listen()
            house.listen("", socket.AF_UNIX)
            life = Life(house, faults, rng, log)
            for _ in range(STEPS):
                (act,) = rng.choices(acts, weights)
                act(life)
                life.check()
            life.end()
    except BaseException:
        print("\n".join(log))
        raise
    assert descriptors() == before
