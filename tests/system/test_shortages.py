"""A log that cannot be written: its disk is full, it is a pipe that nobody reads any more, or none. Processes: see
test_master_sweep."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harness import ask_plain, kill, wait_until

from bench.server import free_port

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
    with serving(tmp_path, make(), by) as (process, port):
        it_lives_replaces_and_reloads(process, port)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == code


def test_a_log_that_nobody_reads(tmp_path: Path) -> None:
    """The same when it is full: what does not fit is lost, and that is said when there is room again."""
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    filling = os.open(f"/proc/self/fd/{writing}", os.O_WRONLY | os.O_NONBLOCK)
    try:
        with serving(tmp_path, writing) as (process, port):
            fill(filling)
            for _ in range(3):
                it_lives_replaces_and_reloads(process, port)
            log = drain(reading)
            assert "lost" not in log
            it_lives_replaces_and_reloads(process, port)
            assert re.search(r" WARNING \d+ lines were lost: the log was not read\n", drain(reading))
            fill(filling)
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0
    finally:
        os.close(filling)
        os.close(reading)


def fill(fd: int) -> None:
    """Nobody who waits for room in it would ever come back."""
    for size in (1 << 20, 1):
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(fd, b"\n" * size)


def drain(fd: int) -> str:
    """What is in it now."""
    text = b""
    while select.select([fd], [], [], 0)[0]:
        text += os.read(fd, 1 << 20)
    return text.decode()


@contextlib.contextmanager
def serving(tmp_path: Path, fd: int, by: tuple[str, ...] = ()) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A server that logs to `fd`, which it takes over, and the port where both its workers serve."""
    (tmp_path / "printer.py").write_text("from hostile import handler\nprint('loaded')\n")
    port = free_port()
    words = ["-m", "pyfanout", "run", "printer:handler", "--preload", "--bind", f"127.0.0.1:{port}", "--workers", "2"]
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
        yield process, port
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def it_lives_replaces_and_reloads(process: subprocess.Popen[bytes], port: int) -> None:
    seen: set[int] = set()
    wait_until(lambda: seen.add(who(port)) or len(seen) == 2, "both serve")
    first, second = seen
    kill(first)
    wait_until(lambda: who(port) not in seen, "another serves")
    process.send_signal(signal.SIGHUP)
    wait_until(lambda: second not in {who(port) for _ in range(10)}, "both are new")


def answers(port: int) -> bool:
    try:
        return who(port) > 0
    except ConnectionError:
        return False


def who(port: int) -> int:
    """The pid of the worker that answers."""
    return int(ask_plain(port))
