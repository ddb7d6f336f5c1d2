"""finish: the clean end. What is queued is passed, listeners close, readers find all, then end-of-file."""

from __future__ import annotations

import errno
import select
import socket
from collections.abc import Callable

import pytest

from pyfanout.core import POOL, EventKind

from .kit import DEADLINE_S, Faults, House, clients_of, has_ipv6

MakeHouse = Callable[..., House]


def finished(here: House) -> bool:
    return bool(here.said(EventKind.FINISHED))


def refused(here: House, number: int = 0) -> bool:
    try:
        here.connect(1, number)
    except ConnectionRefusedError:
        return True
    return False


@pytest.mark.parametrize("pool", [False, True], ids=["own", "pool"])
def test_what_is_queued_is_passed_then_end_of_file(house: MakeHouse, pool: bool) -> None:
    here = house()
    here.listen("", socket.AF_UNIX)
    worker = here.worker(0, 12, pool=pool)
    here.connect(30, 0)
    here.connect(30, 1)
    here.core.finish(1000)
    taken = here.take_until([worker], 55)
    here.run_until(lambda: finished(here), "it is said")
    taken += clients_of(worker.rest())
    assert sorted(taken) == list(range(60))
    assert refused(here, 0)
    assert refused(here, 1)
    here.run_for(30_000_000)
    assert len(here.said(EventKind.FINISHED)) == 1
    here.check()


def test_nothing_is_queued(house: MakeHouse) -> None:
    here = house(2)
    workers = [here.worker(0), here.worker(1)]
    here.core.finish(1000)
    here.run_until(lambda: finished(here), "it is said")
    assert refused(here)
    for worker in workers:
        assert worker.rest() == []


def test_clients_that_keep_coming_do_not_keep_it_from_ending(house: MakeHouse) -> None:
    here = house()
    worker = here.worker(0)
    here.connect(50)
    here.core.finish(20)
    taken = here.take_until([worker], 20)
    here.run_until(lambda: finished(here), "it is said")
    taken += clients_of(worker.rest())
    assert taken == list(range(20))
    for client in here.clients[20:]:  # nobody will answer these: a reset says so
        client.settimeout(DEADLINE_S)
        with pytest.raises(ConnectionResetError):
            client.recv(1)


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_one_that_is_shut_serves_its_queue_and_nobody_new(house: MakeHouse, family: int) -> None:
    """Who comes then is not answered before the end, and refused afterwards; who was there is served."""
    if family == socket.AF_INET6 and not has_ipv6():
        pytest.skip("this machine has no IPv6")
    here = house(listening=False)
    here.listen(("127.0.0.1" if family == socket.AF_INET else "::1", 0), family)
    here.connect(40)
    here.core.stop_new(0)
    with socket.socket(family) as late:
        late.setblocking(False)
        assert late.connect_ex(here.addresses[0]) == errno.EINPROGRESS
        worker = here.worker(0)
        here.core.finish(1000)
        taken = here.take_until([worker], 35)
        here.run_until(lambda: finished(here), "it is said")
        assert taken + clients_of(worker.rest()) == list(range(40))
        late.settimeout(DEADLINE_S)
        assert late.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0  # it still tries
        assert select.select([], [late], [], DEADLINE_S)[1]
        assert late.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNREFUSED
    here.check()


def test_one_that_cannot_be_shut(house: MakeHouse, faults: Faults) -> None:
    here = house()
    worker = here.worker(0)
    here.connect(5)
    faults.fail("setsockopt", errno.ENOMEM)
    here.core.stop_new(0)
    assert faults.failed("setsockopt") == 1
    here.connect(5)
    here.core.finish(1000)
    here.run_until(lambda: finished(here), "it is said")
    assert clients_of(worker.rest()) == list(range(10))


def test_a_limit_of_nothing(house: MakeHouse) -> None:
    here = house()
    worker = here.worker(0)
    here.connect(3)
    here.core.finish(0)
    here.run_until(lambda: finished(here), "it is said")
    assert worker.rest() == []


