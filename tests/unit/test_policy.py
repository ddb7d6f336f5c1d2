"""policy: when a worker is started again. Made-up numbers, no clock."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyfanout.master.policy import (
    FIRST_DELAY_NS,
    LONGEST_DELAY_NS,
    MIN_UPTIME_NS,
    deaths_in_a_row,
    respawn_delay_ns,
)

MS = 1_000_000
counts = st.integers(min_value=0, max_value=10**6)
chances = st.floats(min_value=0, max_value=1)


@pytest.mark.parametrize(
    ("before", "ready_for_ns", "deaths"),
    [
        (0, None, 1),
        (4, None, 5),
        (0, 0, 1),
        (4, MIN_UPTIME_NS - 1, 5),
        (4, MIN_UPTIME_NS, 1),
        (4, 10**18, 1),
        (0, MIN_UPTIME_NS, 1),
    ],
)
def test_deaths_in_a_row(before: int, ready_for_ns: int | None, deaths: int) -> None:
    assert deaths_in_a_row(before, ready_for_ns) == deaths


@given(counts, st.none() | st.integers(min_value=0, max_value=MIN_UPTIME_NS - 1))
def test_a_short_life_adds_one(before: int, ready_for_ns: int | None) -> None:
    assert deaths_in_a_row(before, ready_for_ns) == before + 1


@pytest.mark.parametrize(
    ("deaths", "delay_ms"),
    [(0, 0), (1, 0), (2, 100), (3, 200), (4, 400), (8, 6400), (9, 12800), (10, 15000), (1000, 15000), (10**9, 15000)],
)
def test_the_delay_doubles_up_to_its_limit(deaths: int, delay_ms: int) -> None:
    assert respawn_delay_ns(deaths, 0.0) == delay_ms * MS
    assert respawn_delay_ns(deaths, 1.0) == delay_ms * MS // 2


@given(counts, chances)
def test_a_delay_is_within_its_bounds(deaths: int, chance: float) -> None:
    delay_ns = respawn_delay_ns(deaths, chance)
    assert isinstance(delay_ns, int)
    if deaths <= 1:
        assert delay_ns == 0
    else:
        assert FIRST_DELAY_NS // 2 <= delay_ns <= LONGEST_DELAY_NS


@given(chances)
def test_delays_grow(chance: float) -> None:
    delays = [respawn_delay_ns(deaths, chance) for deaths in range(40)]
    assert all(before <= after for before, after in pairwise(delays))


@given(st.integers(min_value=2, max_value=30), chances, chances)
def test_chance_spreads_those_that_die_together(deaths: int, one: float, other: float) -> None:
    first, second = respawn_delay_ns(deaths, one), respawn_delay_ns(deaths, other)
    assert (first <= second) == (one >= other) or first == second
