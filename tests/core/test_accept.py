"""accept: who came, from which listener; what the system refuses, and that no refusal costs a connection or a spin."""

from __future__ import annotations

import errno
import os
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from pyfanout.core import EventKind

from .kit import Faults, House, clients_of, free_descriptors, has_ipv6

MakeHouse = Callable[..., House]

DESCRIPTORS = [errno.EMFILE, errno.ENFILE]
MEMORY = [errno.ENOBUFS, errno.ENOMEM]
GONE = [
    errno.ECONNABORTED,
    errno.EPROTO,
    errno.ENETDOWN,
    errno.ENOPROTOOPT,
    errno.EHOSTDOWN,
    errno.ENONET,
    errno.EHOSTUNREACH,
    errno.EOPNOTSUPP,
    errno.ENETUNREACH,
    errno.ETIMEDOUT,
    errno.EPERM,
]
names = errno.errorcode.get

needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="this system has no IPv6")


# ---- who came ----------------------------------------------------------------------------------------------------


def test_ipv4_peers(house: MakeHouse) -> None:
    here = house()
    worker = here.worker(0)
    clients = [*here.connect(2), *here.connect(1, source=("127.1.2.3", 0))]
    here.settle()
    taken = worker.take()
    assert [arrival.peer for arrival in taken] == [client.getsockname() for client in clients]
    assert taken[2].peer[0] == "127.1.2.3"


@needs_ipv6
def test_ipv6_peers(house: MakeHouse) -> None:
    here = house(listening=False)
    here.listen(("::1", 0), socket.AF_INET6)
    worker = here.worker(0)
    clients = here.connect(2)
    here.settle()
    assert [arrival.peer for arrival in worker.take()] == [client.getsockname() for client in clients]


@needs_ipv6
def test_ipv4_peers_of_a_dual_stack_listener(house: MakeHouse) -> None:
    here = house(listening=False)
    here.listen(("::", 0), socket.AF_INET6, dual=True)
    worker = here.worker(0)
    (client,) = here.connect(to=("127.0.0.1", here.addresses[0][1]))
    here.settle()
    host, port = client.getsockname()
    assert [arrival.peer for arrival in worker.take()] == [(f"::ffff:{host}", port, 0, 0)]


def test_unix_peers(house: MakeHouse, tmp_path: Path) -> None:
    here = house(listening=False)
    here.listen("", socket.AF_UNIX)
    worker = here.worker(0)
    os.chdir(tmp_path)
    longest = "x" * 107
    sources = [None, "client", "", longest, b"\0abstract\0name", b"\0" + b"y" * 107]
    clients = [here.connect(source=source)[0] for source in sources]
    here.settle()
    peers = [arrival.peer for arrival in worker.take()]
    assert peers == [client.getsockname() for client in clients]
    assert peers[0] == ""
    assert peers[1] == "client"
    assert peers[3] == longest
    assert peers[4] == b"\0abstract\0name"


def test_peers_of_one_kind_do_not_show_through_those_of_another(house: MakeHouse) -> None:
    """The place of a long name in the master's hands is used again for a short one."""
    here = house()
    here.listen("", socket.AF_UNIX)
    worker = here.worker(0)
    here.connect(number=1, source=b"\0" + b"z" * 100)
    here.settle()
    worker.take()
    for number in (0, 1):
        (client,) = here.connect(number=number)
        here.settle()
        assert [arrival.peer for arrival in worker.take()] == [client.getsockname()]


def test_a_client_that_has_left_is_passed_like_any_other(house: MakeHouse) -> None:
    here = house()
    worker = here.worker(0)
    (client,) = here.connect()
    client.shutdown(socket.SHUT_WR)
    here.settle()
    (arrival,) = worker.take()
    assert arrival.sock.recv(1) == b""


# ---- several listeners -------------------------------------------------------------------------------------------


def test_listeners_take_turns(house: MakeHouse) -> None:
    """A flood at one of them keeps no other waiting: each is the first in its turn."""
    here = house(listening=False)
    for _ in range(3):
        here.listen()
    here.connect(300, 0)
    here.connect(8, 1)
    here.connect(8, 2)
    worker = here.worker(0, 8)
    order: list[int] = []
    while len(order) < 316:
        here.settle()
        order += [arrival.listener for arrival in worker.take()]
    assert Counter(order) == {0: 300, 1: 8, 2: 8}
    assert max(order.index(1), order.index(2)) < 6 * 8
    last = len(order) - 1 - order[::-1].index(1), len(order) - 1 - order[::-1].index(2)
    assert max(last) < 12 * 8


