"""oom: whether the kernel's counters say that its OOM killer was at work; made-up files."""

from __future__ import annotations

from pathlib import Path

from pyfanout.master.oom import OomKills

S = 1_000_000_000


def test_a_kill_explains_the_deaths_just_after_it(tmp_path: Path) -> None:
    """All of them, and none later."""
    events = tmp_path / "memory.events"
    events.write_text("low 0\nhigh 0\nmax 9\noom 3\noom_kill 2\n")
    kills = OomKills((tmp_path / "missing", events))
    kills.look(10 * S)
    assert not kills.happened(11 * S)
    events.write_text("oom 4\noom_kill 3\n")
    assert kills.happened(12 * S)
    assert kills.happened(13 * S)
    assert not kills.happened(15 * S)


def test_a_kill_that_nobody_looked_for_explains_nothing(tmp_path: Path) -> None:
    """It may have been hours ago: without pings the counter is read at deaths alone."""
    events = tmp_path / "memory.events"
    events.write_text("oom_kill 2\n")
    kills = OomKills((events,))
    kills.look(10 * S)
    events.write_text("oom_kill 3\n")
    assert not kills.happened(5000 * S)
    assert not kills.happened(5001 * S)


def test_without_counters_it_never_says_so(tmp_path: Path) -> None:
    (tmp_path / "other").write_text("nothing of interest\n")
    kills = OomKills((tmp_path / "missing", tmp_path / "other"))
    kills.look(0)
    assert not kills.happened(S)


def test_this_kernel_has_one() -> None:
    assert not OomKills().happened(S)


def test_a_counter_that_cannot_be_read_for_once_explains_nothing(tmp_path: Path) -> None:
    events, away = tmp_path / "memory.events", tmp_path / "away"
    events.write_text("oom_kill 2\n")
    kills = OomKills((events,))
    kills.look(10 * S)
    events.rename(away)
    assert not kills.happened(11 * S)
    away.rename(events)
    assert not kills.happened(12 * S)
