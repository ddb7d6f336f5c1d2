"""A log that cannot be written: its disk is full, or nobody reads it any more. Processes: see test_master_sweep."""

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


@pytest.mark.parametrize("make", [full_disk, closed_pipe])
def test_a_log_that_cannot_be_written(make: Callable[[], int]) -> None:
    """It lives, replaces, reloads and ends as if nothing was."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    words = ["-m", "pyfanout", "run", "hostile:handler", "--bind", f"127.0.0.1:{port}", "--workers", "2"]
    fd = make()
    try:
        process = subprocess.Popen(
            [sys.executable, *words, "--log-level", "debug"],
            cwd=TESTS,
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
        assert process.wait(20) == 0
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
