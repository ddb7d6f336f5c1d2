"""A log that cannot be written: its disk is full, nobody reads it any more, or there is none. Processes: see
test_master_sweep."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import ask_plain, kill, wait_until

TESTS = Path(__file__).parents[1]


def full_disk() -> int:
    return os.open("/dev/full", os.O_WRONLY)


def closed_pipe() -> int:
    reading, writing = os.pipe()
    os.close(reading)
    return writing


def nothing() -> int:
    return os.open("/dev/null", os.O_WRONLY)


CLOSED = ("sh", "-c", 'exec "$0" "$@" >&- 2>&-')


UNWRITTEN = 120
"""CPython's exit code when what was printed could not be written in the end."""


@pytest.mark.parametrize(
    ("make", "by", "code"), [(full_disk, (), UNWRITTEN), (closed_pipe, (), UNWRITTEN), (nothing, CLOSED, 0)]
)
def test_a_log_that_cannot_be_written(tmp_path: Path, make: Callable[[], int], by: tuple[str, ...], code: int) -> None:
    """It lives, replaces, reloads and ends as if nothing was; also when the application has printed something, which is
    still in the buffer of the master that has loaded it."""
    (tmp_path / "printer.py").write_text("from hostile import handler\nprint('loaded')\n")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    words = ["-m", "pyfanout", "run", "printer:handler", "--preload", "--bind", f"127.0.0.1:{port}", "--workers", "2"]
    fd = make()
    try:
        process = subprocess.Popen(
            [*by, sys.executable, *words, "--log-level", "debug"],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(TESTS), "PYTHONUNBUFFERED": ""},
            stdin=subprocess.DEVNULL,
            stdout=fd,
            stderr=fd,
            start_new_session=True,
        )
    finally:
        os.close(fd)
    try:
        wait_until(lambda: answers(port), "it serves")
        seen: set[int] = set()
        wait_until(lambda: seen.add(who(port)) or len(seen) == 2, "both serve")
        first, second = seen
        kill(first)
        wait_until(lambda: who(port) not in seen, "another serves")
        process.send_signal(signal.SIGHUP)
        wait_until(lambda: second not in {who(port) for _ in range(10)}, "both are new")
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == code
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def answers(port: int) -> bool:
    try:
        return who(port) > 0
    except ConnectionError:
        return False


def who(port: int) -> int:
    """The pid of the worker that answers."""
    return int(ask_plain(port))