def test_many_listeners(house: MakeHouse) -> None:
    here = house(listening=False)
    for number in range(64):
        assert here.listen("", socket.AF_UNIX) == number
    worker = here.worker(0)
    for number in range(64):
        here.connect(number=number)
    order: list[int] = []
    while len(order) < 64:
        here.settle()
        order += [arrival.listener for arrival in worker.take()]
    assert sorted(order) == list(range(64))
    with socket.create_server(("127.0.0.1", 0)) as one_more, pytest.raises(OSError, match="No space left") as caught:
        here.core.listen(one_more.fileno())
    assert caught.value.errno == errno.ENOSPC


def test_nothing_is_accepted_while_nobody_is_hungry(house: MakeHouse, faults: Faults) -> None:
    here = house()
    here.connect(5)
    here.settle()
    assert here["accepted"] == 0
    assert faults.calls("accept4") == 0
    worker = here.worker(0, 8)
    here.connect(40)
    here.settle()
    accepted, calls = here["accepted"], faults.calls("accept4")
    assert accepted == 8
    before = faults.calls("epoll_wait")
    here.connect(20)
    here.core.run(40_000_000)
    assert (here["accepted"], faults.calls("accept4")) == (accepted, calls)
    assert faults.calls("epoll_wait") == before + 1, "new clients wake the master of a full house"
    worker.leave()
    here.core.run(10_000_000)
    assert here["accepted"] == accepted


def test_accept_is_not_called_in_vain(house: MakeHouse, faults: Faults) -> None:
    """A call that finds nobody costs ten times a poll."""
    here = house()
    worker = here.worker(0, 8)
    for _ in range(20):
        here.connect(3)
        here.take_until([worker], 3)
    here.settle()
    assert faults.calls("accept4") == here["accepted"] == 60
    here.check()


# ---- refusals ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", GONE, ids=names)
def test_a_connection_that_is_gone_is_counted_and_the_next_is_taken(
    house: MakeHouse, faults: Faults, error: int
) -> None:
    here = house()
    worker = here.worker(0)
    here.connect(6)
    faults.fail("accept4", error, after=2, times=3)
    here.run_until(lambda: here.core.untaken(0) == 6, "all arrive")
    assert here["aborted"] == 3
    assert clients_of(worker.take()) == list(range(6))
    here.check()


@pytest.mark.parametrize("error", GONE, ids=names)
def test_a_refusal_that_does_not_end_is_no_endless_loop(house: MakeHouse, faults: Faults, error: int) -> None:
    """accept4 itself may be forbidden (EPERM: seccomp, a security module): then a failed call takes nothing off the
    queue."""
    here = house()
    worker = here.worker(0)
    here.connect(3)
    faults.fail("accept4", error, times=200_000)
    here.core.run(0)
    here.core.run(50_000_000)
    assert faults.calls("accept4") < 5_000
    faults.reset()
    here.run_until(lambda: here.core.untaken(0) == 3, "all arrive when it is over")
    assert clients_of(worker.take()) == [0, 1, 2]


def test_interrupts_are_counted_and_cost_nothing(house: MakeHouse, faults: Faults) -> None:
    here = house()
    worker = here.worker(0)
    here.connect(4)
    faults.fail("accept4", errno.EINTR, after=1, times=2)
    here.run_until(lambda: here.core.untaken(0) == 4, "all arrive")
    assert here["interrupts"] == 2
    assert clients_of(worker.take()) == [0, 1, 2, 3]


@pytest.mark.parametrize("error", DESCRIPTORS + MEMORY, ids=names)
def test_a_shortage_pauses_and_is_over(house: MakeHouse, faults: Faults, error: int) -> None:
    here = house()
    worker = here.worker(0)
    here.connect(6)
    faults.fail("accept4", error, after=2)
    here.run_until(lambda: here.core.untaken(0) == 6, "all arrive")
    here.settle()
    assert [event[:2] for event in here.events] == [(EventKind.PAUSED, error), (EventKind.RESUMED, 0)]
    assert here["fd_shortages" if error in DESCRIPTORS else "memory_shortages"] == 1
    assert clients_of(worker.take()) == list(range(6))
    here.check()


@pytest.mark.parametrize("error", DESCRIPTORS + MEMORY, ids=names)
def test_a_long_shortage_is_said_once_and_does_not_spin(house: MakeHouse, faults: Faults, error: int) -> None:
    here = house()
    worker = here.worker(0)
    here.connect(6)
    faults.fail("accept4", error, times=1_000_000)
    here.run_for(450_000_000)
    assert faults.calls("accept4") <= 6
    assert faults.calls("epoll_wait") <= 20
    assert [event.kind for event in here.events] == [EventKind.PAUSED]
    assert here["accepted"] == 0
    faults.reset()
    here.run_until(lambda: here.core.untaken(0) == 6, "all arrive when it is over")
    here.settle()
    assert [event.kind for event in here.events] == [EventKind.PAUSED, EventKind.RESUMED]
    assert clients_of(worker.take()) == list(range(6))
    here.check()


