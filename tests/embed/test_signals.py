"""The application, or one of its libraries, has set its own signal handlers; or its boot hangs."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from harness import Server, children_of, is_over, kill

from .kit import SUBJECTS, Client, ask, connections, start

MakeServer = Callable[[], Server]

OF_EACH_WAY = [
    "http.server-handler",
    "http.server-threading",
    "socketserver-forking",
    "waitress",
    "cheroot",
    "gevent",
    "uvicorn",
    "uvicorn-asyncio",
    "hypercorn",
    "trio",
    "twisted",
]
"""To wait, and to hear."""


@pytest.fixture
def go(tmp_path: Path) -> Path:
    """A file: a server that has its name in the environment ends no slow request before it is there."""
    return tmp_path / "go"


def slow_request(one: Server, pid: int, go: Path, then: Callable[[], object]) -> None:
    """`then` happens while a request goes on, which ends when there is `go`. The client gets its whole answer, from
    this worker, which exits."""
    go.unlink(missing_ok=True)
    answers: list[Any] = []
    with Client(one.address) as client:
        thread = threading.Thread(target=lambda: answers.append(client.ask("/slow", close=True)))
        thread.start()
        one.wait_until(lambda: connections(one, pid) == 1, "it is there")
        then()
        go.touch()
        thread.join()
    assert answers, "the answer came whole"
    one.wait_until(lambda: is_over(pid), "the worker leaves")


@pytest.mark.parametrize("name", OF_EACH_WAY)
def test_handlers_of_its_own(server: MakeServer, name: str, go: Path) -> None:
    """The handlers raise SystemExit: the master's DRAIN needs none of them, and a signal from elsewhere drains as ever.
    They are called afterwards, and what they raise then changes nothing."""
    environ = {"OWN": "import", "GO": str(go)}
    one = start(server(), SUBJECTS[name], workers=1, threads=3, environ=environ, drain_timeout=60)
    (first,) = one.workers
    slow_request(one, first, go, lambda: one.send(signal.SIGHUP))
    one.wait_log(f"app: SIGTERM in {first}$")
    (second,) = one.wait_workers(1)
    assert ask(one.address)["generation"] == 2
    slow_request(one, second, go, lambda: kill(second, signal.SIGTERM))
    one.wait_log(f"app: SIGTERM in {second}$")
    assert ask(one.address)["generation"] == 3
    assert one.stop() == 0
    assert one.log.count("app: SIGTERM in ") == 3
    assert "exited with code" not in one.log
    assert one.in_hands == 0


@pytest.mark.parametrize("name", ["uvicorn", "uvicorn-asyncio", "hypercorn"])
def test_handlers_of_the_loop(server: MakeServer, name: str, go: Path) -> None:
    """Set in the lifespan's startup. The loop has ended when they would be called."""
    one = start(server(), SUBJECTS[name], workers=1, environ={"OWN": "loop", "GO": str(go)}, drain_timeout=60)
    (first,) = one.workers
    slow_request(one, first, go, lambda: one.send(signal.SIGHUP))
    (second,) = one.wait_workers(1)
    slow_request(one, second, go, lambda: kill(second, signal.SIGTERM))
    assert ask(one.address)["generation"] == 3
    assert "app: SIGTERM" not in one.log


BOOTS = [
    *(("import", name) for name in ("http.server-handler", "waitress", "gevent", "uvicorn")),
    ("server", "gevent"),
    *(("startup", name) for name in ("uvicorn", "uvicorn-asyncio", "hypercorn", "aiohttp", "aiohttp-uvloop", "trio")),
]


@pytest.mark.parametrize(("where", "name"), BOOTS)
def test_a_stop_is_heard_while_a_worker_boots(server: MakeServer, where: str, name: str) -> None:
    """The worker hangs there, with a handler of its own for SIGTERM."""
    one = start(server(), SUBJECTS[name], workers=1, environ={"OWN": "import", "WAIT": where}, drain_timeout=60)
    one.send(signal.SIGHUP)
    one.expect("reload aborted")
    (line,) = one.wait_log(f"app: waiting in {where}")
    assert one.stop() == 0
    one.wait_nobody()
    assert f"app: SIGTERM in {line.split()[-1]}" not in one.log
    assert "could not start" not in one.log


def test_a_child_that_serves_outlives_sigterm(server: MakeServer, go: Path) -> None:
    """A child of a forking server: a SIGTERM to all processes is sent to it, too."""
    one = start(server(), SUBJECTS["socketserver-forking"], workers=1, environ={"GO": str(go)}, drain_timeout=60)
    (pid,) = one.workers

    def tell_all() -> None:
        (child,) = one.wait_until(lambda: children_of(pid), "a child serves")
        for each in (child, pid, child):
            kill(each, signal.SIGTERM)

    slow_request(one, pid, go, tell_all)


def test_a_signal_in_the_middle_of_a_boot(server: MakeServer) -> None:
    """From elsewhere: it exits at once, and is replaced."""
    one = start(server(), SUBJECTS["gevent"], workers=1, environ={"WAIT": "import"}, drain_timeout=60)
    one.send(signal.SIGHUP)
    (line,) = one.wait_log("app: waiting in import")
    os.kill(int(line.split()[-1]), signal.SIGTERM)
    one.expect("reload aborted")
    one.wait_log("reload aborted")
    assert ask(one.address)["generation"] == 1
