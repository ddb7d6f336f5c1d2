"""The states of a joined worker: the whole table is walked. What a dispatcher does with them is in
system/test_dispatcher."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from pyfanout.dispatcher.joined import JoinedWorker
from pyfanout.dispatcher.lifecycle import TRANSITIONS, Action, JoinedEvent, Obstacle, State, step
from pyfanout.link.messages import Ready

PAIRS = list(itertools.product(State, JoinedEvent))
ABSENT = [pair for pair in PAIRS if pair not in TRANSITIONS]
ORDER = list(State)
SAID_BY_A_WORKER = [
    JoinedEvent.SAID_READY,
    JoinedEvent.WANTS_SUCCESSOR,
    JoinedEvent.SAID_RETIRING,
    JoinedEvent.CLOSED,
    JoinedEvent.CHANNEL_BROKEN,
]
ALIVE = [state for state in State if state is not State.GONE]

names: Any = {"ids": lambda value: value.name}


def joined(state: State, *obstacles: Obstacle, ready: bool = True) -> JoinedWorker:
    link: Any = None
    said = Ready(pool=False, threads=0) if ready else None
    return JoinedWorker(0, 1, 1, link, state=state, ready=said, obstacles=set(obstacles))


@pytest.mark.parametrize(("state", "happened"), ABSENT, **names)
def test_an_absent_pair_raises_and_names_both(state: State, happened: JoinedEvent) -> None:
    with pytest.raises(LookupError, match=f"{state.name}.*{happened.name}"):
        step(state, happened)


@pytest.mark.parametrize("happened", SAID_BY_A_WORKER, **names)
@pytest.mark.parametrize("state", ALIVE, **names)
def test_what_a_worker_does_at_any_time_is_in_the_table(state: State, happened: JoinedEvent) -> None:
    """None can stop the dispatcher by what it sends."""
    assert (state, happened) in TRANSITIONS


@pytest.mark.parametrize(("state", "happened"), TRANSITIONS, **names)
def test_none_goes_back(state: State, happened: JoinedEvent) -> None:
    assert ORDER.index(step(state, happened).state) >= ORDER.index(state)


@pytest.mark.parametrize(("state", "happened"), TRANSITIONS, **names)
def test_it_is_told_to_drain_only_when_it_is_released_and_forgotten_only_when_it_is_gone(
    state: State, happened: JoinedEvent
) -> None:
    actions = step(state, happened).actions
    assert (Action.DRAIN in actions) is (happened is JoinedEvent.RELEASED)
    assert (Action.FORGET in actions) is (step(state, happened).state is State.GONE)


@pytest.mark.parametrize("happened", JoinedEvent, **names)
def test_nothing_happens_to_one_that_is_gone(happened: JoinedEvent) -> None:
    assert (State.GONE, happened) in ABSENT


@pytest.mark.parametrize("state", State, **names)
def test_it_is_in_rotation_while_it_serves(state: State) -> None:
    assert joined(state).wanted is (state in (State.READY, State.SPENT))


@pytest.mark.parametrize("obstacles", [each for n in (1, 2, 3) for each in itertools.combinations(Obstacle, n)])
def test_any_obstacle_keeps_it_out_of_rotation(obstacles: tuple[Obstacle, ...]) -> None:
    assert not joined(State.READY, *obstacles).wanted


def test_one_that_wants_to_leave_before_it_is_ready_never_enters_unready() -> None:
    """Nothing reads its channel yet."""
    assert step(State.JOINED, JoinedEvent.WANTS_SUCCESSOR).state is State.SPENT
    assert not joined(State.SPENT, ready=False).wanted
