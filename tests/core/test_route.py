"""route: who gets the next connection, by each of the policies."""

from __future__ import annotations

import errno
import mmap
import random
import socket
from collections import Counter
from collections.abc import Callable
from ipaddress import IPv4Address

import pytest
from pyfanout._core import ffi

from pyfanout.config import Policy
from pyfanout.core import POOL

from .kit import Faults, House, Worker, clients_of, free_descriptors, has_ipv6

MakeHouse = Callable[..., House]

SLACK = 8  # of route.c


def one_by_one(here: House, count: int) -> list[int]:
    """Who gets each of `count` connections that come one after the other: the seats."""
    order = []
    for _ in range(count):
        before = here.untaken()
        here.connect()
        here.settle()
        (seat,) = [i for i, (a, b) in enumerate(zip(before, here.untaken(), strict=True)) if b == a + 1]
        order.append(seat)
    return order


# ---- round-robin -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seats", [1, 2, 3, 5, 8])
def test_round_robin_is_exact(house: MakeHouse, seats: int) -> None:
    here = house(seats)
    workers = [here.worker(seat) for seat in range(seats)]
    for _ in range(10):
        assert one_by_one(here, 3 * seats) == list(range(seats)) * 3
        for worker in workers:
            assert len(worker.take()) == 3


def test_round_robin_of_a_burst(house: MakeHouse) -> None:
    here = house(4)
    workers = [here.worker(seat) for seat in range(4)]
    here.connect(24)
    here.settle()
    for seat, worker in enumerate(workers):
        assert clients_of(worker.take()) == list(range(seat, 24, 4))


def test_round_robin_skips_who_is_full(house: MakeHouse) -> None:
    here = house(3)
    workers = [here.worker(0, 32), here.worker(1, 6), here.worker(2, 32)]
    order = one_by_one(here, 12)
    assert order == [0, 1, 2, 0, 1, 2, 0, 2, 0, 2, 0, 2]  # the second is hungry with one untaken, not with two
    workers[1].take()
    assert one_by_one(here, 3) == [0, 1, 2]


def test_round_robin_goes_on_where_it_was_when_somebody_leaves(house: MakeHouse) -> None:
    here = house(4)
    workers = [here.worker(seat) for seat in range(4)]
    assert one_by_one(here, 2) == [0, 1]
    for worker in workers:
        worker.take()
    workers[1].leave()
    assert Counter(one_by_one(here, 6)) == {0: 2, 2: 2, 3: 2}


def test_round_robin_takes_a_new_worker_in(house: MakeHouse) -> None:
    here = house(3)
    here.worker(0)
    assert one_by_one(here, 2) == [0, 0]
    here.worker(2)
    assert Counter(one_by_one(here, 6)) == {0: 3, 2: 3}


@pytest.mark.parametrize("policy", Policy, ids=str)
def test_all_is_passed_whatever_the_policy(house: MakeHouse, policy: Policy) -> None:
    here = house(3, policy)
    workers = [here.worker(seat, 12) for seat in range(3)]
    here.connect(200)
    assert sorted(here.take_until(workers, 200)) == list(range(200))
    here.check()


# ---- least-connections -------------------------------------------------------------------------------------------


def test_least_connections_is_exact_when_they_come_steadily(house: MakeHouse) -> None:
    here = house(4, Policy.LEAST_CONNECTIONS)
    workers = [here.worker(seat) for seat in range(4)]
    live = [0] * 4
    for _ in range(120):
        here.connect()
        here.settle()
        for worker in workers:
            live[worker.seat] += len(worker.take(keep=False))
        assert max(live) - min(live) <= 1
    assert live == [30] * 4


def test_least_connections_goes_to_the_emptiest(house: MakeHouse) -> None:
    here = house(3, Policy.LEAST_CONNECTIONS)
    workers = [here.worker(seat) for seat in range(3)]
    for _ in range(5):
        here.connect(6)
        here.settle()
        assert [len(worker.take(keep=False)) for worker in workers] == [2, 2, 2]
    workers[1].done(4)
    assert one_by_one(here, 4) == [1] * 4
    workers[1].take(keep=False)
    assert Counter(one_by_one(here, 3)) == {0: 1, 1: 1, 2: 1}


