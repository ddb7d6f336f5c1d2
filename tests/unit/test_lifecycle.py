"""lifecycle: the whole table is walked; what is not in it raises and names both."""

from __future__ import annotations

import itertools

import pytest

from pyfanout.master.lifecycle import TRANSITIONS, Action, State, Step, WorkerEvent, step

PAIRS = list(itertools.product(State, WorkerEvent))
KNOWN = [pair for pair in PAIRS if pair in TRANSITIONS]
ABSENT = [pair for pair in PAIRS if pair not in TRANSITIONS]
ORDER = list(State)

names = {"ids": lambda value: value.name}


@pytest.mark.parametrize(("state", "happened"), KNOWN, **names)
def test_a_known_pair(state: State, happened: WorkerEvent) -> None:
    result = step(state, happened)
    assert result == TRANSITIONS[state, happened]
    assert isinstance(result, Step)
    assert len(set(result.actions)) == len(result.actions)


@pytest.mark.parametrize(("state", "happened"), ABSENT, **names)
def test_an_absent_pair_raises_and_names_both(state: State, happened: WorkerEvent) -> None:
    with pytest.raises(LookupError, match=f"{state.name}.*{happened.name}"):
        step(state, happened)


@pytest.mark.parametrize("happened", WorkerEvent, **names)
def test_nothing_happens_to_the_dead(happened: WorkerEvent) -> None:
    assert (State.GONE, happened) in ABSENT


WHAT_A_WORKER_DOES = [WorkerEvent.SAID_READY, WorkerEvent.SAID_RETIRING, WorkerEvent.DIED]
WHAT_COMES_TO_ALL = [
    WorkerEvent.CHANNELS_ENDED,
    WorkerEvent.CHANNEL_BROKEN,
    WorkerEvent.TOLD_TO_DRAIN,
    WorkerEvent.TOLD_TO_STOP,
]


@pytest.mark.parametrize("happened", WHAT_A_WORKER_DOES + WHAT_COMES_TO_ALL, **names)
@pytest.mark.parametrize("state", [state for state in State if state is not State.GONE], **names)
def test_what_may_come_at_any_time_is_in_the_table(state: State, happened: WorkerEvent) -> None:
    """No worker can stop the master by saying something, or dying, when it is not expected."""
    assert (state, happened) in KNOWN


@pytest.mark.parametrize(("state", "happened"), KNOWN, **names)
def test_nobody_goes_back(state: State, happened: WorkerEvent) -> None:
    assert ORDER.index(step(state, happened).state) >= ORDER.index(state)


@pytest.mark.parametrize(("state", "happened"), KNOWN, **names)
def test_who_dies_is_gone_and_its_slot_is_looked_after(state: State, happened: WorkerEvent) -> None:
    result = step(state, happened)
    assert (result.state is State.GONE) == (happened is WorkerEvent.DIED)
    if happened is WorkerEvent.DIED:
        assert result.actions[-1] is Action.REPLACE


@pytest.mark.parametrize("state", [State.BOOTING, State.DRAINING, State.STOPPING, State.HUNG], **names)
def test_whose_time_is_up_is_pressed_harder(state: State) -> None:
    """Each state that must not last has a way out that needs nothing from the worker, in two steps at most."""
    pressed = [step(state, WorkerEvent.TIME_IS_UP)]
    while Action.KILL not in pressed[-1].actions:
        pressed.append(step(pressed[-1].state, WorkerEvent.TIME_IS_UP))
    assert len(pressed) <= 2
    assert (State.READY, WorkerEvent.TIME_IS_UP) in ABSENT


@pytest.mark.parametrize(("state", "happened"), KNOWN, **names)
def test_rotation_is_entered_by_being_ready_only(state: State, happened: WorkerEvent) -> None:
    result = step(state, happened)
    assert (Action.ENTER in result.actions) == (state is not State.READY and result.state is State.READY)


@pytest.mark.parametrize("happened", [h for s, h in KNOWN if s is State.READY], **names)
def test_who_was_ready_leaves_rotation_first(happened: WorkerEvent) -> None:
    """Before it is told anything; unless its channel has ended, where there is nothing to leave."""
    result = step(State.READY, happened)
    if result.state is not State.READY and happened is not WorkerEvent.CHANNELS_ENDED:
        assert result.actions[0] is Action.LEAVE


def test_no_way_leads_back_into_rotation() -> None:
    """Whatever happens after DRAINING, in any order."""
    seen, todo = set(), [State.DRAINING]
    while todo:
        state = todo.pop()
        seen.add(state)
        for (before, _), result in TRANSITIONS.items():
            if before is state:
                assert Action.ENTER not in result.actions
                if result.state not in seen:
                    todo.append(result.state)
    assert seen == {State.DRAINING, State.STOPPING, State.KILLED, State.GONE}


def test_the_ordinary_life() -> None:
    """A SIGTERM to it: another is there at once, not when it is gone."""
    state, actions = State.BOOTING, []
    for happened in (WorkerEvent.SAID_READY, WorkerEvent.SAID_RETIRING, WorkerEvent.DIED):
        state, more = step(state, happened)
        actions += more
    assert state is State.GONE
    assert actions == [Action.ENTER, Action.LEAVE, Action.REPLACE, Action.LEAVE, Action.REPLACE]


def test_the_life_of_one_whose_successor_is_there() -> None:
    state, actions = step(State.READY, WorkerEvent.TOLD_TO_DRAIN)
    assert (state, actions) == (State.DRAINING, (Action.LEAVE, Action.DRAIN))
    assert step(state, WorkerEvent.SAID_RETIRING) == (State.DRAINING, ())


def test_the_ladder_of_a_graceful_stop() -> None:
    state, actions = step(State.READY, WorkerEvent.CHANNELS_ENDED)
    assert (state, actions) == (State.DRAINING, ())
    state, actions = step(state, WorkerEvent.TIME_IS_UP)
    assert (state, actions) == (State.STOPPING, (Action.QUIT,))
    assert step(state, WorkerEvent.TIME_IS_UP) == (State.KILLED, (Action.KILL,))


def test_the_ladder_of_one_that_hangs() -> None:
    """Out of rotation first; then it may say where it is; then it ends, whatever it says."""
    state, actions = step(State.READY, WorkerEvent.FOUND_HUNG)
    assert (state, actions) == (State.HUNG, (Action.LEAVE, Action.ABORT))
    for happened in (WorkerEvent.SAID_READY, WorkerEvent.SAID_RETIRING):
        assert step(state, happened) == (State.HUNG, ())
    assert step(state, WorkerEvent.TIME_IS_UP) == (State.KILLED, (Action.KILL,))
    assert step(State.KILLED, WorkerEvent.TIME_IS_UP) == (State.KILLED, (Action.REPLACE,))  # as if it had died
    assert step(state, WorkerEvent.DIED) == (State.GONE, (Action.LEAVE, Action.REPLACE))


def test_a_broken_channel_ends_gently_who_reads_it() -> None:
    """It may finish its connections: it has read the end of its channel by itself."""
    left = (Action.LEAVE, Action.CLOSE, Action.REPLACE)
    assert step(State.READY, WorkerEvent.CHANNEL_BROKEN) == (State.DRAINING, left)
