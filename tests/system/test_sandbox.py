"""Sandboxes that refuse system calls: pyfanout does without, or says in one line what it needs."""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from harness import TESTS, Server, ask, hold, kill

MakeServer = Callable[..., Server]

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="tests/sandbox.py has the numbers of x86-64")

OPTIONAL = (
    *("prlimit64", "memfd_create", "pidfd_send_signal", "prctl", "sched_getaffinity", "sched_yield"),
    *("flock", "link", "linkat", "fchmod", "sigaltstack", "close_range", "sysinfo"),
    "waitid:0=3",  # P_PIDFD
    "ioctl:1=0x5411",  # SIOCOUTQ
    "fcntl:1=37",  # F_OFD_SETLK
    "setsockopt:2=26",  # SO_ATTACH_FILTER
    "setsockopt:2=44",  # SO_LOCK_FILTER
    "getsockopt:2=11",  # TCP_INFO
)
NEEDED = {
    "pidfd_open": "pidfd_open",
    "eventfd2": "eventfd",
    "sendmmsg": "sendmmsg",
    "recvmmsg": "recvmmsg",
    "shutdown": "shutdown",
    "ioctl:1=0x541b": "ioctl SIOCINQ",
    "socketpair:1=0x80005": "socketpair",  # SOCK_SEQPACKET | SOCK_CLOEXEC
}


def sandboxed(error: str, calls: Sequence[str], command: Sequence[str]) -> list[str]:
    return [sys.executable, str(TESTS / "sandbox.py"), error, *calls, "--", *command]


@pytest.mark.parametrize(("handler", "error"), [("act", "EPERM"), ("act_async", "ENOSYS")])
def test_what_it_does_without(server: MakeServer, tmp_path: Path, handler: str, error: str) -> None:
    """All of them refused at once: it serves, replaces, reloads and stops."""

    class Sandboxed(Server):
        def _launch(self, command: Sequence[str], *arguments: Any, **options: Any) -> None:
            super()._launch(sandboxed(error, OPTIONAL, command), *arguments, **options)

    pidfile = tmp_path / "pid"
    one = server(Sandboxed).start(
        f"apps:{handler}",
        bind=["127.0.0.1:0", f"unix:{tmp_path}/s"],
        workers=2,
        pidfile=pidfile,
        min_uptime=0,
        wait=False,
    )
    one.wait_ready(60)
    for address in one.addresses:
        assert ask(address)["pid"] in one.workers
    assert pidfile.read_text() == f"{one.pid}\n"
    victim = one.workers[0]
    kill(victim)
    before = one.wait_workers(2, gone=[victim])
    one.wait_log("was killed by SIGKILL")
    one.wait_ready_workers(3)
    one.send(signal.SIGHUP)
    one.wait_log("reloaded")
    one.wait_workers(2, gone=before)
    with hold(one.address):  # one that has to be sent SIGQUIT
        assert one.stop(signal.SIGINT) == 0
    one.wait_nobody()
    assert not pidfile.exists()


@pytest.mark.parametrize(("call", "name"), NEEDED.items())
def test_what_it_needs(call: str, name: str) -> None:
    error = ("EPERM", "ENOSYS")[list(NEEDED).index(call) % 2]
    command = [sys.executable, "-m", "pyfanout", "run", "apps:act", "--bind", "127.0.0.1:0", "--workers", "1"]
    done = subprocess.run(
        sandboxed(error, [call], command),
        cwd=TESTS,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "PYFANOUT_LOG_LEVEL": "warning"},
    )
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("pyfanout: ")
    assert f"needs {name}" in line
