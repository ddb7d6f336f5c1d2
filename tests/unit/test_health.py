"""health: when pings go out and when a verdict is due, with a made-up clock; reload: which slot is next."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from pyfanout.config import Config
from pyfanout.control import PACKET_BYTES, Ping, Pong, decode
from pyfanout.core import BoardView
from pyfanout.master import outbox
from pyfanout.master.health import PAUSE_NS, Health
from pyfanout.master.lifecycle import State
from pyfanout.master.reload import Reload
from pyfanout.master.roster import Member, Slot

S = 1_000_000_000
IDLE = BoardView(1, 0, 0, 0, 0, 0, 0, 1, 0)


def member(slot: Slot, control: Any = None, state: State = State.READY) -> Member:
    process: Any = SimpleNamespace(pid=1)
    made = Member(slot, 1, slot.number, process, control, -1, None)
    made.state = state
    return made


@pytest.fixture
def pair() -> Iterator[tuple[Member, socket.socket]]:
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


def test_one_ping_a_round_and_none_to_who_owes_a_pong(pair: tuple[Member, socket.socket]) -> None:
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


def test_the_verdict_is_due_when_the_pong_is(pair: tuple[Member, socket.socket]) -> None:
    one, _ = pair
    health = Health(Config(ping_interval=60, ping_timeout=5))
    health.begin(0)
    health.ping(one, S)
    assert health.next_deadline_ns([one]) == 6 * S
    assert health.judge(one, IDLE, 6 * S - 1) is None
    assert health.judge(one, IDLE, 6 * S) is not None
    health.next_round([one], 6 * S)
    assert health.next_deadline_ns([one]) == 11 * S, "who was judged is judged again, but not again and again"


def test_without_pings_only_trials_are_judged(pair: tuple[Member, socket.socket]) -> None:
    one, _ = pair
    health = Health(Config(ping_interval=0, ping_timeout=5))
    health.begin(0)
    assert health.next_deadline_ns([one]) is None
    health.ping(one, S)
    assert health.next_deadline_ns([one]) == 6 * S


@pytest.mark.parametrize("late_ns", [PAUSE_NS, PAUSE_NS + 1])
def test_the_time_of_a_pause_counts_for_nobody(pair: tuple[Member, socket.socket], late_ns: int) -> None:
    one, _ = pair
    health = Health(Config(ping_interval=1, ping_timeout=2, timeout=1))
    health.begin(0)
    health.ping(one, 0)
    health.sleeps_until(S)
    now_ns = S + late_ns
    health.awake(now_ns)
    forgiven = late_ns > PAUSE_NS
    busy = BoardView(1, 1, 0, 0, 1, 1, 1, 1, 1)
    one.threads = 1
    assert (health.judge(one, IDLE, now_ns) is None) == forgiven
    assert (health.judge(one, busy, now_ns) is None) == forgiven
    assert health.judge(one, IDLE, now_ns + 2 * S) is not None


def test_no_verdict_comes_from_a_pause_that_is_shorter(pair: tuple[Member, socket.socket]) -> None:
    """With a small `ping_timeout` the pongs of all may be late, and unread, after half a second of nothing."""
    one, _ = pair
    health = Health(Config(ping_interval=0.2, ping_timeout=0.4))
    health.begin(0)
    health.ping(one, 0)
    health.sleeps_until(S // 5)
    health.awake(S)
    assert health.judge(one, IDLE, S) is None


def test_pings_go_to_ready_workers_only(pair: tuple[Member, socket.socket]) -> None:
    one, theirs = pair
    health = Health(Config())
    health.begin(0)
    for second, state in enumerate(State, 1):
        one.state = state
        health.next_round([one], second * S)
        assert heard(theirs) == ([1] if state is State.READY else [])


def refuse(monkeypatch: pytest.MonkeyPatch, error: int, clock: list[int]) -> None:
    """No message can be sent, from now on. It is `clock[0]`."""

    def tell(*_: object) -> None:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(outbox, "tell", tell)
    monkeypatch.setattr(outbox, "time", SimpleNamespace(monotonic_ns=lambda: clock[0]))


@pytest.mark.parametrize("error", [errno.ENOBUFS, errno.ENOMEM])
def test_a_ping_that_the_system_has_no_memory_for_is_nobodys_fault(
    monkeypatch: pytest.MonkeyPatch, pair: tuple[Member, socket.socket], error: int
) -> None:
    one, theirs = pair
    health = Health(Config(ping_interval=1, ping_timeout=2))
    with monkeypatch.context() as shortage:
        clock = [0]
        refuse(shortage, error, clock)
        for clock[0] in range(0, 10 * S, S):
            health.ping(one, clock[0])
            one.outbox.flush()
            assert health.judge(one, IDLE, clock[0]) is None
    assert health.next_deadline_ns([one]) == 11 * S, "from the last try on"
    one.outbox.flush()
    assert heard(theirs) == [1]
    assert health.judge(one, IDLE, 11 * S) is not None


def test_a_ping_that_a_worker_does_not_read_waits_for_a_pong_like_any_other(
    monkeypatch: pytest.MonkeyPatch, pair: tuple[Member, socket.socket]
) -> None:
    one, theirs = pair
    health = Health(Config(ping_interval=1, ping_timeout=2))
    with monkeypatch.context() as full:
        refuse(full, errno.EAGAIN, [0])
        health.ping(one, S)
        one.outbox.flush()
    assert health.judge(one, IDLE, 3 * S - 1) is None
    assert health.judge(one, IDLE, 3 * S) is not None
    one.outbox.flush()
    assert heard(theirs) == [1], "it may still answer, if nobody has judged it yet"


def slots(*states: State | None) -> list[Slot]:
    made = [Slot(number) for number in range(len(states))]
    for slot, state in zip(made, states, strict=True):
        slot.member = None if state is None else member(slot, state=state)
    return made


def test_a_reload_goes_from_slot_to_slot() -> None:
    reload = Reload(slots(State.READY, State.READY, None), 1)
    order = []
    while not reload.over:
        slot = reload.next()
        assert slot is not None
        new = member(slot, state=State.BOOTING)
        reload.begin(new)
        assert reload.next() is None, "one at a time"
        order.append(slot.number)
        for new.proved, new.state in ((False, State.BOOTING), (False, State.READY), (True, State.HUNG)):
            assert reload.passed() == []
        new.state = State.READY
        assert reload.passed() == [new]
    assert sorted(order) == [0, 1, 2]


def test_a_batch_of_a_reload_passes_as_a_whole() -> None:
    waiting = slots(State.READY, State.READY, State.READY)
    reload = Reload(waiting, 2)
    one, two = (member(slot, state=State.READY) for slot in waiting[:2])
    for new in (one, two):
        assert reload.next() is new.slot
        reload.begin(new)
    one.proved = True
    assert reload.passed() == []
    assert reload.next() is None, "the next batch waits for this one"
    two.proved = True
    assert reload.passed() == [one, two]
    assert reload.next() is waiting[2]


def test_one_on_trial_that_is_scaled_away_keeps_nobody_waiting() -> None:
    waiting = slots(State.READY, State.READY)
    reload = Reload(waiting, 2)
    one, two = (member(slot, state=State.READY) for slot in waiting[:2])
    for new in (one, two):
        assert reload.next() is new.slot
        reload.begin(new)
    one.proved, two.slot.retired = True, True
    assert reload.passed() == [one]


@pytest.mark.parametrize("state", [State.BOOTING, State.HUNG])
def test_a_reload_waits_for_who_is_neither_here_nor_gone(state: State) -> None:
    (slot,) = waiting = slots(state)
    reload = Reload(waiting, 1)
    assert reload.next() is None
    assert not reload.over
    slot.member = None
    assert reload.next() is slot


def test_a_reload_forgets_slots_that_are_scaled_away() -> None:
    (slot,) = waiting = slots(State.READY)
    reload = Reload(waiting, 1)
    slot.retired = True
    assert reload.next() is None
    assert reload.over


def test_a_reload_waits_for_a_successor_that_is_on_its_way() -> None:
    (slot,) = waiting = slots(State.READY)
    slot.successor = member(slot, state=State.BOOTING)
    reload = Reload(waiting, 1)
    assert reload.next() is None
    slot.successor = None
    assert reload.next() is slot
