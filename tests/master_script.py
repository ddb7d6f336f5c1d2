"""A script that has a Master and asserts for itself: each is a process of its own."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

PRELUDE = """
import os, signal, socket, sys, time
from pathlib import Path
import pyfanout

APP = "import os\\ndef handler(conn, addr):\\n    conn.recv(99)\\n    conn.sendall(b'%d' % os.getpid())\\n"

def release(text=APP):
    Path("fresh.py").write_text(text)
    os.rename("fresh.py", "app.py")

def ask(master, line=b"x"):
    host, port = master.addresses[0].rsplit(":", 1)
    with socket.create_connection((host, int(port)), 20) as client:
        client.sendall(line)
        client.setblocking(False)
        answer = b""
        while True:
            master.step(0.01)
            try:
                more = client.recv(4096)
            except BlockingIOError:
                continue
            if not more:
                return int(answer)
            answer += more

def until(master, condition, what):
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, (what, master.workers)
        assert master.step(0.05), what

def states(master):
    return [worker.state for worker in master.workers]

def until_ready(master):
    until(master, lambda: set(states(master)) == {"READY"}, "ready")

def until_over(master):
    end = time.monotonic() + 20
    while master.step(0.1):
        assert time.monotonic() < end, master.workers

release()
options = {"bind": "127.0.0.1:0", "log_level": "critical"}
"""


def run(folder: Path, body: str, *, code: int = 0, patience_s: float = 60) -> str:
    """The script's output; it must end by itself with `code`."""
    done = subprocess.run(
        [sys.executable, "-W", "error::ResourceWarning", "-B", "-c", PRELUDE + textwrap.dedent(body)],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=patience_s,
        check=False,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr
