"""A worker that does evil harms itself: master and the other workers' clients notice nothing. See tests/hostile.py."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import pytest
from harness import Server, asking, collect, connect, crowd, fds_of, kill, read_all, who
from hostile import EVILS

MakeServer = Callable[[], Server]
ATTACKS = 4
SHARED = ("deafness",)
"""Blocking workers have one channel together: if that is shut down, all of them are replaced."""
KILLED = ("noise",)
"""What one that is killed has in its hands is lost with it."""
CLIENTS = 4
BETWEEN = 40
"""Answers of the others between two attacks."""
PATIENCE_S = 60
"""Without a pong: far more than an evil takes on a busy machine, during which its loop is blocked. A worker that is
killed for that loses the clients in its hands."""


def ask(address: str, line: str) -> int:
    """The pid of the worker that has answered."""
    with connect(address, line) as client:
        return int(read_all(client))


@pytest.mark.parametrize("kind", ["handler", "coroutine"])
@pytest.mark.parametrize("evil", list(EVILS))
def test_others_notice_nothing(server: MakeServer, evil: str, kind: str) -> None:
    # To one that has hung up the master is gone: after `drain_timeout` it cuts its own clients off, and ends.
    drain_timeout = PATIENCE_S if evil == "hang_up" else 1
    one = server().start(
        f"hostile:{kind}", workers=3, ping_interval=0.2, ping_timeout=PATIENCE_S, drain_timeout=drain_timeout
    )
    one.expect("protocol error", "shut down", "in progress", "SIGKILL", "no answer to a ping", "failed", "could not")
    one.wait_idle()
    before, workers = len(fds_of(one.pid)), set(one.workers)
    guilty, failures = set(), []

    def ask_on(answers: list[int]) -> None:
        try:
            answers.append(ask(one.address, "x"))
        except (OSError, ValueError) as error:
            failures.append(repr(error))

    with asking(ask_on, CLIENTS) as answers:
        for attack in range(ATTACKS):
            seen = len(answers)
            with contextlib.suppress(ConnectionError, ValueError):  # stolen, too
                guilty.add(ask(one.address, f"{evil} {attack}"))
            one.wait_until(lambda seen=seen: len(answers) >= seen + BETWEEN, f"answers after {attack}")

    def all_told() -> bool:
        return len(failures) <= one.out.count("stolen") + (one.in_hands if evil in KILLED else 0)

    one.wait_until(all_told, f"no more is lost: {failures}")
    alive: set[int] = set()

    def three_serve() -> bool:
        with contextlib.suppress(ConnectionError, ValueError):  # a theft may go on
            alive.add(ask(one.address, "x"))
        # One that seems to hold more than the others, by what it has written or kept, gets nothing more.
        return len(alive | (guilty & set(one.workers))) >= 3

    one.wait_until(three_serve, "three serve")
    one.wait_until(lambda: len(fds_of(one.pid)) <= before, "the master has no more descriptors than before")
    assert evil in SHARED or workers - guilty <= set(one.workers)
    assert one.stop() == 0


def test_one_that_says_too_early_that_it_serves(server: MakeServer) -> None:
    """And from the queue of blocking workers, where there are none. Who waits there is answered when it is gone."""
    one = server().start("act_async", script={"on_worker_start": "lying"}, workers=3)
    liar, *others = one.workers
    queued = crowd(one.address, 60, "identity")
    one.wait_idle_master()
    kill(liar)
    answers = who(collect(queued))
    assert {answer["pid"] for answer in answers} >= set(others)
    assert {answer["pid"] for answer in who(collect(crowd(one.address, 20, "identity")))} >= set(others)
