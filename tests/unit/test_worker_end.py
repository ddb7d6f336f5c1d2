"""How long a worker's exit functions may take."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from pyfanout import exits
from pyfanout.worker.worker import SHORTEST_END_S, WorkerProcess


@pytest.mark.parametrize(
    ("gone_s", "quit", "least_s", "most_s"),
    [
        (None, False, 25, 25),
        (5, False, 15, 20),
        (24, False, SHORTEST_END_S, SHORTEST_END_S),
        (5, True, SHORTEST_END_S, SHORTEST_END_S),
    ],
    ids=["not drained", "drained for 5 s", "drained for 24 s", "quit"],
)
def test_a_drain_has_its_time_once(
    monkeypatch: pytest.MonkeyPatch, gone_s: float | None, quit: bool, least_s: float, most_s: float
) -> None:
    """Its exit functions have what the requests have left, also where no master looks at the clock."""
    started: list[Callable[[], None]] = []
    limits_s: list[float] = []
    monkeypatch.setattr(exits, "run", lambda **how: None)
    one: Any = SimpleNamespace(
        config=SimpleNamespace(drain_timeout=25.0),
        draining=gone_s is not None,
        finished=True,
        on_drain=None,
        signals=SimpleNamespace(quit=quit, end=lambda code: None),
        background=SimpleNamespace(start=started.append),
        link=SimpleNamespace(outbox=SimpleNamespace(finish=lambda limit_s: None)),
        _end_late=lambda code, since_s, limit_s: limits_s.append(limit_s),
        _drain_end_s=None if gone_s is None else time.monotonic() + 25 - gone_s,
    )
    WorkerProcess.end(one, 0)
    started[0]()
    assert least_s <= limits_s[0] <= most_s
