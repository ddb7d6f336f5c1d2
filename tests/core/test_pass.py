"""pass: what the kernel may say to a message, and that none of it loses a connection, goes uncounted, or spins."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Callable

import pytest

from pyfanout.config import Policy
from pyfanout.core import BATCH

from .kit import DEADLINE_S, Faults, House, clients_of, descriptors, in_child, is_root

MakeHouse = Callable[..., House]

LATER = {
    errno.EAGAIN: "full_channels",
    errno.ETOOMANYREFS: "flight_limits",
    errno.ENOBUFS: "memory_shortages",
    errno.ENOMEM: "memory_shortages",
    errno.EACCES: "memory_shortages",
    errno.EINTR: "interrupts",
}
errors = pytest.mark.parametrize("error", LATER, ids=errno.errorcode.get)


@errors
@pytest.mark.parametrize("seats", [1, 2])
@pytest.mark.parametrize("pool", [False, True], ids=["own", "pool"])
def test_a_refused_message_is_sent_later(house: MakeHouse, faults: Faults, error: int, seats: int, pool: bool) -> None:
    """Although nothing else happens in the meantime that would wake the master."""
    here = house(seats)
    workers = [here.worker(seat, pool=pool) for seat in range(seats)]
    here.connect(5)
    faults.fail("sendmmsg", error, times=2)
    # What waits in a pool may be more: on a slow machine the core has nudged by the time it is looked at.
    here.run_until(lambda: here["passed"] == 5, "all arrive")
    assert here[LATER[error]] == 2
    assert sorted(client for worker in workers for client in clients_of(worker.take())) == list(range(5))
    here.check()


@pytest.mark.parametrize("error", sorted(LATER.keys() - {errno.EINTR}), ids=errno.errorcode.get)
def test_a_refusal_that_lasts_does_not_spin(house: MakeHouse, faults: Faults, error: int) -> None:
    here = house(2)
    workers = [here.worker(0), here.worker(1)]
    here.connect(5)
    faults.fail("sendmmsg", error, times=1_000_000)
    here.run_for(100_000_000)
    assert faults.calls("sendmmsg") < 1_000
    assert faults.calls("epoll_wait") < 1_000
    assert here["passed"] == 0
    here.check()
    faults.reset()
    here.run_until(lambda: sum(here.untaken()) == 5, "all arrive when it is over")
    assert sorted(client for worker in workers for client in clients_of(worker.take())) == list(range(5))
    here.check()


@errors
@pytest.mark.parametrize("policy", Policy, ids=str)
def test_refused_in_the_middle_of_a_batch(house: MakeHouse, faults: Faults, error: int, policy: Policy) -> None:
    here = house(3, policy)
    workers = [here.worker(seat) for seat in range(3)]
    here.connect(20)
    faults.limit(3)
    faults.fail("sendmmsg", error, after=2, times=3)
    assert sorted(here.take_until(workers, 20)) == list(range(20))
    here.check()


@pytest.mark.parametrize("limit", [1, 2, 7])
def test_the_kernel_takes_a_part(house: MakeHouse, faults: Faults, limit: int) -> None:
    here = house()
    worker = here.worker(0)
    faults.limit(limit)
    here.connect(25)
    assert here.take_until([worker], 25) == list(range(25))
    here.check()


def test_what_is_refused_counts_for_nobody(house: MakeHouse, faults: Faults) -> None:
    """A connection that was routed but not passed is no load of its first worker."""
    here = house(2, Policy.LEAST_CONNECTIONS)
    workers = [here.worker(0), here.worker(1)]
    faults.fail("sendmmsg", errno.ENOBUFS, times=4)
    here.connect(20)
    here.run_until(lambda: sum(here.untaken()) == 20, "all arrive")
    assert [len(worker.take()) for worker in workers] == [10, 10]


def test_accepting_stops_while_passing_rests(house: MakeHouse, faults: Faults) -> None:
    here = house()
    worker = here.worker(0, 64)
    here.connect(100)
    faults.fail("sendmmsg", errno.ETOOMANYREFS, times=1_000_000)
    here.run_for(60_000_000)
    assert here["accepted"] == here["held"] <= 32
    faults.reset()
    assert here.take_until([worker], 100) == list(range(100))


def test_what_is_held_when_the_core_is_closed_is_closed(house: MakeHouse, faults: Faults) -> None:
    with House() as here:
        here.listen()
        here.worker(0)
        (client,) = here.connect()
        faults.fail("sendmmsg", errno.ENOBUFS, times=1_000_000)
        here.settle()
        assert here["held"] == 1
        here.core.close()
        client.settimeout(DEADLINE_S)
        with pytest.raises(ConnectionResetError):  # with what it had sent unread
            client.recv(1)


def test_the_limit_of_descriptors_in_flight_as_an_unprivileged_user(house: MakeHouse) -> None:
    """RLIMIT_NOFILE bounds what a user has in flight over all sockets (unix(7), ETOOMANYREFS); root is exempt."""
    here = house(12)
    workers = [here.worker(seat, 128) for seat in range(12)]  # 32 or more in each: more than the limit below
    here.connect(384)
    most = len(descriptors()) - len(here.clients) + 50
    assert most < 384 - 2 * BATCH

    def act() -> None:
        for client in here.clients:  # low numbers become free; the parent has them still
            client.close()
        if is_root():
            os.setgroups([])
            os.setresuid(54321, 54321, 54321)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        here.run_for(50_000_000)
        assert here["flight_limits"] > 0, (here.core.count(), here.events)
        assert most - BATCH <= here["passed"] <= most + BATCH
        assert here["accepted"] - here["passed"] == here["held"]
        here.check()
        assert sorted(here.take_until(workers, 384, keep=False)) == list(range(384))
        here.check()

    in_child(act)
