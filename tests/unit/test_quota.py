"""How much a worker serves before another takes its place."""

from __future__ import annotations

import pytest

from pyfanout.worker.quota import Quota


def test_without_a_number_nothing_is_counted() -> None:
    assert Quota(0, 5).counter(bool) is None


def test_it_is_reached_once() -> None:
    reached: list[int] = []
    quota = Quota(3, 0)
    first, second = (quota.counter(lambda: reached.append(1)) for _ in range(2))
    assert first is not None
    assert second is not None
    first()
    second()
    assert reached == []
    first()
    assert reached == [1]
    second()
    assert reached == [1]


@pytest.mark.parametrize("_attempt", range(10))
def test_jitter_only_adds(_attempt: int) -> None:
    last = Quota(10, 5).last
    assert last is not None
    assert 10 <= last <= 15