def test_least_connections_when_all_come_at_once(house: MakeHouse, faults: Faults, rng: random.Random) -> None:
    """They are taken at different speeds, and held: nobody gets far ahead of the emptiest, as long as that one takes
    something within 20 ms, which it does when the clock stands still."""
    faults.stop_clock()
    here = house(4, Policy.LEAST_CONNECTIONS)
    workers = [here.worker(seat) for seat in range(4)]
    speeds = [1, 2, 5, 32]
    total = 1200
    here.connect(total)
    live = [0] * 4

    def all_taken() -> bool:
        for worker, speed in zip(workers, speeds, strict=True):
            for _ in range(rng.randint(1, 3)):
                live[worker.seat] += len(worker.take(speed, keep=False))
        return sum(live) == total

    here.run_until(all_taken, "all are taken")
    assert max(live) - min(live) <= 32 + SLACK
    here.check()


def test_least_connections_does_not_wait_for_who_is_stuck(house: MakeHouse) -> None:
    """The emptiest takes nothing any more: the others are waited with for a moment, not for ever."""
    here = house(2, Policy.LEAST_CONNECTIONS)
    stuck, worker = here.worker(0, 6), here.worker(1)
    here.connect(200)
    taken = here.take_until([worker], 200 - 6)
    assert len(taken) >= 194
    assert here.core.untaken(0) <= 6
    stuck.take()


def test_waiting_for_the_emptiest_is_no_spin(house: MakeHouse, faults: Faults) -> None:
    here = house(2, Policy.LEAST_CONNECTIONS)
    here.worker(0, 6)
    worker = here.worker(1, 128)
    here.connect(60)
    here.settle()
    for _ in range(30):
        worker.take()
        here.run_for(5_000_000)
    assert faults.calls("epoll_wait") < 400


def test_a_cold_worker_is_not_flooded(house: MakeHouse) -> None:
    here = house(3, Policy.LEAST_CONNECTIONS)
    workers = [here.worker(0), here.worker(1)]
    for _ in range(60):
        here.connect(5)
        here.settle()
        for worker in workers:
            worker.take(keep=False)
    cold = here.worker(2)
    got = Counter[int]()
    for _ in range(10):
        here.connect(6)
        here.settle()
        for worker in [*workers, cold]:
            got[worker.seat] += len(worker.take(keep=False))
    assert sum(got.values()) == 60
    assert 15 <= got[2] <= 30  # its share is 20; the handicap of 150 fades by some in the meantime


def test_a_cold_worker_is_not_starved_by_one_hog(house: MakeHouse) -> None:
    """One worker that never says done (it lies, or it leaks) is no reason for a new one to stand idle."""
    here = house(3, Policy.LEAST_CONNECTIONS)
    hog, honest = here.worker(0), here.worker(1)
    for _ in range(40):
        here.connect(12)
        here.settle()
        hog.take(keep=False)
        honest.take(keep=False)
    honest.done(240)
    cold = here.worker(2)
    got = 0
    for _ in range(5):
        here.connect(4)
        here.settle()
        got += len(cold.take(keep=False))
        honest.take(keep=False)
    assert got >= 5  # of 20, with one other that has none of its old ones any more


def test_a_page_full_of_lies_harms_only_the_liar(house: MakeHouse, rng: random.Random) -> None:
    """done may be ahead of what was passed, or run backwards; the rest may be anything."""
    here = house(3, Policy.LEAST_CONNECTIONS)
    workers = [here.worker(seat) for seat in range(3)]
    for _ in range(30):
        ffi.buffer(ffi.cast("char *", workers[0].ends.score), mmap.PAGESIZE)[:] = rng.randbytes(mmap.PAGESIZE)
        here.core.look(0)
        here.connect(9)
        here.settle()
        for worker in workers:
            worker.take(keep=False)
    assert here["passed"] == 270
    here.check()
    view = here.core.look(0)
    assert 0 <= view.done <= view.taken
    assert 0 <= view.busy_threads <= view.threads <= 256
    assert view.busy_since_ns >= 0


def test_a_liar_in_the_pool(house: MakeHouse, rng: random.Random) -> None:
    here = house(2)
    workers = [here.worker(seat, 16, pool=True) for seat in range(2)]
    for _ in range(10):
        ffi.buffer(ffi.cast("char *", workers[0].ends.score), mmap.PAGESIZE)[:] = rng.randbytes(mmap.PAGESIZE)
        here.connect(5)
        here.run_for(12_000_000)
        assert here["nudges"] <= 2 * 256
        workers[1].take()
    here.check()


# ---- source-hash -------------------------------------------------------------------------------------------------


def address(number: int) -> tuple[str, int]:
    """A loopback address to come from."""
    return str(IPv4Address("127.0.0.0") + 256 + number), 0


