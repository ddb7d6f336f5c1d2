"""What a fork server starts is what `subprocess` starts."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import fork_server
import pytest
from harness import Server

FACTS = """
    import fcntl, json, os, resource, signal, sys, threading, warnings
    def link(fd):
        try:
            return os.readlink(f"/proc/self/fd/{fd}")
        except FileNotFoundError:  # of the listing itself
            return None
    status = open("/proc/self/status").read().splitlines()
    alike = ("Umask", "Uid", "Gid", "Groups", "SigBlk", "SigIgn", "SigCgt", "Threads", "NoNewPrivs", "Cpus_allowed")
    print(json.dumps({
        "parent": os.getppid(),
        "leads": [os.getsid(0) == os.getpid(), os.getpgid(0) == os.getpid()],
        "folder": os.getcwd(),
        "environment": dict(os.environ),
        "python": [sys.argv, sys.orig_argv, sys.path, sys.executable, str(sys.flags), sys.warnoptions],
        "filters": str(warnings.filters),
        "main": [__name__, sys.modules["__main__"].__name__, globals() is vars(sys.modules["__main__"])],
        "descriptors": {fd: [link(fd), os.get_inheritable(int(fd))] for fd in os.listdir("/proc/self/fd") if link(fd)},
        "streams": [[each.fileno(), each.encoding, each.errors, each.line_buffering, each.write_through]
                    for each in (sys.stdin, sys.stdout, sys.stderr)],
        "status": [line for line in status if line.partition(":")[0] in alike],
        "limits": open("/proc/self/limits").read(),
        "signals": [str(signal.getsignal(each)) for each in sorted(signal.valid_signals())],
        "threads": [each.name for each in threading.enumerate()],
        "main thread": threading.current_thread() is threading.main_thread(),
    }))
"""
COMMANDS = {"a module": ["-m", "facts"], "code": ["-c", textwrap.dedent(FACTS)], "a script": ["facts.py"]}


@pytest.mark.parametrize("words", COMMANDS.values(), ids=COMMANDS.keys())
def test_it_is_as_if_python_had_been_started(tmp_path: Path, words: list[str]) -> None:
    (tmp_path / "facts.py").write_text(textwrap.dedent(FACTS))
    extra = os.open(tmp_path / "extra", os.O_CREAT | os.O_WRONLY)
    found: list[Any] = []
    try:
        for fresh in (False, True):
            one = Server(tmp_path)
            one.out_path.unlink(missing_ok=True)
            one.fresh = fresh
            command = [sys.executable, *fork_server.FLAGS, *words, "an argument"]
            one._launch(command, tmp_path, {"MORE": "x"}, [extra])
            assert isinstance(one._process, subprocess.Popen) == fresh
            assert one.wait_exit() == 0, one.log
            found.append(json.loads(one.out))
    finally:
        os.close(extra)
    assert found[0]["parent"] == os.getpid()
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("pass", 0),
        ("import sys; sys.exit()", 0),
        ("import sys; sys.exit(7)", 7),
        ("import sys; sys.exit('words')", 1),
        ("1 / 0", 1),
        ("import os; os.kill(os.getpid(), 9)", -signal.SIGKILL),
        ("import atexit, os, sys; atexit.register(os._exit, 3); sys.exit(2)", 3),
    ],
)
def test_it_ends_with_its_exit_code(tmp_path: Path, code: str, expected: int) -> None:
    one = Server(tmp_path)
    one._launch([sys.executable, *fork_server.FLAGS, "-c", code], tmp_path, None)
    assert isinstance(one._process, fork_server.Child)
    assert one.wait_exit() == expected


def test_what_it_has_printed_is_not_lost(tmp_path: Path) -> None:
    """Nor what nothing refers to any more."""
    code = "import socket, sys; a = [socket.socket()]; a.append(a); del a; print('out', end=''); sys.exit(0)"
    one = Server(tmp_path)
    one._launch([sys.executable, *fork_server.FLAGS, "-c", code], tmp_path, None)
    one.wait_exit()
    assert one.out == "out"
    assert "ResourceWarning: unclosed <socket" in one.log


@pytest.mark.parametrize(
    ("flags", "environ"),
    [
        (("-W", "error"), {}),
        (("-W", "default", "-X", "dev"), {}),
        (fork_server.FLAGS, {"PYTHONDEVMODE": "1"}),
        (fork_server.FLAGS, {"LD_PRELOAD": ""}),
    ],
)
def test_another_python_is_started(tmp_path: Path, flags: tuple[str, ...], environ: dict[str, str]) -> None:
    one = Server(tmp_path)
    one._launch([sys.executable, *flags, "-c", "pass"], tmp_path, environ)
    assert isinstance(one._process, subprocess.Popen)
    assert one.wait_exit() == 0


def test_so_is_it_by_a_process_that_has_changed(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        one = Server(tmp_path)
        one._launch([sys.executable, *fork_server.FLAGS, "-c", "import os; print(os.umask(0))"], tmp_path, None)
        one.wait_exit()
    finally:
        os.umask(before)
    assert int(one.out) == 0o027