def test_without_a_hungry_worker_it_waits(house: MakeHouse, faults: Faults) -> None:
    here = house()
    here.connect(3)
    here.core.finish(100)
    here.run_for(30_000_000)
    assert not finished(here)
    assert faults.calls("epoll_wait") <= 4
    assert here["accepted"] == 0
    worker = here.worker(0)
    here.run_until(lambda: finished(here), "it is said")
    assert clients_of(worker.rest()) == [0, 1, 2]


def test_what_waits_for_a_dead_worker_is_waited_for(house: MakeHouse, faults: Faults) -> None:
    here = house(2)
    first = here.worker(0)
    here.connect(10)
    here.settle()
    first.leave()
    here.core.finish(100)
    here.run_for(30_000_000)
    assert not finished(here)
    assert faults.calls("epoll_wait") <= 30
    second = here.worker(1)
    taken = here.take_until([second], 10)
    here.run_until(lambda: finished(here), "it is said")
    assert taken + clients_of(second.rest()) == list(range(10))


def test_the_replacement_finds_what_is_left_after_the_end(house: MakeHouse) -> None:
    """A worker dies after FINISHED: its channel holds still what it had not taken, and then end-of-file."""
    here = house(2)
    first, pooled = here.worker(0), here.worker(1, 8, pool=True)
    here.connect(12)
    here.core.finish(100)
    taken = clients_of(pooled.take())
    here.run_until(lambda: finished(here), "it is said")
    first.leave()
    pooled.leave()
    here.settle()
    second, third = here.worker(0), here.worker(1, 8, pool=True)
    taken += clients_of(second.rest()) + clients_of(third.rest())
    assert sorted(taken) == list(range(12))
    here.check()


def test_a_shortage_in_the_middle_is_waited_out(house: MakeHouse, faults: Faults) -> None:
    here = house()
    worker = here.worker(0, 128)
    here.connect(20)
    here.core.finish(100)
    faults.fail("accept4", errno.EMFILE, after=5)
    faults.fail("sendmmsg", errno.ETOOMANYREFS, times=2)
    here.run_until(lambda: finished(here), "it is said")
    assert clients_of(worker.rest()) == list(range(20))


def test_a_failed_listener_in_the_middle(house: MakeHouse, faults: Faults) -> None:
    here = house()
    here.listen()
    worker = here.worker(0)
    here.connect(4, 0)
    here.core.finish(100)
    faults.fail("accept4", errno.EINVAL)
    here.run_until(lambda: finished(here), "it is said")
    assert here.said(EventKind.LISTENER_FAILED)
    assert len(worker.rest()) in {0, 4}


def test_many_failures_at_once_do_not_hide_the_end(house: MakeHouse, faults: Faults) -> None:
    here = house(listening=False)
    for _ in range(20):
        here.listen("", socket.AF_UNIX)
    here.worker(0)
    faults.fail("poll", errno.ENOMEM, times=20)  # so that each is asked, although none has a client
    faults.fail("accept4", errno.EINVAL, times=20)
    here.core.finish(100)
    here.run_until(lambda: finished(here), "it is said")
    assert sorted(event.token for event in here.said(EventKind.LISTENER_FAILED)) == list(range(20))


def test_a_channel_that_breaks_while_it_ends(house: MakeHouse) -> None:
    here = house(2)
    first, second = here.worker(0), here.worker(1)
    here.connect(10)
    here.settle()
    first.shut_down(socket.SHUT_RDWR)
    here.core.finish(100)
    here.run_until(lambda: finished(here), "it is said")
    assert sorted(clients_of(first.rest() + second.rest())) == list(range(10))
    here.check()


def test_after_the_end_nothing_spins(house: MakeHouse, faults: Faults) -> None:
    here = house(2)
    workers = [here.worker(0), here.worker(1, 8, pool=True)]
    here.connect(5)
    here.core.finish(100)
    here.run_until(lambda: finished(here), "it is said")
    for worker in workers:
        worker.shut_down(socket.SHUT_RDWR)
    before = faults.calls("epoll_wait")
    here.run_for(60_000_000)
    assert faults.calls("epoll_wait") - before <= 12
    assert here.core.untaken(POOL) + here.core.untaken(0) == 5
