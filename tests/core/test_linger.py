"""linger.c: the client is told of the end, and its late input resets no connection, for a while and up to a number."""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Iterator

import pytest

from pyfanout.core import FREED, SWEEP, Linger

EVER_NS = 10**12
KINDS = ("tcp", "unix")


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class Pairs:
    """Connections: the descriptors of a worker, and their clients."""

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self.clients: list[socket.socket] = []

    def make(self, sent: bytes = b"") -> tuple[int, socket.socket]:
        if self._kind == "tcp":
            with socket.create_server(("127.0.0.1", 0)) as listener:
                client = socket.create_connection(listener.getsockname(), 10)
                ours, _ = listener.accept()
        else:
            ours, client = socket.socketpair()
        client.settimeout(10)
        self.clients.append(client)
        client.sendall(sent)
        if sent:
            select.select([ours], [], [], 10)
        ours.sendall(b"answer")
        return ours.detach(), client


@pytest.fixture
def pairs(kind: str) -> Iterator[Pairs]:
    made = Pairs(kind)
    yield made
    for client in made.clients:
        client.close()


def read(client: socket.socket) -> bytes:
    return b"".join(iter(lambda: client.recv(100), b""))


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


@pytest.mark.parametrize("sent", [b"", b"unread"])
def test_a_client_that_goes_on_sending_gets_its_answer(pairs: Pairs, sent: bytes) -> None:
    linger = Linger(4)
    fd, client = pairs.make(sent)
    assert linger.part(fd) == SWEEP
    for _ in range(3):
        client.sendall(b"x" * 10000)
        assert linger.sweep(EVER_NS) > 0
    assert read(client) == b"answer"
    client.close()
    assert linger.sweep(EVER_NS) == 0
    assert not is_open(fd)
    assert linger.part(pairs.make()[0]) == SWEEP  # again, since nobody sweeps any more
    linger.drop()


def test_it_has_its_time(pairs: Pairs) -> None:
    linger = Linger(4)
    fd, client = pairs.make()
    linger.part(fd)
    assert linger.sweep(EVER_NS) > 0
    assert linger.sweep(0) == 0
    assert not is_open(fd)
    assert read(client) == b"answer"


def test_so_many_at_once(pairs: Pairs) -> None:
    """A connection with unread input replaces the oldest one without; one without is closed at once. When all have
    some, the oldest is closed."""
    linger = Linger(2)
    quiet, sending = pairs.make(), pairs.make(b"unread")
    assert [linger.part(quiet[0]), linger.part(sending[0])] == [SWEEP, 0]
    another = pairs.make()
    assert linger.part(another[0]) == FREED
    assert (is_open(another[0]), read(another[1])) == (False, b"answer")
    second = pairs.make(b"unread")
    assert linger.part(second[0]) == FREED
    assert [is_open(fd) for fd in (quiet[0], sending[0], second[0])] == [False, True, True]
    third = pairs.make(b"unread")
    assert linger.part(third[0]) == FREED
    assert [is_open(fd) for fd in (sending[0], second[0], third[0])] == [False, True, True]
    assert linger.drop() == 2
    assert [is_open(fd) for fd in (second[0], third[0])] == [False, False]
    assert linger.drop() == 0


def test_a_quarter_for_those_with_nothing_unread(pairs: Pairs) -> None:
    linger = Linger(8)
    quiet = [pairs.make() for _ in range(3)]
    assert [linger.part(fd) for fd, _ in quiet] == [SWEEP, 0, FREED]
    assert [is_open(fd) for fd, _ in quiet] == [True, True, False]
    assert [linger.part(pairs.make(b"unread")[0]) for _ in range(7)] == [0] * 6 + [FREED]
    assert [is_open(fd) for fd, _ in quiet[:2]] == [False, True]
    assert linger.drop() == 8


def test_one_that_is_gone(pairs: Pairs) -> None:
    linger = Linger(4)
    fd, client = pairs.make()
    client.close()
    linger.part(fd)
    assert linger.sweep(EVER_NS) == 0
    assert not is_open(fd)


@pytest.mark.parametrize("full", [False, True])
def test_the_end_is_seen_although_a_child_has_a_copy(pairs: Pairs, full: bool) -> None:
    linger = Linger(1)
    linger.copied()
    if full:
        linger.part(pairs.make()[0])
    fd, client = pairs.make()
    copy = os.dup(fd)
    linger.part(fd)
    assert read(client) == b"answer"
    os.close(copy)
    linger.drop()


def test_a_child_ends_nothing(pairs: Pairs) -> None:
    """Held connections, and those that the child closes, are the worker's."""
    linger = Linger(4)
    fd, _ = pairs.make()
    linger.part(fd)
    other, client = pairs.make()
    copy = os.dup(other)
    linger.disown()
    assert not is_open(fd)
    assert linger.part(other) == FREED
    os.write(copy, b" and more")
    os.close(copy)
    assert read(client) == b"answer and more"
