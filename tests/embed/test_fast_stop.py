"""A worker that has to stop at once, with requests under way: it waits for no client, needs no SIGKILL, and runs what
is to run at its end."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable

import pytest
from harness import Server, close_all, connect, read_all

from .kit import FOLDER

MakeServer = Callable[[], Server]

SERVERS = (
    "handler",
    "own",
    "uvicorn",
    "uvicorn-asyncio",
    "hypercorn",
    "hypercorn-uvloop",
    "aiohttp",
    "aiohttp-uvloop",
    "tornado",
    "tornado-uvloop",
    "trio",
    "anyio",
    "twisted",
    "gevent",
    "gevent-of-three",
)
CLEANS_UP = ("uvicorn", "hypercorn", "aiohttp", "trio", "twisted")
"""What has a clean-up of its own, which says that it has run."""

COMPLAINS = {
    "tornado": "ERROR 500 GET",
    # What asyncio's streams say of a handler that is cancelled, until Python 3.12.
    "own": r"Traceback|callback\(<Task",
}


def serve(one: Server, name: str, drain_timeout: float = 60) -> Server:
    one._launch([sys.executable, "-W", "default", "lasting.py", name, str(drain_timeout)], FOLDER, {})
    one.wait_log("all workers are ready|BOOTING->READY")
    if complaint := COMPLAINS.get(name.partition("-")[0]):
        one.expect(complaint)
    return one


def ask(one: Server, *paths: str) -> list[object]:
    """Each on a connection of its own; their requests are under way."""
    clients = [connect(one.address) for _ in paths]
    for client, path in zip(clients, paths, strict=True):
        client.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    one.wait_until(lambda: one.out.count("app: request") == len(paths), "the requests are under way")
    return clients


@pytest.mark.parametrize("name", SERVERS)
@pytest.mark.parametrize("how", ["INT", "QUIT", "TERM"])
def test_requests_are_under_way(server: MakeServer, how: str, name: str) -> None:
    """INT to the master, QUIT to the worker itself, the end of `drain_timeout`. One handler is cancelled, one catches
    that once."""
    one = serve(server(), name, 2 if how == "TERM" else 60)
    (worker,) = one.workers
    clients = ask(one, "/last", "/stubborn")
    if how == "QUIT":
        os.kill(worker, signal.SIGQUIT)
        one.wait_workers(1, gone=[worker])
    else:
        assert one.stop(getattr(signal, f"SIG{how}")) == 0
        assert one.log.splitlines()[-1].endswith("stopped: 2 connections were cut off")
    said = one.out
    close_all(clients)
    assert "SIGKILL" not in one.log
    for what in ("hook", "atexit", *["clean-up"] * name.startswith(CLEANS_UP)):
        assert said.count(f"app: {what}\n") == 1, (what, said)
    assert one.log.count("worker=0 stops, with 2 connections in progress") == 1


@pytest.mark.parametrize("name", ["handler", "uvicorn", "hypercorn", "aiohttp", "tornado"])
def test_a_thread_is_not_waited_for(server: MakeServer, name: str) -> None:
    """The loop's executor has a job that goes on."""
    one = serve(server(), name)
    clients = ask(one, "/thread")
    assert one.stop(signal.SIGINT) == 0
    close_all(clients)
    assert "SIGKILL" not in one.log
    assert one.out.count("app: hook\n") == one.out.count("app: atexit\n") == 1


@pytest.mark.parametrize(
    "name", ["uvicorn", "uvicorn-asyncio", "hypercorn", "aiohttp", "tornado", "waitress", "cheroot"]
)
def test_who_is_answered_late_was_not_in_its_hands(server: MakeServer, name: str) -> None:
    """A drain's time is nearly over when the request is."""
    one = serve(server(), name, 3)
    (client,) = ask(one, "/late")
    one.send(signal.SIGTERM)
    assert b" 200 " in read_all(client)
    assert one.wait_exit() == 0
    assert "in progress" not in one.log
    assert one.log.splitlines()[-1].endswith("stopped: 0 connections were cut off")
