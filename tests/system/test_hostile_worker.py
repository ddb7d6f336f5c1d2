"""A worker that does evil harms itself: master and the other workers' clients notice nothing. See tests/hostile.py."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable

import pytest
from harness import Server, connect, fds_of, read_all
from hostile import EVILS

MakeServer = Callable[[], Server]
ATTACKS = 4
SHARED = ("deafness",)
"""Blocking workers have one channel together: if that is shut down, all of them are replaced."""
KILLED = ("noise",)
CLIENTS = 4
BETWEEN = 40
"""Answers of the others between two attacks."""


class Crowd:
    """Clients that ask all the time, and count who got no whole answer."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._over = threading.Event()
        self.answers: list[int] = []
        self.failures: list[str] = []
        self._threads = [threading.Thread(target=self._ask_on) for _ in range(CLIENTS)]

    def __enter__(self) -> Crowd:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _ask_on(self) -> None:
        while not self._over.is_set():
            try:
                self.answers.append(ask(self._address, "x"))
            except (OSError, ValueError) as error:
                self.failures.append(repr(error))


def ask(address: str, line: str) -> int:
    """The pid of the worker that has answered."""
    with connect(address, line) as client:
        return int(read_all(client))


@pytest.mark.parametrize("kind", ["handler", "coroutine"])
@pytest.mark.parametrize("evil", list(EVILS))
def test_others_notice_nothing(server: MakeServer, evil: str, kind: str) -> None:
    one = server().start(f"hostile:{kind}", workers=3, ping_interval=0.2, ping_timeout=3, drain_timeout=1)
    one.expect("nonsense", "shut down", "in its hands", "SIGKILL", "no answer to a ping", "failed", "could not")
    one.wait_idle()
    before, workers = len(fds_of(one.pid)), set(one.workers)
    guilty = set()
    with Crowd(one.address) as crowd:
        for attack in range(ATTACKS):
            seen = len(crowd.answers)
            with contextlib.suppress(ConnectionError, ValueError):  # stolen, too
                guilty.add(ask(one.address, f"{evil} {attack}"))
            one.wait_until(lambda seen=seen: len(crowd.answers) >= seen + BETWEEN, f"answers after {attack}")
    # What one that is killed has in its hands is lost with it: of a loop it may be all clients there are, each time.
    in_hands = {"handler": 1, "coroutine": CLIENTS}[kind] if evil in KILLED else 0
    bearable = one.out.count("stolen") + ATTACKS * in_hands
    assert len(crowd.failures) <= bearable, (crowd.failures, one.log)
    alive: set[int] = set()

    def three_serve() -> bool:
        with contextlib.suppress(ConnectionError, ValueError):  # a theft may go on
            alive.add(ask(one.address, "x"))
        return len(alive) >= 3

    one.wait_until(three_serve, "three serve")
    one.wait_until(lambda: len(fds_of(one.pid)) <= before, "the master has no more descriptors than before")
    assert evil in SHARED or workers - guilty <= set(one.workers)
    assert one.stop() == 0
