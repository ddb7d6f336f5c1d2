"""The guards fail when they should: each is shown what it is there to find."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import left_over
from harness import Census, Server, connect, is_over, kill, read_line, session_of, wait_until

MakeServer = Callable[[], Server]


def test_an_open_descriptor_is_found() -> None:
    before = Census.take()
    fd = os.open("/dev/null", os.O_RDONLY)
    try:
        assert left_over(before, 0) == [f"descriptor {fd} is left open: /dev/null"]
    finally:
        os.close(fd)
    assert left_over(before, 0) == []


def test_a_child_is_found_dead_or_alive() -> None:
    before = Census.take()
    pid = os.fork()
    if pid == 0:
        signal.pause()
        os._exit(0)
    assert [line for line in left_over(before, 0) if f"child {pid} is left" in line]
    kill(pid)
    wait_until(lambda: is_over(pid), "it is a zombie")
    assert left_over(before, 0) == [f"child {pid} is left, state Z"]
    os.waitpid(pid, 0)
    assert left_over(before, 0) == []


def test_a_thread_is_found() -> None:
    before = Census.take()
    end = threading.Event()
    thread = threading.Thread(target=end.wait)
    thread.start()
    lines = left_over(before, 0)
    end.set()
    thread.join()
    assert len(lines) == 1
    assert lines[0].startswith("thread ")
    assert left_over(before) == []


LEAKY = """
import os, signal, threading
import pytest

def test_descriptor():
    os.open("/dev/null", os.O_RDONLY)

def test_child():
    if os.fork() == 0:
        os._exit(0)

def test_thread():
    threading.Thread(target=threading.Event().wait, daemon=True).start()

def test_log(server):
    one = server().start("apps:act", workers=1)
    # a traceback that the test does not expect
    from harness import ask
    ask(one.address, "raise")

def test_left_behind(server):
    one = server().start("apps:act", workers=2)
    os.kill(one.workers[0], signal.SIGSTOP)
    os.kill(one.pid, signal.SIGKILL)
    one.wait_exit()

def test_exit_code(server):
    one = server().start("apps:act", workers=1)
    os.kill(one.pid, signal.SIGKILL)

def test_seed(rng):
    print("number", rng.random())
    assert False

def test_good(server):
    from harness import ask
    assert ask(server().start("apps:act", workers=1).address)
"""


def test_leaking_tests_fail(tmp_path: Path) -> None:
    """The real fixtures, in a pytest of its own: all but the good one fail, each for its own reason."""
    here = Path(__file__).parent
    (tmp_path / "conftest.py").write_text((here / "conftest.py").read_text())
    (tmp_path / "test_leaky.py").write_text(LEAKY)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--rootdir",
        str(tmp_path),
        "test_leaky.py",
    ]
    environ = {**os.environ, "PYTHONPATH": str(here), "PYTHONDONTWRITEBYTECODE": "1"}

    def run(*more: str) -> str:
        done = subprocess.run(
            [*command, *more], cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 1, done.stdout + done.stderr
        return done.stdout

    report = run("--seed=7")
    for name, reason in {
        "test_descriptor": "is left open: /dev/null",
        "test_child": "is left, state Z",
        "test_thread": "thread ",
        "test_log": "unexpected in the log:   Traceback (most recent call last):",
        "test_left_behind": "processes are left behind: ",
        "test_exit_code": "the server ended with -9",
    }.items():
        assert f"ERROR test_leaky.py::{name}" in report, report
        assert reason in report
    assert "FAILED test_leaky.py::test_seed" in report
    assert "test_good" not in report
    assert "seed: 7 (repeat with --seed=7)" in report
    # The same seed gives the same numbers again.
    number = next(line for line in report.splitlines() if line.startswith("number "))
    assert number in run("--seed=7", "-k", "test_seed")
    assert number not in run("--seed=8", "-k", "test_seed")


def test_the_log_of_a_failed_wait_is_shown(server: MakeServer) -> None:
    one = server().start("apps:act", workers=1)
    with pytest.raises(AssertionError, match=r"(?s)not within 0.01 s: the moon.*listening on"):
        one.wait_until(lambda: None, "the moon", 0.01)


def test_everything_is_killed_when_a_server_does_not_end(tmp_path: Path) -> None:
    """Also what its workers have forked."""
    one = Server(tmp_path).start("apps:act", workers=1)
    master = one.pid
    ask_and_leave(one.address, "fork stay")
    assert len(one.workers) == 1
    os.kill(master, signal.SIGSTOP)
    kill(master)
    problems = one.close()
    assert session_of(master) == []
    assert any("the server ended with -9" in line for line in problems), problems
    assert any("processes are left behind" in line for line in problems), problems


def ask_and_leave(address: str, line: str) -> None:
    """A child that stays has the connection as well: there will be no end-of-file."""
    with connect(address, line) as client:
        assert read_line(client).startswith(b"{")
