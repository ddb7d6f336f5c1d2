"""How long a worker's exit functions may take."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest

from pyfanout import exits
from pyfanout.worker.worker import SHORTEST_END_S, Worker


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
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(exits, "run", lambda code, **how: asked.append(how))
    one: Any = SimpleNamespace(
        config=SimpleNamespace(drain_timeout=25.0),
        draining=gone_s is not None,
        finished=True,
        on_drain=None,
        signals=SimpleNamespace(quit=quit, end=lambda code: None),
        _drain_end_s=None if gone_s is None else time.monotonic() + 25 - gone_s,
    )
    Worker.end(one, 0)
    assert least_s <= asked[0]["timeout_s"] <= most_s
