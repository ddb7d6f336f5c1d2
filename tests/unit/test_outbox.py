"""outbox: what cannot be sent is sent later, in order, and the system's shortage is told from a worker's silence."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import suppress

import pytest

from pyfanout.link import outbox
from pyfanout.link.messages import Message, Ping, ServerStopping, receive, send
from pyfanout.link.outbox import Outbox


@pytest.fixture
def pair() -> Iterator[tuple[Outbox, socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    theirs.setblocking(False)
    with ours, theirs:
        yield Outbox(ours), ours, theirs


def heard(theirs: socket.socket) -> list[Message | None]:
    messages: list[Message | None] = []
    try:
        while messages[-1:] != [None]:
            messages.append(receive(theirs))
    except BlockingIOError:
        pass
    return messages


@pytest.mark.parametrize("error", [errno.ENOBUFS, errno.ENOMEM, errno.EAGAIN, errno.EPIPE])
def test_what_is_refused_is_sent_later(
    monkeypatch: pytest.MonkeyPatch, pair: tuple[Outbox, socket.socket, socket.socket], error: int
) -> None:
    one, _, theirs = pair
    refusals = [error] * 3

    def refuse(sock: socket.socket, message: Message) -> None:
        if refusals:
            raise OSError(refusals.pop(), os.strerror(error))
        send(sock, message)

    monkeypatch.setattr(outbox, "send", refuse)
    one.send(Ping(1))
    assert one
    one.send(ServerStopping())
    one.flush()
    assert (bool(one), heard(theirs)) == (True, [])
    one.flush()
    assert (bool(one), heard(theirs)) == (False, [Ping(1), ServerStopping()])
    assert (one.short_ns > 0) == (error in (errno.ENOBUFS, errno.ENOMEM)), "whose fault is it?"


def test_who_does_not_read_hears_it_when_he_does(pair: tuple[Outbox, socket.socket, socket.socket]) -> None:
    one, ours, theirs = pair
    with suppress(BlockingIOError):
        while True:
            send(ours, Ping(1))
    one.send(Ping(2))
    assert one
    assert one.short_ns == 0
    assert Ping(2) not in heard(theirs)
    one.flush()
    assert heard(theirs) == [Ping(2)]
