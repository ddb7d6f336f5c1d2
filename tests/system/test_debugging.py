"""A breakpoint in a worker, on a terminal, with the options of docs/debugging.md."""

from __future__ import annotations

import os
import re
import select
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

DOCUMENT = (Path(__file__).parent.parent.parent / "docs/debugging.md").read_text()
OPTIONS = "--workers 1 --timeout 0 --ping-interval 0"
APP = """
def handler(conn, addr):
    conn.recv(4096)
    secret = 41
    breakpoint()
    conn.sendall(b"answer %d" % secret)
"""


class Terminal:
    """A server in a session of its own, whose terminal this is."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.shown = ""
        self.pid, self._fd = os.forkpty()
        if self.pid == 0:
            os.chdir(folder)
            command = [sys.executable, "-m", "pyfanout", "run", "app:handler", "-b", "127.0.0.1:0", *options]
            os.execv(sys.executable, command)

    def wait(self, pattern: str, deadline_s: float = 30) -> re.Match[str]:
        """Until that is shown, after what was waited for before."""
        end_s = time.monotonic() + deadline_s
        while not (found := re.search(pattern, self.shown)):
            assert time.monotonic() < end_s, f"{pattern} is not shown:\n{self.shown}"
            if select.select([self._fd], [], [], 0.1)[0]:
                self.shown += os.read(self._fd, 4096).decode()
        self.shown = self.shown[found.end() :]
        return found

    def type(self, line: str) -> None:
        os.write(self._fd, f"{line}\n".encode())

    def close(self) -> int:
        """Stop the server; its exit code."""
        os.kill(self.pid, signal.SIGTERM)
        try:
            self.wait("stopped: 0 connections were cut off")
        except BaseException:
            os.killpg(self.pid, signal.SIGKILL)  # its workers, too
            raise
        finally:
            code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
            os.close(self._fd)
        return code


@pytest.fixture
def terminal(guard: None, tmp_path: Path) -> Iterator[Terminal]:
    (tmp_path / "app.py").write_text(APP)
    assert f"pyfanout run app:app {OPTIONS}\n" in DOCUMENT
    one = Terminal(tmp_path, *OPTIONS.split())
    yield one
    assert one.close() == 0


def test_a_breakpoint_has_the_terminal(terminal: Terminal) -> None:
    port = int(terminal.wait(r"listening on 127.0.0.1:(\d+)")[1])
    terminal.wait("all workers are ready")
    with socket.create_connection(("127.0.0.1", port), 30) as client:
        client.sendall(b"x")
        terminal.wait(r"\(Pdb\) ")
        terminal.type("print('it', 'is', secret)")
        terminal.wait("it is 41")
        terminal.type("secret += 1")
        terminal.wait(r"\(Pdb\) ")
        terminal.type("c")
        assert client.recv(100) == b"answer 42"
