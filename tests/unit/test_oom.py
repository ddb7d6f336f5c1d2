"""oom: whether the kernel's counters say that its OOM killer was at work; made-up files."""

from __future__ import annotations

from pathlib import Path

from pyfanout.master.oom import OomKills


def test_it_counts_from_birth_and_each_kill_once(tmp_path: Path) -> None:
    events = tmp_path / "memory.events"
    events.write_text("low 0\nhigh 0\nmax 9\noom 3\noom_kill 2\n")
    kills = OomKills((tmp_path / "missing", events))
    assert not kills.happened()
    events.write_text("oom 4\noom_kill 3\n")
    assert kills.happened()
    assert not kills.happened()


def test_without_counters_it_never_says_so(tmp_path: Path) -> None:
    (tmp_path / "other").write_text("nothing of interest\n")
    kills = OomKills((tmp_path / "missing", tmp_path / "other"))
    assert not kills.happened()


def test_this_kernel_has_one() -> None:
    assert not OomKills().happened()
