"""When to start a worker again. Pure: takes times and counts, returns times."""

from __future__ import annotations

MIN_UPTIME_NS = 1_000_000_000
"""A worker that was ready for 1 s (PM2's min_uptime) has had a life: its death is the first of a new row."""

FIRST_DELAY_NS = 100_000_000
"""0.1 s before the second try: a crash loop costs a few percent of one core."""

LONGEST_DELAY_NS = 15_000_000_000
"""15 s: what a healed application waits at most, and PM2's limit too."""


def deaths_in_a_row(before: int, ready_for_ns: int | None) -> int:
    """How many deaths this one makes, after `before`. `ready_for_ns` is None if the worker never was ready."""
    return 1 if ready_for_ns is not None and ready_for_ns >= MIN_UPTIME_NS else before + 1


def respawn_delay_ns(deaths: int, chance: float) -> int:
    """Nanoseconds to wait after the `deaths`-th death in a row: none after the first, then doubling.

    `chance`, from 0 to 1, takes away up to half, so that workers which die together do not come back together.
    """
    if deaths <= 1:
        return 0
    full = min(FIRST_DELAY_NS << min(deaths - 2, 20), LONGEST_DELAY_NS)
    return int(full * (1 - chance / 2))
