"""Every way to die or hang, in every state of a worker: clients that no handler had are answered, the slot gets a new
worker, and the server ends as it should."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harness import Server, ask, collect, connect, crowd, hold, is_over, who

MakeServer = Callable[..., Server]

WAYS = ["kill", "stop", "exit", "raise", "gil"]
STATES = ["booting", "idle", "busy", "draining"]
QUICK = {
    "ping_interval": 0.1,
    "ping_timeout": 0.5,
    "timeout": 1,
    "boot_timeout": 1,
    "drain_timeout": 1,
    "min_uptime": 0,
}

EXPECTED = (
    "is hung: ",
    "Python stacks at death",
    "Fatal Python error: ",
    "is not ready",
    "does not stop",
    "reload aborted",
    "could not start",
    "the handler raised an exception",
    "Traceback",
    "RuntimeError",
    "Exception in thread",
)

AT_BOOT = {
    "kill": "import time; time.sleep(60)",
    "stop": "import time; time.sleep(60)",
    "exit": "import os; os._exit(7)",
    "raise": "raise RuntimeError",
    "gil": "sum(range(10**15))",
}
APP = "from apps import *\n"


def strike(pid: int, way: str) -> None:
    os.kill(pid, signal.SIGKILL if way == "kill" else signal.SIGSTOP)


@contextlib.contextmanager
def booting(one: Server, way: str, folder: Path) -> Iterator[int]:
    (folder / "release.py").write_text(APP + AT_BOOT[way] + "\n")
    one.send(signal.SIGHUP)
    one.wait_log("reloading")
    if way in ("kill", "stop"):
        pid = one.wait_workers(3)[-1]
        strike(pid, way)
        yield pid
    else:
        yield 0


@contextlib.contextmanager
def idle(one: Server, way: str) -> Iterator[int]:
    if way in ("kill", "stop"):
        pid = one.workers[0]
        strike(pid, way)
    else:
        pid = ask(one.address, f"later {way}")["pid"]
        one.wait_log(f"later {way} pid={pid}")
    yield pid


@contextlib.contextmanager
def busy(one: Server, way: str, enough: int) -> Iterator[int]:
    """`enough` connections to make both workers busy."""
    if way in ("kill", "stop"):
        with contextlib.ExitStack() as held:
            for _ in range(enough):
                held.enter_context(hold(one.address))
            pid = one.workers[0]
            strike(pid, way)
            yield pid
        return
    line = {"exit": "die 7", "raise": "raise", "gil": "stick gil"}[way]
    with connect(one.address, line):
        yield 0


@contextlib.contextmanager
def draining(one: Server, way: str, enough: int) -> Iterator[int]:
    if way in ("kill", "stop"):
        with contextlib.ExitStack() as held:
            for _ in range(enough):
                held.enter_context(hold(one.address))
            pid = one.workers[0]
            os.kill(pid, signal.SIGTERM)
            one.wait_log(f"pid={pid} READY->DRAINING")
            strike(pid, way)
            yield pid
        return
    pid = ask(one.address, f"later {way} draining")["pid"]
    os.kill(pid, signal.SIGTERM)
    yield pid


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("state", STATES)
def test_kill_matrix(server: MakeServer, handler: str, options: dict, state: str, way: str, tmp_path: Path) -> None:
    (tmp_path / "release.py").write_text(APP)
    environ = {"PYTHONPATH": str(Path(__file__).parents[1]), "PYTHONDONTWRITEBYTECODE": "1"}
    one = server().start(f"release:{handler}", cwd=tmp_path, environ=environ, workers=2, **QUICK, **options)
    one.expect(*EXPECTED)
    how = {"booting": lambda: booting(one, way, tmp_path), "idle": lambda: idle(one, way)}
    enough = options.get("threads", 1) + 1
    how |= {"busy": lambda: busy(one, way, enough), "draining": lambda: draining(one, way, enough)}
    with how[state]() as pid:
        answers = who(collect(crowd(one.address, 30)))
    (tmp_path / "release.py").write_text(APP)  # so that whoever boots from now on can
    # What an event loop had begun when it was struck down is lost with it, and is all that may be.
    lost = sum(answer is None for answer in answers)
    if lost:
        one.wait_until(lambda: one.in_hands >= lost, f"the log tells of {lost}")
        assert handler == "act_async" or options, answers
    if pid and (way in ("kill", "stop", "exit") or (way == "gil" and state != "draining")):
        one.wait_until(lambda: is_over(pid), "it is gone")
    one.wait_workers(2)
    assert None not in who(collect(crowd(one.address, 30)))
    assert one.stop() == 0
