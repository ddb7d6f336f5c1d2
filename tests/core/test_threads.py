"""tests/core/life.c under ThreadSanitizer and valgrind: threads, scoreboard and the master's loop share nothing but
what is atomic, and the core reads nothing that it has not written, loses no memory and leaves no descriptor."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
CORE = [str(path) for path in sorted((ROOT / "csrc").glob("*.c")) if path.name != "_core.c"]
CLIENTS = 5000 if os.environ.get("FAULTS") == "all" else 500
"""Of each of two threads."""
RUN_S = 300


def build(folder: Path, *flags: str) -> str:
    binary = str(folder / "life")
    life = str(Path(__file__).with_name("life.c"))
    words = ["-std=gnu11", "-g", "-O1", "-Wall", "-Wextra", "-Werror", f"-I{ROOT / 'csrc'}", "-pthread", *flags]
    subprocess.run(["cc", *words, "-o", binary, *CORE, life], check=True)
    return binary


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=RUN_S, check=False)


def thread_sanitizer(binary: str) -> subprocess.CompletedProcess[str]:
    """Without randomized addresses, of which it does not know all."""
    return run("setarch", "--addr-no-randomize", binary, str(CLIENTS))


def test_no_data_race(tmp_path: Path) -> None:
    done = thread_sanitizer(build(tmp_path, "-fsanitize=thread"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"answered {2 * CLIENTS}" in done.stdout
    assert "WARNING" not in done.stderr


def test_a_data_race_would_be_found(tmp_path: Path) -> None:
    done = thread_sanitizer(build(tmp_path, "-fsanitize=thread", "-DRACE"))
    assert "data race" in done.stderr


def test_memory_and_descriptors(tmp_path: Path) -> None:
    options = ["--quiet", "--error-exitcode=9", "--leak-check=full", "--show-leak-kinds=all", "--track-fds=yes"]
    done = run("valgrind", *options, "--errors-for-leak-kinds=all", build(tmp_path), str(CLIENTS // 2))
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"answered {CLIENTS // 2 * 2}" in done.stdout
    opened = re.findall(r"Open (?:AF_\w+ socket|file descriptor) \d+.*\n(?:==\d+==.*\n)*?==\d+==\s+(\S.*)", done.stderr)
    assert set(opened) <= {"<inherited from parent>"}, done.stderr
