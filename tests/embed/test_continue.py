"""An upload that its server has asked for ("100 Continue") and that begins late is whole, also if its worker drains."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

import pytest
from harness import Server, connect, read_all

from .kit import SUBJECTS, start

MakeServer = Callable[[], Server]

PAUSE_S = 2.5
"""Longer than it takes to pass for idle."""

NO_ECHO = ("uvicorn-fastapi", "waitress-flask")
ASKING = [name for name, subject in SUBJECTS.items() if subject.keeps_alive and name not in NO_ECHO]
HEAD = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n"


@pytest.mark.parametrize("name", ASKING)
def test_a_late_upload(server: MakeServer, name: str) -> None:
    """The client was silent after the server had sent last, as a client is that waits before its next request."""
    one = start(server(), SUBJECTS[name], workers=1, drain_timeout=60)
    (pid,) = one.workers
    with connect(one.address) as client:
        client.sendall(HEAD)
        assert b" 100 " in client.recv(1000)
        os.kill(pid, signal.SIGTERM)
        time.sleep(PAUSE_S)
        client.sendall(b"late")
        answer = read_all(client)
        assert answer.endswith(b"late") or b"4\r\nlate\r\n0" in answer, answer
    one.wait_workers(1, gone=[pid])
