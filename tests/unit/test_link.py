"""link: one end of a control socket reads in turns, pings one at a time, and knows when the other side has gone."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from pyfanout.link import outbox
from pyfanout.link.link import MESSAGES, Link
from pyfanout.link.messages import Cut, DecodeError, HasRoom, Ping, Pong, Retiring, encode, send
from pyfanout.worker.worker import WorkerProcess


@pytest.fixture
def pair() -> Iterator[tuple[Link, socket.socket]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        yield Link(ours), theirs


def test_what_is_there_is_read_and_no_more_than_a_turn(pair: tuple[Link, socket.socket]) -> None:
    one, theirs = pair
    assert list(one.receive()) == []
    for number in range(MESSAGES + 2):
        send(theirs, Ping(number))
    assert list(one.receive()) == [Ping(number) for number in range(MESSAGES)]
    theirs.close()
    assert list(one.receive()) == [Ping(MESSAGES), Ping(MESSAGES + 1), None], "its end comes last"
    assert list(one.receive()) == [None]


def test_nonsense_ends_a_turn_and_what_came_before_counts(pair: tuple[Link, socket.socket]) -> None:
    one, theirs = pair
    send(theirs, HasRoom())
    theirs.send(b"?")
    turn = one.receive()
    assert next(turn) == HasRoom()
    with pytest.raises(DecodeError):
        next(turn)


@pytest.mark.parametrize(
    ("error", "lives"),
    [(errno.EAGAIN, True), (errno.ENOMEM, True), (errno.ENOBUFS, True), (errno.EBADF, False), (errno.EIO, False)],
)
def test_a_shortage_is_not_the_end_of_the_other_side(error: int, lives: bool) -> None:
    class Refusing:
        def recv(self, *_: object) -> bytes:
            raise OSError(error, "refused")

    refusing: Any = Refusing()
    assert list(Link(refusing).receive()) == ([] if lives else [None])
    worker: Any = object.__new__(WorkerProcess)
    worker.link = Link(refusing)
    assert worker.receive() is lives


def test_last_words_end_although_a_child_goes_on_to_write(pair: tuple[Link, socket.socket]) -> None:
    """They are read to their end, not to the end of a turn."""
    one, theirs = pair
    for number in range(3 * MESSAGES):
        send(theirs, Cut(number))
    words = one.last_words()
    assert next(words) == Cut(0)
    with pytest.raises(BrokenPipeError):
        send(theirs, Retiring())
    assert list(words) == [Cut(number) for number in range(1, 3 * MESSAGES)]


def test_nonsense_ends_last_words(pair: tuple[Link, socket.socket]) -> None:
    one, theirs = pair
    send(theirs, Retiring())
    theirs.send(b"?")
    send(theirs, HasRoom())
    assert list(one.last_words()) == [Retiring()]


def test_one_ping_at_a_time_and_only_its_pong_answers_it(pair: tuple[Link, socket.socket]) -> None:
    one, theirs = pair
    assert not one.owes_pong
    assert not one.is_answered_by(Pong(0, 0)), "none was asked"
    one.ping(5)
    one.ping(6)
    assert (one.owes_pong, one.owed_since_ns) == (True, 5)
    assert theirs.recv(99) == encode(Ping(1))
    with pytest.raises(BlockingIOError):
        theirs.recv(99, socket.MSG_DONTWAIT)
    assert not one.is_answered_by(Pong(2, 0))
    assert one.is_answered_by(Pong(1, 0))
    assert not one.is_answered_by(Pong(1, 0)), "it was answered"
    assert not one.owes_pong
    one.ping(7)
    assert theirs.recv(99) == encode(Ping(2))


def test_the_number_of_a_ping_fits_into_its_message(pair: tuple[Link, socket.socket]) -> None:
    one, theirs = pair
    one._number = 2**32 - 1
    one.ping(5)
    assert theirs.recv(99) == encode(Ping(0))
    assert one.is_answered_by(Pong(0, 0))


def test_a_shortage_makes_no_debt(monkeypatch: pytest.MonkeyPatch, pair: tuple[Link, socket.socket]) -> None:
    one, theirs = pair

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOBUFS, os.strerror(errno.ENOBUFS))

    with monkeypatch.context() as shortage:
        shortage.setattr(outbox, "send", refuse)
        shortage.setattr(outbox, "time", SimpleNamespace(monotonic_ns=lambda: 40))
        one.ping(5)
    assert one.owed_since_ns == 40
    one.outbox.flush()
    assert theirs.recv(99) == encode(Ping(1))
