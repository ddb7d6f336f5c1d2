"""shutdown: the steps of a stop, and how long one may last. Every order is in test_every_life."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from groups import Grouped

from pyfanout.config import Config
from pyfanout.link.messages import Ready
from pyfanout.master.lifecycle import State, WorkerEvent, step
from pyfanout.master.phase import Phase
from pyfanout.master.shutdown import Shutdown
from pyfanout.master.timing import GRACE_NS


class Stopping:
    """A group of two with an endpoint, and its shutdown."""

    def __init__(self) -> None:
        self.grouped = Grouped(2)
        endpoint: Any = SimpleNamespace(can_stop_new=True, unlink=lambda: self.grouped.done.append("unlink"))
        self.group = self.grouped.group
        self.shutdown = Shutdown(self.grouped.config, self.grouped.core, [endpoint], self.group)
        self.workers = self.grouped.start()
        self.pids = [worker.process.pid for worker in self.workers]

    def serve(self) -> None:
        for worker in self.workers:
            self.grouped.say(worker, Ready(pool=False, threads=0))
        self.grouped.news()


@pytest.fixture
def one() -> Iterator[Stopping]:
    made = Stopping()
    yield made
    made.grouped.close()


def test_a_graceful_stop_goes_step_by_step(one: Stopping) -> None:
    one.serve()
    one.shutdown.stop()
    assert one.group.phase is Phase.FINISHING
    assert one.grouped.news() == [
        "unlink",
        *(f"ServerStopping to {pid}" for pid in one.pids),
        "stop_new 0",
        f"finish {one.grouped.config.backlog + 1}",
    ]
    assert not one.shutdown.core_has_looked, "no worker is forked until it is known that a client waits"
    one.shutdown.on_finished()
    assert one.group.phase is Phase.FINISHED
    assert [worker.state for worker in one.workers] == [State.DRAINING] * 2
    for worker in one.workers:
        assert not one.shutdown.over
        one.grouped.die(worker)
    assert one.shutdown.over


def test_at_the_drain_timeout_it_becomes_a_fast_one(one: Stopping) -> None:
    one.serve()
    one.shutdown.stop()
    one.shutdown.on_finished()
    deadline_ns = one.shutdown.deadline_ns
    assert deadline_ns is not None
    one.grouped.news()
    one.shutdown.keep_time(deadline_ns - 1)
    assert one.group.phase is Phase.FINISHED
    one.shutdown.keep_time(deadline_ns)
    assert one.group.phase is Phase.LATE
    assert one.grouped.news() == [f"signal {signal.SIGQUIT} to {pid}" for pid in one.pids]
    one.shutdown.keep_time(2**62)
    assert one.grouped.news() == [], "once"


def test_a_fast_stop_is_not_repeated_but_a_second_request_kills(one: Stopping) -> None:
    one.serve()
    one.shutdown.stop(at_once=True)
    one.shutdown.stop(at_once=True)
    one.shutdown.stop()
    done = one.grouped.news()
    assert [line for line in done if line.startswith("signal")] == [f"signal {signal.SIGQUIT} to {p}" for p in one.pids]
    assert "finish" not in " ".join(done)
    one.shutdown.stop_now()
    assert one.grouped.news() == [f"signal {signal.SIGKILL} to {pid}" for pid in one.pids]


def test_before_a_worker_was_ready_every_stop_is_fast(one: Stopping) -> None:
    one.shutdown.stop()
    assert one.group.phase is Phase.AT_ONCE


def test_late_finished_news_changes_no_phase(one: Stopping) -> None:
    one.serve()
    one.shutdown.stop()
    one.shutdown.stop(at_once=True)
    one.shutdown.on_finished()
    assert one.group.phase is Phase.AT_ONCE


def test_it_is_not_over_while_a_worker_is_to_be_started(one: Stopping) -> None:
    """A client waits in a channel whose reader is dead."""
    one.serve()
    one.shutdown.stop()
    one.grouped.untaken[one.workers[0].seat] = 1
    one.shutdown.on_finished()
    for worker in one.workers:
        one.grouped.die(worker)
    assert not one.shutdown.over
    (new,) = one.grouped.start()
    one.grouped.untaken.clear()
    one.grouped.die(new)
    assert one.shutdown.over


def test_no_worker_is_judged_in_a_stop(one: Stopping) -> None:
    one.serve()
    one.shutdown.stop()
    assert one.group.lives.health.next_deadline_ns(one.workers) is None


def test_a_stop_fits_into_thirty_seconds() -> None:
    """Which Kubernetes waits before it kills, with some time for the exit itself: drain, stop, kill."""
    ladder = [step(state, WorkerEvent.TIME_IS_UP).state for state in (State.DRAINING, State.STOPPING)]
    assert ladder == [State.STOPPING, State.KILLED]
    assert Config().drain_timeout + 2 * GRACE_NS / 1e9 <= 29
