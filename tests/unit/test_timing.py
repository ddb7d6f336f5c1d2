"""timing: when a worker is started again, when it is hung. Made-up numbers, no clock."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyfanout.master.timing import (
    BROKEN_ROW,
    BROKEN_WINDOW,
    FIRST_DELAY_NS,
    LONGEST_DELAY_NS,
    deaths_in_a_row,
    hang,
    has_lived,
    is_broken,
    respawn_delay_ns,
)

MS = 1_000_000
S = 1000 * MS
MIN_UPTIME_NS = S
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
    assert deaths_in_a_row(before, has_lived(ready_for_ns, False, MIN_UPTIME_NS), False) == deaths


@given(counts, st.none() | st.integers(min_value=0, max_value=MIN_UPTIME_NS - 1))
def test_a_short_life_adds_one(before: int, ready_for_ns: int | None) -> None:
    assert not has_lived(ready_for_ns, False, MIN_UPTIME_NS)
    for resigned in (False, True):
        assert deaths_in_a_row(before, False, resigned) == before + 1


@given(counts, st.none() | st.integers(min_value=0))
def test_one_that_has_served_begins_a_new_row(before: int, ready_for_ns: int | None) -> None:
    """Else workers that somebody kills twice a second would all be held back, and nobody would serve."""
    lived = has_lived(ready_for_ns, True, MIN_UPTIME_NS)
    assert lived == (ready_for_ns is not None)
    assert deaths_in_a_row(before, lived, False) == (1 if lived else before + 1)
    assert deaths_in_a_row(before, lived, True) == (0 if lived else before + 1)


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


@given(chances)
def test_who_has_failed_is_tried_slowly(chance: float) -> None:
    assert LONGEST_DELAY_NS // 2 <= respawn_delay_ns(1, chance, failed=True) <= LONGEST_DELAY_NS


@pytest.mark.parametrize(
    ("deaths", "window_ns", "broken"),
    [
        (1, None, False),
        (BROKEN_ROW - 1, None, False),
        (BROKEN_ROW, None, True),
        (1, BROKEN_WINDOW * MIN_UPTIME_NS, False),
        (1, BROKEN_WINDOW * MIN_UPTIME_NS - 1, True),
    ],
)
def test_when_a_slot_is_broken(deaths: int, window_ns: int | None, broken: bool) -> None:
    assert is_broken(deaths, window_ns, MIN_UPTIME_NS) == broken


def test_without_a_least_uptime_no_death_counts() -> None:
    assert has_lived(0, False, 0)
    assert not is_broken(1, 0, 0)


# ---- hung? ---------------------------------------------------------------------------------------------------------

NOW = 1000 * S
IDLE = {"busy_threads": 0, "busy_since_ns": 0, "still_ns": 0}


def verdict(**facts: int | None) -> str | None:
    given = {"pinged_ns": None, "threads": 1, **IDLE, **facts}
    return hang(now_ns=NOW, ping_timeout_ns=5 * S, timeout_ns=30 * S, **given)  # type: ignore[arg-type]


@pytest.mark.parametrize("threads", [0, 1, 4])
def test_who_answers_and_has_nothing_to_do_is_well(threads: int) -> None:
    assert verdict(threads=threads) is None
    assert verdict(threads=threads, pinged_ns=NOW - 5 * S + 1) is None


@pytest.mark.parametrize("threads", [0, 1, 4])
def test_who_is_idle_and_does_not_answer_is_hung(threads: int) -> None:
    assert verdict(threads=threads, pinged_ns=NOW - 5 * S) == "no answer to a ping for 5.0 s"


def test_a_blocking_handler_may_run_and_need_not_answer() -> None:
    busy = {"busy_threads": 1, "busy_since_ns": NOW - 29 * S, "pinged_ns": NOW - 28 * S}
    assert verdict(**busy) is None
    assert verdict(**busy | {"busy_since_ns": NOW - 30 * S}) == "a handler has run for 30.0 s"


@pytest.mark.parametrize("threads", [0, 4])
def test_threads_that_have_been_in_the_same_requests_for_too_long(threads: int) -> None:
    """Threads of pyfanout, or of a server, which only the worker knows."""
    busy = {"threads": threads, "busy_threads": threads}
    assert verdict(**busy, still_ns=30 * S - 1) is None
    assert verdict(**busy, still_ns=30 * S) == "every thread has been in the same request for 30.0 s"


def test_an_event_loop_has_no_such_excuse() -> None:
    assert verdict(threads=0, pinged_ns=NOW - 5 * S, busy_threads=1, busy_since_ns=NOW)
    assert verdict(threads=0, busy_threads=1, busy_since_ns=NOW - 99 * S) is None


def test_of_several_threads_all_must_be_stuck() -> None:
    """As long as one can take work, and the worker answers, the others may take their time."""
    old = NOW - 99 * S
    assert verdict(threads=4, busy_threads=3, busy_since_ns=old, still_ns=99 * S) is None
    assert verdict(threads=4, busy_threads=4, busy_since_ns=old, still_ns=29 * S) is None
    assert verdict(threads=4, busy_threads=1, busy_since_ns=old, pinged_ns=NOW - 5 * S) is not None
    assert verdict(threads=4, busy_threads=1, busy_since_ns=NOW - S, pinged_ns=NOW - 5 * S) is None


def test_without_a_timeout_a_handler_may_run_for_ever() -> None:
    facts = {"pinged_ns": NOW - 99 * S, "threads": 1, "busy_threads": 1, "busy_since_ns": 1, "still_ns": 99 * S}
    assert hang(now_ns=NOW, ping_timeout_ns=5 * S, timeout_ns=0, **facts) is None


@given(
    st.none() | st.integers(0, 2 * NOW),
    st.integers(0, 256),
    st.integers(-(2**31), 2**31 - 1),
    st.integers(-(2**63), 2**63 - 1),
    st.integers(-(2**63), 2**63 - 1),
)
def test_lies_stop_nobody(pinged_ns: int | None, threads: int, busy: int, since_ns: int, still_ns: int) -> None:
    facts = {"busy_threads": busy, "busy_since_ns": since_ns, "still_ns": still_ns}
    reason = verdict(pinged_ns=pinged_ns, threads=threads, **facts)
    assert reason is None or reason