def test_no_descriptor_is_free(house: MakeHouse, faults: Faults) -> None:
    here = house()
    worker = here.worker(0)
    here.connect(6)
    with free_descriptors(0):
        here.run_for(250_000_000)
        assert faults.calls("accept4") <= 4
        assert faults.calls("epoll_wait") <= 12
        assert here["fd_shortages"] >= 1
    here.run_until(lambda: here.core.untaken(0) == 6, "all arrive when there is one")
    assert clients_of(worker.take()) == list(range(6))


@pytest.mark.parametrize("free", [3, 4, 7])
def test_few_descriptors_are_free(house: MakeHouse, free: int) -> None:
    """Each batch ends where the table does; what was passed makes room for the next."""
    here = house()
    worker = here.worker(0, 128)
    here.connect(20)
    with free_descriptors(free):  # two are used by the test itself
        here.run_until(lambda: here.core.untaken(0) == 20, "all arrive, after some pauses")
    assert clients_of(worker.take()) == list(range(20))
    here.check()


def test_other_events_come_during_a_pause(house: MakeHouse, faults: Faults) -> None:
    here = house()
    here.worker(0)
    here.connect(1)
    faults.fail("accept4", errno.EMFILE, times=1_000_000)
    here.settle()
    assert here.said(EventKind.PAUSED)
    reading, writing = socket.socketpair()
    with reading, writing:
        here.core.watch(reading.fileno(), 7)
        writing.send(b"!")
        here.run_until(lambda: here.said(EventKind.WATCHED), "the watched one is told")
        here.core.unwatch(reading.fileno())


@pytest.mark.parametrize("error", [errno.EBADF, errno.EINVAL, errno.ENOTSOCK], ids=names)
def test_a_listener_that_cannot_go_on_is_closed_and_reported(house: MakeHouse, faults: Faults, error: int) -> None:
    here = house()
    here.listen()
    worker = here.worker(0)
    here.connect(3, 1)
    faults.fail("accept4", error)
    here.run_until(lambda: here.said(EventKind.LISTENER_FAILED), "it is reported")
    here.settle()
    ((_, reported, token),) = here.events
    assert reported == error
    with pytest.raises(ConnectionRefusedError):
        here.connect(1, token)
    other = 1 - token
    here.connect(1, other)
    here.settle()
    assert {arrival.listener for arrival in worker.take()} <= {other}
    assert faults.calls("epoll_wait") < 40


def test_a_listener_that_is_shut_down_by_somebody(house: MakeHouse) -> None:
    here = house(listening=False)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        here.core.listen(os.dup(listener.fileno()))
        listener.shutdown(socket.SHUT_RDWR)
    here.listen()
    worker = here.worker(0)
    here.connect(3)
    here.addresses.insert(0, None)
    here.run_until(lambda: here.said(EventKind.LISTENER_FAILED), "it is reported")
    assert [event[1:] for event in here.events] == [(errno.EINVAL, 0)]
    here.run_until(lambda: here.core.untaken(0) == 3, "the other one goes on")
    assert [arrival.listener for arrival in worker.take()] == [1, 1, 1]


def test_an_error_that_nobody_knows_does_not_close_the_port(house: MakeHouse, faults: Faults) -> None:
    """A security module may refuse with EACCES, a kernel with EIO: that is no reason to give up the address."""
    here = house()
    worker = here.worker(0)
    here.connect(3)
    faults.fail("accept4", errno.EACCES)
    here.run_until(lambda: here.core.untaken(0) == 3, "all arrive")
    assert clients_of(worker.take()) == [0, 1, 2]
    assert not here.said(EventKind.LISTENER_FAILED)


def test_a_descriptor_that_cannot_listen_stays_the_callers(house: MakeHouse, tmp_path: Path) -> None:
    here = house()
    with (tmp_path / "file").open("w") as file, pytest.raises(OSError, match="add listener") as caught:
        here.core.listen(file.fileno())
    assert caught.value.errno == errno.EPERM
    with pytest.raises(OSError, match="Bad file descriptor"):
        here.core.listen(9999)


def test_a_reset_client_is_counted_or_passed(house: MakeHouse) -> None:
    """Linux passes on a connection that was reset in the queue; other systems drop it (ECONNABORTED)."""
    here = house()
    worker = here.worker(0)
    (client,) = here.connect()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()
    here.connect(1)
    here.run_until(lambda: here["passed"] + here["aborted"] == 2, "both are dealt with")
    count, raws = worker.receiver.take_ready(32)
    assert count == here["passed"]
    for raw in raws:
        os.close(raw.fd)


def test_a_burst_while_the_master_is_in_python(house: MakeHouse) -> None:
    """Clients that come between two runs, and more than a batch of them."""
    here = house(4)
    workers = [here.worker(seat) for seat in range(4)]
    thread = threading.Thread(target=here.connect, args=(500,))
    thread.start()
    taken = here.take_until(workers, 500)
    thread.join()
    assert sorted(taken) == list(range(500))
    here.check()
