"""group: what a slot does when its worker is ready, spent, replaced or dead. Every order is in test_every_life."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest
from groups import Grouped

from pyfanout.core import POOL
from pyfanout.errors import LoadError, WorkerError
from pyfanout.link.messages import Cut, Failed, Ping, Pong, Ready, Retiring, Short, Stage, WantsSuccessor
from pyfanout.master.lifecycle import State
from pyfanout.master.phase import Phase
from pyfanout.master.process import ExitReport

READY = Ready(pool=False, threads=0)


@pytest.fixture
def one() -> Iterator[Grouped]:
    made = Grouped(2, min_uptime=0)
    yield made
    made.close()


def served(one: Grouped) -> None:
    """Both slots have a worker that is ready."""
    for worker in one.start():
        one.say(worker, READY)
    one.news()


def test_each_slot_gets_a_worker_and_a_ready_one_enters(one: Grouped) -> None:
    first, second = one.start()
    assert one.news() == ["fork", "fork"]
    one.say(second, READY)
    assert one.news() == ["enter 1", "on_ready", "ready"]
    one.say(first, READY)
    assert one.group.settled


def test_a_death_forks_the_next_one_in_the_same_slot_and_seat(one: Grouped) -> None:
    served(one)
    (first, _) = one.roster.members
    one.die(first, ExitReport(None, signal.SIGSEGV))
    assert one.news() == ["leave 0", "exit was killed by SIGSEGV"]
    (new,) = one.start()
    assert (new.slot, new.seat, new.generation) == (first.slot, first.seat, 2)
    assert new.slot.last_death == "was killed by SIGSEGV"


def test_until_one_was_ready_no_death_is_followed_by_a_fork(one: Grouped) -> None:
    first, second = one.start()
    one.die(first)
    assert one.start() == []
    assert not one.group.respawns.pending
    one.say(second, READY)
    assert [new.slot for new in one.start()] == [first.slot]


@pytest.mark.parametrize(("stage", "kind"), [(Stage.LOAD, LoadError), (Stage.START, WorkerError)])
def test_the_first_failure_is_why_nothing_starts(one: Grouped, stage: Stage, kind: type[WorkerError]) -> None:
    first, second = one.start()
    one.say(first, Failed(stage, "no such module", ""))
    one.die(first, ExitReport(4))
    one.say(second, Failed(stage, "another reason", ""))
    one.die(second, ExitReport(4))
    error = one.group.start_error()
    assert type(error) is kind
    assert "no such module" in str(error)


def test_a_spent_worker_serves_until_its_successor_has_answered(one: Grouped) -> None:
    served(one)
    (old, _) = one.roster.members
    one.say(old, WantsSuccessor())
    (new,) = one.start()
    one.say(new, READY)
    assert old.state is State.READY
    one.group.lives.keep_time(2**62)  # its trial is over: it is pinged
    assert f"ping {new.process.pid}" in one.news()
    one.say(new, Pong(1, 0))
    assert old.state is State.DRAINING
    assert one.news() == [f"leave {old.seat}", f"Drain to {old.process.pid}", "drain"]
    assert new.slot.member is new


def test_one_that_retires_is_replaced_at_once_and_counts_as_no_death(one: Grouped) -> None:
    served(one)
    (old, _) = one.roster.members
    one.say(old, Retiring())
    assert one.news() == ["leave 0", "drain"]
    (new,) = one.start()
    assert new.slot is old.slot
    assert new.slot.deaths == 0


def test_a_short_worker_is_out_of_rotation_until_it_is_not(one: Grouped) -> None:
    served(one)
    (worker, _) = one.roster.members
    for short in (True, True, False, False):
        one.say(worker, Short(short))
    assert one.news() == ["leave 0", "enter 0"]


def test_one_that_cannot_enter_is_replaced(one: Grouped) -> None:
    (worker, _) = one.start()
    one.fails_to_enter = True
    one.news()
    one.say(worker, READY)
    assert worker.state is State.DRAINING
    assert one.news() == ["leave 0", f"Drain to {worker.process.pid}", "drain"]


def test_a_protocol_error_kills_it(one: Grouped) -> None:
    served(one)
    (worker, _) = one.roster.members
    one.say(worker, Ping(1))
    assert one.news() == [f"signal {signal.SIGKILL} to {worker.process.pid}"]
    assert "protocol error" in (worker.verdict or "")


def test_a_failed_fork_is_tried_again_later(one: Grouped) -> None:
    one.refused = 1
    (second,) = one.start()
    assert not one.group.respawns.pending, "none was ready yet: it might fail for ever"
    one.say(second, READY)
    assert one.group.respawns.pending
    one.refused = 1
    one.group.start_one(2**62)
    assert one.group.respawns.pending
    assert "could not be forked" in (one.group.held_back or "")


def test_scaling_down_dismisses_the_newest_and_up_forks(one: Grouped) -> None:
    served(one)
    _, newest = one.roster.members
    one.group.scale(1)
    assert newest.state is State.DRAINING
    assert not one.group.settled, "it has not left yet"
    one.die(newest)
    assert one.group.settled
    assert "end 1" in one.news(), "nothing waits in its channel for a next worker"
    one.group.scale(3)
    assert [new.slot.number for new in one.start()] == [1, 2]


def test_fail_fast_is_asked_for_once(one: Grouped) -> None:
    served(one)
    deaths = 0
    while not any(line.startswith("on_failed") for line in one.done):
        one.die(one.roster.members[-1], ExitReport(1))
        one.start()
        deaths += 1
        assert deaths < 20
    assert sum(line.startswith("give_up") for line in one.news()) == 1


@pytest.mark.parametrize(
    ("phase", "waits_in", "wanted"),
    [
        (Phase.FINISHING, None, True),
        (Phase.FINISHED, None, False),
        (Phase.FINISHED, "its seat", True),
        (Phase.FINISHED, "the pool", True),
        (Phase.LATE, "its seat", False),
        (Phase.AT_ONCE, "the pool", False),
    ],
)
def test_in_a_stop_a_dead_worker_is_replaced_only_for_clients(phase: Phase, waits_in: str | None, wanted: bool) -> None:
    one = Grouped(1)
    served(one)
    (worker,) = one.roster.members
    one.group.phase = phase
    if waits_in:
        one.untaken[worker.seat if waits_in == "its seat" else POOL] = 1
    one.die(worker, ExitReport(None, signal.SIGKILL))
    assert one.group.respawns.pending is wanted


def test_what_was_cut_off_is_counted_in_a_stop_only(one: Grouped) -> None:
    served(one)
    first, second = one.roster.members
    one.say(first, Cut(3))
    one.die(first)
    assert one.group.cut == 0
    one.group.phase = Phase.AT_ONCE
    one.say(second, Cut(2))
    one.die(second)
    assert one.group.cut == 2
