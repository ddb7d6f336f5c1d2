"""listening: what is logged when accepting pauses, and when a listener is lost."""

from __future__ import annotations

import errno
from types import SimpleNamespace
from typing import Any

import pytest

from pyfanout.core import Event, EventKind
from pyfanout.master.listening import Listening


def listening_on(*addresses: str) -> tuple[Listening, list[int], Any]:
    taken: list[int] = []
    core: Any = SimpleNamespace(listen=taken.append, lost=0)
    endpoints: Any = [
        SimpleNamespace(address=address, sock=SimpleNamespace(fileno=lambda n=n: n), detach=lambda: None)
        for n, address in enumerate(addresses)
    ]
    return Listening(core, endpoints), taken, core


def test_each_descriptor_is_given_to_the_core() -> None:
    listening, taken, _ = listening_on("http://one", "http://two")
    assert taken == [0, 1]
    assert listening.addresses == "http://one, http://two"


def test_a_lost_listener_is_named(caplog: pytest.LogCaptureFixture) -> None:
    listening, *_ = listening_on("http://one", "http://two")
    assert listening.on_event(Event(EventKind.LISTENER_FAILED, errno.EBADF, 1)) is None
    (record,) = caplog.records
    assert record.getMessage().startswith("lost listener http://two: Bad file descriptor; restart pyfanout")


def test_a_pause_is_told_with_its_cause_and_once_in_a_while(caplog: pytest.LogCaptureFixture) -> None:
    listening, *_ = listening_on("http://one")
    caplog.set_level("INFO")
    told = [listening.on_event(Event(EventKind.PAUSED, errno.EMFILE, 0)) for _ in range(3)]
    assert told == ["Too many open files", None, None]
    listening.on_event(Event(EventKind.RESUMED, 0, 0))
    assert [record.levelname for record in caplog.records] == ["ERROR", "INFO"]


def test_lost_connections_are_read_from_the_core(caplog: pytest.LogCaptureFixture) -> None:
    listening, _, core = listening_on("http://one")
    listening.look()
    core.lost = 2
    listening.look()
    listening.look()
    assert len(caplog.records) == 1