def seats_of(here: House, workers: list[Worker], sources: list[int]) -> dict[int, int]:
    """Which seat each source address gets; each has one connection, which ends at once."""
    first = len(here.clients)
    where = {}
    for source in sources:
        here.connect(source=address(source))
        here.settle()
        for worker in workers:
            for arrival in worker.take(keep=False):
                where[sources[arrival.client - first]] = worker.seat
                worker.done()
    return where


def test_source_hash_keeps_an_address_with_its_seat(house: MakeHouse) -> None:
    here = house(4, Policy.SOURCE_HASH)
    workers = [here.worker(seat) for seat in range(4)]
    sources = list(range(40))
    where = seats_of(here, workers, sources)
    assert set(where.values()) == {0, 1, 2, 3}
    assert seats_of(here, workers, sources) == where
    assert seats_of(here, workers, sources[::-1]) == where


def test_source_hash_moves_only_those_of_a_seat_that_leaves(house: MakeHouse) -> None:
    here = house(4, Policy.SOURCE_HASH)
    workers = [here.worker(seat) for seat in range(4)]
    sources = list(range(60))
    where = seats_of(here, workers, sources)
    workers[2].leave()
    others = [workers[0], workers[1], workers[3]]
    without = seats_of(here, others, sources)
    assert {source for source in sources if where[source] != without[source]} == {
        source for source in sources if where[source] == 2
    }
    workers[2] = here.worker(2)
    assert seats_of(here, workers, sources) == where


def test_source_hash_keeps_the_clients_of_one_that_is_replaced(house: MakeHouse) -> None:
    """Its successor is in another place, and both are in rotation for a moment; to their clients they are one."""
    here = house(5, Policy.SOURCE_HASH)
    workers = [here.worker(seat) for seat in range(4)]
    sources = list(range(60))
    where = seats_of(here, workers, sources)
    successor = here.worker(4, identity=2)
    workers[2].leave()
    after = seats_of(here, [*workers[:2], workers[3], successor], sources)
    assert after == {source: 4 if seat == 2 else seat for source, seat in where.items()}


@pytest.mark.parametrize("places", [(2, 3), (3, 2)])
def test_source_hash_tries_the_newer_of_two_that_are_the_same(house: MakeHouse, places: tuple[int, int]) -> None:
    """A worker on trial serves the clients of the one that it is to replace; they go back if it fails."""
    here = house(4, policy=Policy.SOURCE_HASH)
    others = [here.worker(seat) for seat in range(2)]
    old = here.worker(places[0], identity=2)
    sources = list(range(60))
    where = seats_of(here, [*others, old], sources)
    new = here.worker(places[1], identity=2)
    after = seats_of(here, [*others, old, new], sources)
    assert after == {source: new.seat if seat == old.seat else seat for source, seat in where.items()}
    new.leave()
    assert seats_of(here, [*others, old], sources) == where


def test_source_hash_spreads(house: MakeHouse) -> None:
    here = house(4, Policy.SOURCE_HASH)
    workers = [here.worker(seat) for seat in range(4)]
    count = Counter(seats_of(here, workers, list(range(300))).values())
    assert min(count.values()) > 300 / 4 * 0.6  # 4 standard deviations are 30


