"""A listener's epoll set watches the worker's channel, except while the worker rests, and once it is quiet."""

from __future__ import annotations

import errno
import os
import select
import socket
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest

from pyfanout.worker.channel_watch import ChannelWatch


class FakeWorker:
    """What the room asks of a worker."""

    slot = 0

    def __init__(self) -> None:
        self.forked = False
        self.short: list[bool] = []
        self.errors: list[int] = []
        self.waiting: list[Any] = []
        self.background = SimpleNamespace(start=self.waiting.append, sleep=lambda _: None)

    def is_short(self, short: bool) -> None:
        self.short.append(short)

    def short_of(self, error: int) -> None:
        self.errors.append(error)


class Scene(NamedTuple):
    watch: ChannelWatch
    worker: FakeWorker
    news: select.epoll
    channel: socket.socket
    master: socket.socket

    @property
    def wakes(self) -> bool:
        """Whether the set reports what is in the channel."""
        return bool(self.news.poll(0))


@pytest.fixture
def scene() -> Iterator[Scene]:
    worker = FakeWorker()
    channel, master = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with channel, master, select.epoll() as news:
        watch = ChannelWatch(worker, news, channel.fileno())  # type: ignore[arg-type]  # a fake
        yield Scene(watch, worker, news, channel, master)


def test_it_watches(scene: Scene) -> None:
    assert not scene.wakes
    scene.master.send(b"a connection")
    assert scene.wakes


def test_a_quiet_one_is_not_woken_again(scene: Scene) -> None:
    scene.master.send(b"a connection")
    scene.watch.quiet()
    scene.watch.quiet()
    assert scene.watch.fd is None
    assert not scene.wakes


def test_in_a_child_the_set_stays_as_it_is(scene: Scene) -> None:
    scene.worker.forked = True
    scene.master.send(b"a connection")
    scene.watch.quiet()
    assert scene.watch.fd is None
    assert scene.wakes


@pytest.mark.parametrize("error", [errno.EMFILE, errno.ENOMEM])
def test_it_rests_until_there_is_a_descriptor(scene: Scene, error: int, caplog: pytest.LogCaptureFixture) -> None:
    scene.master.send(b"a connection")
    scene.watch.rest(error)
    assert scene.watch.rests
    assert not scene.wakes
    assert scene.worker.short == [True]
    assert scene.worker.errors == ([errno.ENOMEM] if error == errno.ENOMEM else [])
    (wait,) = scene.worker.waiting
    wait()
    assert not scene.watch.rests
    assert scene.wakes
    assert scene.worker.short == [True, False]
    assert ("takes no connection until a descriptor is free" in caplog.text) is (error == errno.EMFILE)


def test_it_waits_as_long_as_there_is_none(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    tries = 0

    def dup(_: int) -> int:
        nonlocal tries
        tries += 1
        if tries < 3:
            raise OSError(errno.EMFILE, "none")
        return os.open("/dev/null", os.O_RDONLY)

    scene.master.send(b"a connection")
    scene.watch.rest(errno.EMFILE)
    monkeypatch.setattr(os, "dup", dup)
    scene.worker.waiting[0]()
    assert tries == 3
    assert scene.wakes


def test_it_does_not_rest_if_the_master_has_woken_it(scene: Scene) -> None:
    scene.watch.rest(errno.EMFILE)
    assert not scene.watch.rests
    assert scene.worker.waiting == []


def test_one_that_is_quiet_does_not_rest(scene: Scene) -> None:
    scene.master.send(b"a connection")
    scene.watch.quiet()
    scene.watch.rest(errno.EMFILE)
    assert not scene.watch.rests


def test_quiet_while_it_rests(scene: Scene) -> None:
    """The thread that waits for a descriptor puts the channel back, and finds that it is quiet."""
    scene.master.send(b"a connection")
    scene.watch.rest(errno.EMFILE)
    scene.watch.quiet()
    scene.worker.waiting[0]()
    assert not scene.wakes
    assert scene.worker.short == [True, False]
