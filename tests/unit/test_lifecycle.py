"""lifecycle: the whole table is walked; what is not in it raises and names both."""

from __future__ import annotations

import itertools
import socket
from typing import Any

import pytest

from pyfanout.master.lifecycle import TRANSITIONS, Action, Happened, State, Step, step
from pyfanout.master.roster import Member

PAIRS = list(itertools.product(State, Happened))
KNOWN = [pair for pair in PAIRS if pair in TRANSITIONS]
ABSENT = [pair for pair in PAIRS if pair not in TRANSITIONS]
ORDER = list(State)

names = {"ids": lambda value: value.name}


@pytest.mark.parametrize(("state", "happened"), KNOWN, **names)
def test_a_known_pair(state: State, happened: Happened) -> None:
    result = step(state, happened)
    assert result == TRANSITIONS[state, happened]
    assert isinstance(result, Step)
    assert len(set(result.actions)) == len(result.actions)


@pytest.mark.parametrize(("state", "happened"), ABSENT, **names)
def test_an_absent_pair_raises_and_names_both(state: State, happened: Happened) -> None:
    with pytest.raises(LookupError, match=f"{state.name}.*{happened.name}"):
        step(state, happened)


@pytest.mark.parametrize("happened", Happened, **names)
def test_nothing_happens_to_the_dead(happened: Happened) -> None:
    assert (State.GONE, happened) in ABSENT


WHAT_A_WORKER_DOES = [Happened.SAID_READY, Happened.SAID_RETIRING, Happened.DIED]
WHAT_COMES_TO_ALL = [
    Happened.CHANNELS_ENDED,
    Happened.CHANNEL_BROKEN,
    Happened.TOLD_TO_STOP,
    Happened.DRAIN_TIMED_OUT,
]


@pytest.mark.parametrize("happened", WHAT_A_WORKER_DOES + WHAT_COMES_TO_ALL, **names)
@pytest.mark.parametrize("state", [State.BOOTING, State.READY, State.DRAINING], **names)
def test_what_may_come_at_any_time_is_in_the_table(state: State, happened: Happened) -> None:
    """No worker can stop the master by saying something, or dying, when it is not expected."""
    assert (state, happened) in KNOWN


def test_a_boot_deadline_harms_nobody_who_boots_no_more() -> None:
    """A worker may drain without ever having been ready: then its deadline is off, or its passing is in the table."""
    ours, theirs = socket.socketpair()
    process: Any = None
    with ours, theirs:
        member = Member(0, 1, process, ours, boot_deadline_ns=1)
        for state in (State.DRAINING, State.READY):
            member.state = State.BOOTING
            member.boot_deadline_ns = 1
            member.become(state, 0)
            assert (
                member.boot_deadline_ns is None
                or (state, Happened.BOOT_TIMED_OUT) in TRANSITIONS
                or (
                    state is State.READY  # `Supervisor._on_ready` clears it
                )
            )


@pytest.mark.parametrize(("state", "happened"), KNOWN, **names)
def test_nobody_goes_back(state: State, happened: Happened) -> None:
    assert ORDER.index(step(state, happened).state) >= ORDER.index(state)


@pytest.mark.parametrize(("state", "happened"), KNOWN, **names)
def test_who_dies_is_gone_and_its_slot_is_looked_after(state: State, happened: Happened) -> None:
    result = step(state, happened)
    assert (result.state is State.GONE) == (happened is Happened.DIED)
    assert (Action.REPLACE in result.actions) == (happened is Happened.DIED)


@pytest.mark.parametrize(("state", "happened"), KNOWN, **names)
def test_rotation_is_entered_by_being_ready_only(state: State, happened: Happened) -> None:
    result = step(state, happened)
    assert (Action.ENTER in result.actions) == (state is not State.READY and result.state is State.READY)


@pytest.mark.parametrize("happened", [h for s, h in KNOWN if s is State.READY], **names)
def test_who_was_ready_leaves_rotation_first(happened: Happened) -> None:
    """Before it is told anything; unless its channel has ended, where there is nothing to leave."""
    result = step(State.READY, happened)
    if result.state is not State.READY and happened is not Happened.CHANNELS_ENDED:
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
    assert seen == {State.DRAINING, State.GONE}


def test_the_ordinary_life() -> None:
    state, actions = State.BOOTING, []
    for happened in (Happened.SAID_READY, Happened.SAID_RETIRING, Happened.DIED):
        state, more = step(state, happened)
        actions += more
    assert state is State.GONE
    assert actions == [Action.ENTER, Action.LEAVE, Action.LEAVE, Action.REPLACE]


def test_the_ladder_of_a_graceful_stop() -> None:
    state, actions = step(State.READY, Happened.CHANNELS_ENDED)
    assert (state, actions) == (State.DRAINING, ())
    state, actions = step(state, Happened.DRAIN_TIMED_OUT)
    assert (state, actions) == (State.DRAINING, (Action.QUIT,))


def test_a_broken_channel_ends_gently_who_reads_it() -> None:
    """What it has begun it may finish."""
    assert step(State.READY, Happened.CHANNEL_BROKEN) == (State.DRAINING, (Action.LEAVE, Action.TERMINATE))
