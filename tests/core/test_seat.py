"""seat: who leaves, what it had not taken, and who gets that."""

from __future__ import annotations

import os
import random
import socket
from collections.abc import Callable

import pytest

from pyfanout.core import POOL

from .kit import Faults, House, clients_of

MakeHouse = Callable[..., House]


def test_what_waits_for_one_that_leaves_goes_to_others_in_order_and_first(house: MakeHouse) -> None:
    here = house(3)
    first = here.worker(0)
    here.connect(24)
    here.settle()
    first.take(4)
    here.connect(30)
    others = [here.worker(1, 32), here.worker(2, 32)]
    first.leave()
    here.settle()
    assert here.core.untaken(0) == 0
    taken = [clients_of(worker.take()) for worker in others]
    for clients in taken:
        assert clients == sorted(clients)
    assert sorted(taken[0] + taken[1])[:20] == list(range(4, 24)), "what was accepted already goes first"
    rest = here.take_until(others, 54 - 4 - len(taken[0]) - len(taken[1]))
    assert sorted(taken[0] + taken[1] + rest) == list(range(4, 54))
    assert here["recalled"] == 20
    here.check()


def test_nobody_is_hungry_so_it_stays_for_the_replacement(house: MakeHouse, faults: Faults) -> None:
    here = house()
    first = here.worker(0)
    here.connect(20)
    here.settle()
    first.leave()
    before = faults.calls("epoll_wait")
    here.run_for(40_000_000)
    assert faults.calls("epoll_wait") - before <= 3
    assert here["recalled"] == 0
    second = here.worker(0)
    assert here.take_until([second], 20) == list(range(20))
    here.check()


def test_the_replacement_comes_before_all_is_recalled(house: MakeHouse) -> None:
    here = house(2)
    first = here.worker(0, 64)
    here.connect(32)
    here.settle()
    first.leave()
    other = here.worker(1, 6)
    here.settle()
    assert 0 < here.core.untaken(0) < 32
    second = here.worker(0)
    assert sorted(here.take_until([other, second], 32)) == list(range(32))
    here.check()


def test_a_worker_that_lives_on_and_one_that_recalls_share_without_loss(house: MakeHouse) -> None:
    """It drains, or hangs and comes back: each message is taken by one of the two."""
    here = house(2)
    first, other = here.worker(0), here.worker(1)
    here.connect(16)
    here.settle()
    first.leave()
    taken = clients_of(first.take(3)) + here.take_until([other, first], 13)
    assert sorted(taken) == list(range(16))
    here.check()


def test_leaving_twice_or_before_entering_is_nothing(house: MakeHouse) -> None:
    here = house(2)
    here.core.leave(1)
    worker = here.worker(0)
    worker.leave()
    worker.leave()
    here.core.leave(1)
    here.connect()
    worker = here.worker(0)
    here.settle()
    assert len(worker.take()) == 1


def test_all_leave_the_pool_and_the_next_worker_finds_what_is_left(house: MakeHouse) -> None:
    here = house(2)
    workers = [here.worker(seat, 8, pool=True) for seat in range(2)]
    here.connect(10)
    here.settle()
    assert clients_of(workers[0].take(3)) == [0, 1, 2]
    for worker in workers:
        worker.leave()
    here.settle()
    assert here.core.untaken(POOL) == 5 + here["nudges"]
    worker = here.worker(1, 8, pool=True)
    assert here.take_until([worker], 7) == list(range(3, 10))
    here.check()


def test_a_seat_changes_from_pool_to_channel_and_back(house: MakeHouse) -> None:
    here = house()
    taken: list[int] = []
    for turn in range(6):
        worker = here.worker(0, 8, pool=turn % 2 == 0)
        here.connect(7)
        taken += here.take_until([worker], 7)
        worker.leave()
    assert taken == list(range(42))


def test_a_hungry_channel_is_not_forgotten_when_another_leaves(house: MakeHouse, rng: random.Random) -> None:
    """Entering and leaving rebuilds the rotation; armed channels must still be heard."""
    here = house(4)
    workers = {seat: here.worker(seat, 8) for seat in range(4)}
    taken: list[int] = []
    connected = 0
    for _ in range(60):
        seat = rng.randrange(4)
        if seat in workers and len(workers) > 1:
            taken += clients_of(workers[seat].take(rng.randint(0, 8)))
            workers.pop(seat).leave()
        elif seat not in workers:
            workers[seat] = here.worker(seat, rng.choice([6, 8, 32]))
        burst = rng.randint(0, 12)
        here.connect(burst)
        connected += burst
        here.settle()
        here.check()
        seat = rng.choice(list(workers))
        taken += clients_of(workers[seat].take(rng.randint(0, 16)))
    if left := connected - len(taken):
        taken += here.take_until(list(workers.values()), left)
    assert sorted(taken) == list(range(connected))


@pytest.mark.parametrize("generations", [30])
def test_nothing_grows_with_generations(house: MakeHouse, generations: int) -> None:
    here = house(2)
    survivor = here.worker(1)
    for _ in range(generations):
        worker = here.worker(0)
        here.connect(6)
        here.settle()
        assert len(worker.take(2)) == 2
        worker.leave()
        here.settle()
        assert len(survivor.take()) == 4
    here.check()
    assert here["recalled"] == generations


def test_the_channel_of_a_seat_that_ends_is_closed_when_it_is_empty(house: MakeHouse) -> None:
    """What waits in it goes to others first; a seat that begins again before that keeps it."""
    here = house(2)
    before = len(here.own_descriptors())
    first = here.worker(0)
    here.connect(10)
    here.settle()
    first.leave()
    here.core.end(0)
    assert here.core.untaken(0) == 10
    second = here.worker(1)
    assert sorted(here.take_until([second], 10)) == list(range(10))
    here.settle()
    assert here.core.untaken(0) == 0
    assert len(here.own_descriptors()) == before - 2
    here.check()
    third = here.worker(0)
    here.connect(4)
    assert sorted(here.take_until([second, third], 4)) == list(range(10, 14))


def test_a_seat_that_begins_again_before_its_end(house: MakeHouse) -> None:
    here = house(1)
    first = here.worker(0)
    here.connect(5)
    here.settle()
    first.leave()
    here.core.end(0)
    again = here.worker(0)
    assert sorted(here.take_until([again], 5)) == list(range(5))
    assert here.core.untaken(0) == 0


def test_what_a_worker_had_received_but_not_counted_is_in_its_hands(house: MakeHouse) -> None:
    """One that is killed inside its receive call cannot say so; that it is neither in the channel nor done does."""
    here = house(1)
    worker = here.worker(0)
    here.connect(6)
    here.settle()
    assert here.core.look(0).in_hands == 0
    worker.take(2)
    with socket.socket(fileno=os.dup(worker.fd)) as channel:
        _, fds, _, _ = socket.recv_fds(channel, 4096, 1)
    for fd in fds:
        os.close(fd)
    view = here.core.look(0)
    assert (view.taken, view.done, view.in_hands) == (2, 0, 3)
    worker.done(1)
    worker.leave()
    assert here.core.look(0).in_hands == 2
