"""A master that is PID 1, or a subreaper: orphans are reaped, children of the program are the program's."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest
from harness import ask_plain, children_of, kill, state_of, wait_until

PROGRAM = """
import ctypes, json, os, socket, subprocess, sys, threading, time
import pyfanout

def handler(conn, addr):
    conn.recv(99)
    # The shell ends at once: its background child is an orphan.
    subprocess.run(["sh", "-c", "sleep 0.1 &"], check=True)
    conn.sendall(b"done")

how = sys.argv[1]
if how != "pid 1":
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)
own = [subprocess.Popen(["sh", "-c", "exit 7"])]
forked = os.fork()
if forked == 0:
    os._exit(9)

def start_more(notice):
    own.append(subprocess.Popen(["sh", "-c", "exit 8"]))

if how == "thread":
    threading.Thread(target=threading.Event().wait, daemon=True).start()
with pyfanout.Master(handler, bind="127.0.0.1:0", workers=2, ping_interval=0) as master:
    master.on("ready", start_more)
    while how == "steps" and master.step(0.02):
        own.append(subprocess.Popen(["sh", "-c", "exit 8"]))
    master.run()
codes = [each.wait(20) for each in own] + [os.waitstatus_to_exitcode(os.waitpid(forked, 0)[1])]
print(json.dumps(codes), flush=True)
"""


class Program:
    """The program, and the process that is the master."""

    def __init__(self, popen: subprocess.Popen[str], pid: int, port: int) -> None:
        self._popen, self.pid, self.port = popen, pid, port

    @property
    def zombies(self) -> list[int]:
        return [pid for pid in children_of(self.pid) if state_of(pid) == "Z"]

    def stop(self) -> list[int]:
        """What it prints: the exit codes of its own children."""
        os.kill(self.pid, signal.SIGTERM)
        out, log = self._popen.communicate(timeout=20)
        assert self._popen.returncode == 0, log
        codes: list[int] = json.loads(out)
        return codes


@contextlib.contextmanager
def program(how: str) -> Iterator[Program]:
    command = [sys.executable, "-u", "-c", PROGRAM, how]
    if how == "pid 1":
        command = ["unshare", "--pid", "--fork", "--kill-child", *command]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as popen:
        try:
            assert popen.stderr is not None
            lines = iter(popen.stderr.readline, "")
            port = next((int(found[1]) for line in lines if (found := re.search(r"on 127.0.0.1:(\d+)", line))), 0)
            if not port:
                pytest.skip("no PID namespace may be made here")
            pid = children_of(popen.pid)[0] if how == "pid 1" else popen.pid
            next(line for line in lines if "all workers are ready" in line)
            yield Program(popen, pid, port)
        finally:
            popen.kill()


@pytest.mark.parametrize("how", ["pid 1", "subreaper"])
def test_orphans_are_reaped(how: str) -> None:
    """Twenty requests that leave a background child each: none is left. The program's own four have their codes."""
    with program(how) as one:
        wait_until(lambda: len(one.zombies) == 4, "its own children have ended")
        own = one.zombies
        for _ in range(20):
            assert ask_plain(one.port) == b"done"
        wait_until(lambda: len(children_of(one.pid)) == 6, "two workers, and its own", log=lambda: str(one.zombies))
        assert one.zombies == own
        worker = next(pid for pid in children_of(one.pid) if pid not in own)
        kill(worker)
        wait_until(lambda: worker not in children_of(one.pid) and len(one.zombies) == 5, "it is replaced")
        assert one.stop() == [7, 8, 8, 8, 9]


@pytest.mark.parametrize("how", ["thread", "steps"])
def test_where_the_program_may_fork_at_any_time(how: str) -> None:
    """The program has another thread, or a loop of its own: its children are left to it."""
    with program(how) as one:
        for _ in range(20):
            assert ask_plain(one.port) == b"done"
        codes = one.stop()
    assert codes == [7, *[8] * (len(codes) - 2), 9]
    assert len(codes) >= 4
