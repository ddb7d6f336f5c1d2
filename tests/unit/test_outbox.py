"""outbox: what cannot be sent is sent later, in order, and the system's shortage is told from a worker's silence."""

from __future__ import annotations

import errno
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress

import pytest

from pyfanout.link import outbox
from pyfanout.link.messages import HasRoom, Message, Ping, Pong, Retiring, ServerStopping, Short, receive, send
from pyfanout.link.outbox import MOST, Outbox


@pytest.fixture
def pair() -> Iterator[tuple[Outbox, socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    theirs.setblocking(False)
    with ours, theirs:
        yield Outbox(ours), ours, theirs


def received(theirs: socket.socket) -> list[Message | None]:
    messages: list[Message | None] = []
    try:
        while messages[-1:] != [None]:
            messages.append(receive(theirs))
    except BlockingIOError:
        pass
    return messages


@pytest.mark.parametrize("error", [errno.ENOBUFS, errno.ENOMEM, errno.EAGAIN])
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
    assert (bool(one), received(theirs)) == (True, [])
    one.flush()
    assert (bool(one), received(theirs)) == (False, [Ping(1), ServerStopping()])
    assert (one.short_ns > 0) == (error in (errno.ENOBUFS, errno.ENOMEM)), "whose fault is it?"


def test_who_does_not_read_hears_it_when_he_does(pair: tuple[Outbox, socket.socket, socket.socket]) -> None:
    one, ours, theirs = pair
    with suppress(BlockingIOError):
        while True:
            send(ours, Ping(1))
    one.send(Ping(2))
    assert one
    assert one.short_ns == 0
    assert Ping(2) not in received(theirs)
    one.flush()
    assert received(theirs) == [Ping(2)]


@pytest.mark.parametrize("error", [errno.EPIPE, errno.ECONNRESET, errno.EBADF])
def test_nothing_is_kept_for_a_side_that_is_gone(
    monkeypatch: pytest.MonkeyPatch, pair: tuple[Outbox, socket.socket, socket.socket], error: int
) -> None:
    one, _, theirs = pair

    def refuse(*_: object) -> None:
        raise OSError(error, os.strerror(error))

    with monkeypatch.context() as gone:
        gone.setattr(outbox, "send", refuse)
        one.send(Ping(1))
        assert not one
    one.send(Ping(2))
    assert received(theirs) == [Ping(2)]


def fill(ours: socket.socket) -> None:
    with suppress(BlockingIOError):
        while True:
            send(ours, Ping(0))


def test_what_waits_as_the_last_is_not_added_once_more(pair: tuple[Outbox, socket.socket, socket.socket]) -> None:
    one, ours, theirs = pair
    fill(ours)
    for message in (HasRoom(), HasRoom(), Short(True), Short(False), Short(True), HasRoom()):
        one.send(message)
    received(theirs)
    one.flush()
    assert received(theirs) == [HasRoom(), Short(True), Short(False), Short(True), HasRoom()]


def test_so_many_wait_and_what_is_dropped_is_in_the_log(
    caplog: pytest.LogCaptureFixture, pair: tuple[Outbox, socket.socket, socket.socket]
) -> None:
    one, ours, theirs = pair
    fill(ours)
    for number in range(MOST + 1):
        one.send(Ping(number))
    assert [record.getMessage() for record in caplog.records] == [
        "the process at the other end of a control socket does not read: "
        f"{MOST} messages wait, {Ping(MOST)!r} is dropped"
    ]
    received(theirs)
    while one:
        one.flush()
    assert received(theirs) == [Ping(number) for number in range(MOST)]


def test_a_message_that_comes_while_another_is_sent_follows_it(
    monkeypatch: pytest.MonkeyPatch, pair: tuple[Outbox, socket.socket, socket.socket]
) -> None:
    """As from a signal handler: nothing is sent twice, and nothing waits."""
    one, _, theirs = pair
    late: list[Message] = [Short(True), Retiring()]

    def interrupted(sock: socket.socket, message: Message) -> None:
        send(sock, message)
        if late:
            one.send(late.pop(0))

    monkeypatch.setattr(outbox, "send", interrupted)
    one.send(Ping(1))
    assert not one
    assert received(theirs) == [Ping(1), Short(True), Retiring()]


def test_another_thread_may_send_what_waits_just_before(pair: tuple[Outbox, socket.socket, socket.socket]) -> None:
    """Between the look whether something waits and the lock."""
    one, ours, theirs = pair
    fill(ours)
    one.send(Retiring())
    lock, received_before = one._sends, received(theirs)

    class Late:
        def acquire(self, *, blocking: bool) -> bool:
            one._sends = lock
            one.flush()
            return lock.acquire(blocking=blocking)

        release = lock.release

    one._sends = Late()  # type: ignore[assignment]  # as far as flush needs it
    one.flush()
    assert received_before
    assert received(theirs) == [Retiring()]


def test_threads_send_each_message_once(pair: tuple[Outbox, socket.socket, socket.socket]) -> None:
    one, _, theirs = pair
    count, seen = MOST // 4, []  # all may wait while the thread that sends has no core

    def work(number: int) -> None:
        for each in range(count):
            one.send(Pong(number, each))

    threads = [threading.Thread(target=work, args=[number]) for number in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads) or one:
        seen += received(theirs)
        one.flush()
    for thread in threads:
        thread.join()
    seen += received(theirs)
    for number in range(4):
        assert [each for each in seen if each.number == number] == [Pong(number, each) for each in range(count)]


def test_the_end_waits_for_what_is_not_sent(pair: tuple[Outbox, socket.socket, socket.socket]) -> None:
    one, ours, theirs = pair
    fill(ours)
    one.send(Retiring())
    reader = threading.Timer(0.05, received, [theirs])
    reader.start()
    one.finish(60)
    reader.join()
    assert not one
    fill(ours)
    one.send(Retiring())
    one.finish(0.05)
    assert one, "its time is over"
