"""status: what is shown of a worker, and of a slot without one."""

from __future__ import annotations

import pytest
from workers import member

from pyfanout.core import ScoreView
from pyfanout.master.lifecycle import State
from pyfanout.master.roster import Slot
from pyfanout.master.status import status_of

S = 1_000_000_000
VIEW = ScoreView(
    generation=3, taken=10, done=8, lost=0, beat_ns=0, busy_since_ns=0, busy_threads=0, threads=1, in_hands=1
)


def test_a_worker() -> None:
    slot = Slot(2, restarts=4, last_death="exited with code 9")
    one = member(slot, generation=3)
    one.since_ns, one.pong_ns = 5 * S, 9 * S
    shown = status_of(slot, one, VIEW, 10 * S)
    assert (shown.slot, shown.pid, shown.generation, shown.state) == (2, 2003, 3, "READY")
    assert (shown.since, shown.last_pong, shown.in_flight) == (5.0, 1.0, 2)
    assert (shown.restarts, shown.last_death) == (4, "exited with code 9")


def test_one_that_has_never_answered() -> None:
    slot = Slot(0)
    assert status_of(slot, member(slot), VIEW, 1).last_pong is None


def test_what_a_dead_one_had_is_what_was_lost() -> None:
    """A connection that it had closed and not counted yet is not lost."""
    slot = Slot(0)
    assert status_of(slot, member(slot, state=State.GONE), VIEW, 1).in_flight == VIEW.in_hands


@pytest.mark.parametrize(("failed", "state"), [(False, "WAITING"), (True, "FAILED")])
def test_a_slot_without_a_worker(failed: bool, state: str) -> None:
    slot = Slot(1, generation=7, failed=failed, since_ns=2 * S)
    shown = status_of(slot, None, None, 3 * S)
    assert (shown.pid, shown.generation, shown.state, shown.since) == (None, 7, state, 1.0)
    assert (shown.in_flight, shown.last_pong) == (0, None)
