"""reload: which slot is next, and when a batch has passed its trial."""

from __future__ import annotations

import pytest
from workers import member

from pyfanout.master.lifecycle import State
from pyfanout.master.reload import Reload
from pyfanout.master.roster import Slot


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