def test_source_hash_bounds_the_load_of_one_seat(house: MakeHouse) -> None:
    """All come from one address: its seat gets a quarter more than the mean, and the rest go to others."""
    here = house(4, Policy.SOURCE_HASH)
    workers = [here.worker(seat, 32) for seat in range(4)]
    live = Counter[int]()
    for total in range(1, 121):
        here.connect(source=address(1))
        here.settle()
        for worker in workers:
            live[worker.seat] += len(worker.take(keep=False))
        assert sum(live.values()) == total
        assert max(live.values()) <= max(32 // 4 + 1, -(-total * 5 // (4 * 4))), live
    assert len(+live) >= 3


def test_source_hash_does_not_wait_for_who_is_full(house: MakeHouse) -> None:
    here = house(2, Policy.SOURCE_HASH)
    workers = [here.worker(seat, 6) for seat in range(2)]
    here.connect(8, source=address(1))
    here.settle()
    assert all(here.untaken()[:2])
    assert sorted(here.take_until(workers, 8)) == list(range(8))


def test_source_hash_spreads_unix_clients(house: MakeHouse) -> None:
    here = house(4, Policy.SOURCE_HASH, listening=False)
    here.listen("", socket.AF_UNIX)
    workers = [here.worker(seat) for seat in range(4)]
    count = Counter[int]()
    for _ in range(30):
        here.connect(5)
        here.settle()
        for worker in workers:
            taken = worker.take(keep=False)
            count[worker.seat] += len(taken)
            worker.done(len(taken))
    assert sum(count.values()) == 150
    assert min(count.values()) > 10


@pytest.mark.skipif(not has_ipv6(), reason="this system has no IPv6")
def test_source_hash_knows_an_ipv4_client_through_a_dual_stack_listener(house: MakeHouse) -> None:
    here = house(8, Policy.SOURCE_HASH)
    here.listen(("::", 0), socket.AF_INET6, dual=True)
    workers = [here.worker(seat) for seat in range(8)]
    plain = seats_of(here, workers, list(range(20)))
    mapped = {}
    for source in range(20):
        here.connect(to=("127.0.0.1", here.addresses[1][1]), source=address(source))
        here.settle()
        for worker in workers:
            for arrival in worker.take(keep=False):
                assert arrival.peer[0] == f"::ffff:{address(source)[0]}"
                mapped[source] = worker.seat
                worker.done()
    assert mapped == plain
    assert len(set(plain.values())) > 3


# ---- max_connections ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", Policy, ids=str)
def test_a_worker_never_gets_more_than_it_may_hold(house: MakeHouse, policy: Policy) -> None:
    here = house(2, policy)
    workers = [here.worker(seat, most=5) for seat in range(2)]
    here.connect(40)
    here.settle()
    assert here.untaken()[:2] == [5, 5]
    live = [len(worker.take(keep=False)) for worker in workers]
    here.settle()
    assert here["passed"] == 10
    total = 10
    while total < 40:
        for worker in workers:
            worker.done(min(2, live[worker.seat]))
            live[worker.seat] -= min(2, live[worker.seat])
        here.settle()
        for worker in workers:
            got = len(worker.take(keep=False))
            total += got
            live[worker.seat] += got
            assert live[worker.seat] <= 5
    here.check()


def test_one_that_holds_all_it_may_does_not_keep_others_waiting(house: MakeHouse, faults: Faults) -> None:
    here = house(2)
    full, other = here.worker(0, most=3), here.worker(1)
    here.connect(60)
    assert len(here.take_until([full, other], 60)) == 60
    assert here.core.look(0).taken == 3
    faults.reset()
    here.connect(5)
    here.core.run(50_000_000)
    here.core.run(50_000_000)
    assert here.core.untaken(1) == 5
    assert faults.calls("epoll_wait") < 12


def test_when_all_hold_what_they_may_the_core_sleeps(house: MakeHouse, faults: Faults) -> None:
    here = house()
    worker = here.worker(0, most=3)
    here.connect(10)
    here.settle()
    worker.take()
    faults.reset()
    here.core.run(80_000_000)
    assert faults.calls("epoll_wait") <= 2
    assert faults.calls("accept4") == 0
    # The worker says so to the master's Python, which comes back here.
    assert [worker.ends.done() for _ in range(2)] == [1, 0]
    here.settle()
    assert here.core.untaken(0) == 2


def test_nobody_is_told_of_an_end_while_somebody_is_hungry(house: MakeHouse) -> None:
    """The master looks when the next client comes; to wake it at each end would cost as much as to accept."""
    here = house(2)
    full, other = here.worker(0, most=2), here.worker(1)
    here.connect(6)
    assert len(here.take_until([full, other], 6)) == 6
    assert [full.ends.done() for _ in range(2)] == [0, 0]
    here.connect(4)
    here.settle()
    assert here.untaken()[:2] == [2, 2]


def test_a_lost_connection_takes_no_place_for_ever(house: MakeHouse) -> None:
    here = house()
    worker = here.worker(0, most=3)
    here.connect(10)
    here.settle()
    with free_descriptors(0):
        for _ in range(3):
            assert worker.receiver.take(True) == -errno.ENOBUFS
    here.settle()
    assert here.core.untaken(0) == 3, "nobody will ever say done of those that were lost"


# ---- pool and seats ------------------------------------------------------------------------------------------------


def test_pool_and_seat_channels_side_by_side(house: MakeHouse) -> None:
    """As happens while a new release with another kind of handler comes in."""
    here = house(2)
    blocking, loop = here.worker(0, 8, pool=True), here.worker(1)
    here.connect(40)
    taken = here.take_until([blocking, loop], 40)
    assert sorted(taken) == list(range(40))
    assert here.core.untaken(POOL) == 0


def test_a_pool_is_one_queue(house: MakeHouse) -> None:
    here = house(3)
    workers = [here.worker(seat, 12, pool=True) for seat in range(3)]
    here.connect(12)
    here.run_until_passed(12)
    assert here.untaken() == [0, 0, 0, 12]
    order: list[int] = []
    for turn in range(12):
        order += clients_of(workers[turn % 3].take(1))
    assert order == list(range(12))
