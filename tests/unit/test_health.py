"""health: when pings go out and when a verdict is due, with a made-up clock."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from workers import member

from pyfanout.config import Config
from pyfanout.core import ScoreView
from pyfanout.link import outbox
from pyfanout.link.messages import PACKET_BYTES, Ping, Pong, Ready, decode
from pyfanout.master.health import PAUSE_NS, Health
from pyfanout.master.lifecycle import State
from pyfanout.master.roster import Slot, WorkerHandle

S = 1_000_000_000
IDLE = ScoreView(1, 0, 0, 0, 0, 0, 0, 1, 0)


@pytest.fixture
def pair() -> Iterator[tuple[WorkerHandle, socket.socket]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    theirs.setblocking(False)
    with ours, theirs:
        yield member(Slot(0), ours), theirs


def heard(theirs: socket.socket) -> list[int]:
    numbers = []
    try:
        while True:
            message = decode(theirs.recv(PACKET_BYTES))
            assert isinstance(message, Ping)
            numbers.append(message.number)
    except BlockingIOError:
        return numbers


def test_one_ping_a_round_and_none_to_who_owes_a_pong(pair: tuple[WorkerHandle, socket.socket]) -> None:
    one, theirs = pair
    health = Health(Config(ping_interval=1, ping_timeout=5))
    health.begin(0)
    assert health.next_deadline_ns([one]) == S
    assert not health.is_due(S - 1, [one])
    for second in (1, 2, 3):
        assert health.is_due(second * S, [one])
        health.next_round([one], second * S)
    assert heard(theirs) == [1]
    assert not health.on_pong(one, Pong(7, 0), 3 * S), "nobody asked for that"
    assert health.on_pong(one, Pong(1, 0), 3 * S)
    assert not health.on_pong(one, Pong(1, 0), 3 * S), "said twice"
    health.next_round([one], 4 * S)
    assert heard(theirs) == [2]
    assert one.pong_ns == 3 * S


def test_the_verdict_is_due_when_the_pong_is(pair: tuple[WorkerHandle, socket.socket]) -> None:
    one, _ = pair
    health = Health(Config(ping_interval=60, ping_timeout=5))
    health.begin(0)
    health.ping(one, S)
    assert health.next_deadline_ns([one]) == 6 * S
    assert health.judge(one, IDLE, 6 * S - 1) is None
    assert health.judge(one, IDLE, 6 * S) is not None
    health.next_round([one], 6 * S)
    assert health.next_deadline_ns([one]) == 11 * S, "who was judged is judged again, but not again and again"


def test_without_pings_only_trials_are_judged(pair: tuple[WorkerHandle, socket.socket]) -> None:
    one, _ = pair
    health = Health(Config(ping_interval=0, ping_timeout=5))
    health.begin(0)
    assert health.next_deadline_ns([one]) is None
    health.ping(one, S)
    assert health.next_deadline_ns([one]) == 6 * S


@pytest.mark.parametrize("late_ns", [PAUSE_NS, PAUSE_NS + 1])
def test_the_time_of_a_pause_counts_for_nobody(pair: tuple[WorkerHandle, socket.socket], late_ns: int) -> None:
    one, _ = pair
    health = Health(Config(ping_interval=1, ping_timeout=2, timeout=1))
    health.begin(0)
    health.ping(one, 0)
    health.sleeps_until(S)
    now_ns = S + late_ns
    health.awake(now_ns)
    forgiven = late_ns > PAUSE_NS
    busy = ScoreView(1, 1, 0, 0, 1, 1, 1, 1, 1)
    one.ready = Ready(pool=False, threads=1)
    assert (health.judge(one, IDLE, now_ns) is None) == forgiven
    assert (health.judge(one, busy, now_ns) is None) == forgiven
    assert health.judge(one, IDLE, now_ns + 2 * S) is not None


def test_no_verdict_comes_from_a_pause_that_is_shorter(pair: tuple[WorkerHandle, socket.socket]) -> None:
    """With a small `ping_timeout` the pongs of all may be late, and unread, after half a second of nothing."""
    one, _ = pair
    health = Health(Config(ping_interval=0.2, ping_timeout=0.4))
    health.begin(0)
    health.ping(one, 0)
    health.sleeps_until(S // 5)
    health.awake(S)
    assert health.judge(one, IDLE, S) is None


def test_pings_go_to_ready_workers_only(pair: tuple[WorkerHandle, socket.socket]) -> None:
    one, theirs = pair
    health = Health(Config())
    health.begin(0)
    for second, state in enumerate(State, 1):
        one.state = state
        health.next_round([one], second * S)
        assert heard(theirs) == ([1] if state is State.READY else [])


def refuse(monkeypatch: pytest.MonkeyPatch, error: int, clock: list[int]) -> None:
    """No message can be sent, from now on. It is `clock[0]`."""

    def send(*_: object) -> None:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(outbox, "send", send)
    monkeypatch.setattr(outbox, "time", SimpleNamespace(monotonic_ns=lambda: clock[0]))


@pytest.mark.parametrize("error", [errno.ENOBUFS, errno.ENOMEM])
def test_a_ping_that_the_system_has_no_memory_for_is_nobodys_fault(
    monkeypatch: pytest.MonkeyPatch, pair: tuple[WorkerHandle, socket.socket], error: int
) -> None:
    one, theirs = pair
    health = Health(Config(ping_interval=1, ping_timeout=2))
    with monkeypatch.context() as shortage:
        clock = [0]
        refuse(shortage, error, clock)
        for clock[0] in range(0, 10 * S, S):
            health.ping(one, clock[0])
            one.link.outbox.flush()
            assert health.judge(one, IDLE, clock[0]) is None
    assert health.next_deadline_ns([one]) == 11 * S, "from the last try on"
    one.link.outbox.flush()
    assert heard(theirs) == [1]
    assert health.judge(one, IDLE, 11 * S) is not None


def test_a_ping_that_a_worker_does_not_read_waits_for_a_pong_like_any_other(
    monkeypatch: pytest.MonkeyPatch, pair: tuple[WorkerHandle, socket.socket]
) -> None:
    one, theirs = pair
    health = Health(Config(ping_interval=1, ping_timeout=2))
    with monkeypatch.context() as full:
        refuse(full, errno.EAGAIN, [0])
        health.ping(one, S)
        one.link.outbox.flush()
    assert health.judge(one, IDLE, 3 * S - 1) is None
    assert health.judge(one, IDLE, 3 * S) is not None
    one.link.outbox.flush()
    assert heard(theirs) == [1], "it may still answer, if nobody has judged it yet"
