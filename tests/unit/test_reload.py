"""reload: which slot is next, and when a batch has passed its trial."""

from __future__ import annotations

import itertools

import pytest
from workers import member

from pyfanout.master.callbacks import Callbacks
from pyfanout.master.lifecycle import State
from pyfanout.master.reload import Reload, Reloads
from pyfanout.master.roster import Roster, Slot, WorkerHandle


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


class Reloading:
    """Reloads of `count` slots, each with a worker that is ready; a new worker passes when it is told to."""

    def __init__(self, count: int, batch: int = 1) -> None:
        self.roster = Roster()
        self.dismissed: list[WorkerHandle] = []
        self.notices: list[str] = []
        self.generations = itertools.count(2)
        callbacks = Callbacks()
        callbacks.add("reload", lambda notice: self.notices.append(notice.detail))
        self.reloads = Reloads(self.roster, batch, callbacks, self.promote, self.dismissed.append)
        self._run_callbacks = callbacks.run
        for _ in range(count):
            self.roster.add(member(self.roster.grow()), successor=False)

    def promote(self, new: WorkerHandle) -> WorkerHandle | None:
        return self.roster.promote(new)

    def fork(self) -> WorkerHandle:
        slot = self.reloads.next()
        assert slot is not None
        seat = self.roster.free_seat(None)
        new = member(slot, state=State.BOOTING, seat=seat, generation=next(self.generations))
        self.roster.add(new, successor=True)
        self.reloads.begin(slot, new)
        return new

    def go_on(self) -> None:
        self.reloads.go_on()
        self._run_callbacks()

    def run(self) -> None:
        """To its end, all new workers being fit."""
        while self.reloads.current:
            while self.reloads.next():
                new = self.fork()
                new.state, new.proved = State.READY, True
            self.go_on()


def test_a_reload_ends_when_all_are_replaced() -> None:
    one = Reloading(3)
    old = one.roster.members
    ended: list[str] = []
    one.reloads.ask(ended.append)
    assert ended == []
    one.run()
    assert ended == [""]
    assert one.notices == [""]
    assert one.reloads.replaced == set(old)
    for worker in old:
        one.reloads.count_out(worker, "it has left")
    assert one.reloads.replaced == set()
    assert one.dismissed == []


def test_all_requests_in_a_reload_are_one_more() -> None:
    one = Reloading(2)
    ended: list[str] = []
    for name in ("first", "second", "third"):
        one.reloads.ask(lambda error, name=name: ended.append(f"{name} {error}"))  # type: ignore[misc] - a default
    one.run()
    assert ended == ["first ", "second ", "third "]
    assert one.notices == ["", ""]
    assert [slot.generation for slot in one.roster.slots] == [4, 5]


@pytest.mark.parametrize("way", ["it dies", "it cannot be forked", "the server stops"])
def test_a_reload_that_fails_keeps_the_old_workers_and_dismisses_the_new(way: str) -> None:
    one = Reloading(2, batch=2)
    ended: list[str] = []
    one.reloads.ask(ended.append)
    first = one.fork()
    if way == "it dies":
        one.reloads.count_out(one.fork(), way)
    elif way == "it cannot be forked":
        slot = one.reloads.next()
        assert slot is not None
        one.reloads.begin(slot, None)
        way = "worker=1 cannot be started"
    else:
        one.reloads.stop()
    one.go_on()
    assert ended == [way]
    assert one.notices == [way]
    assert first in one.dismissed
    assert one.reloads.current is None
    assert one.reloads.replaced == set()


def test_a_stop_refuses_what_waits_and_what_comes() -> None:
    one = Reloading(1)
    ended: list[str] = []
    one.reloads.ask(ended.append)
    one.reloads.ask(ended.append)
    one.reloads.stop()
    one.reloads.ask(ended.append)
    assert ended == ["the server stops"] * 3
    assert one.reloads.next() is None


def test_one_that_is_scaled_away_fails_no_reload() -> None:
    one = Reloading(2)
    one.reloads.ask()
    one.roster.slots[0].retired = True
    new = one.fork()
    assert new.slot.number == 1
    new.slot.retired = True
    one.reloads.count_out(new, "it was told to leave")
    assert one.reloads.current is not None
    one.go_on()
    assert one.notices == [""]
