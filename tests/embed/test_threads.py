"""Servers whose threads are all stuck, while their loop answers pings, are found and replaced. Those whose threads are
only busy are not."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from harness import Server, connect, read_all

from .kit import ask
from .test_tls_and_proxy import secure, tls
from .threads import CHUNKS, FEW

__all__ = ["tls"]

MakeServer = Callable[[], Server]

FACTORY: dict[str, object] = {"factory": True}
SUBJECTS: dict[str, tuple[str, dict[str, object]]] = {
    "handler": ("handler", {"threads": FEW}),
    "wsgiref": ("wsgi", {"server": "wsgiref", "threads": FEW}),
    "waitress": ("waitress", FACTORY),
    "cheroot": ("cheroot", FACTORY),
    "gevent": ("gevent", FACTORY),
    "twisted": ("twisted", FACTORY),
    "uvicorn-fastapi": ("fastapi", FACTORY),
    "hypercorn-fastapi": ("fastapi", {**FACTORY, "server": "hypercorn"}),
    "uvicorn-asgiref": ("asgiref", FACTORY),
    "aiohttp-executor": ("aiohttp", FACTORY),
    "aiohttp-uvloop-executor": ("aiohttp_on_uvloop", FACTORY),
    "coroutine-executor": ("coroutine", {}),
    "trio": ("trio", FACTORY),
}
STREAMING = [name for name in SUBJECTS if "executor" not in name and name != "trio"]
"""Servers that answer from a thread in parts."""

ON_UNIX = ("handler", "waitress", "cheroot", "gevent")
"""Servers that look at a connection to see whether it moves."""

PATIENT = [name for name in SUBJECTS if "executor" in name]
"""Threads that the application may occupy for ever: that does no harm until a job waits for one."""

QUICK: dict[str, object] = {"workers": 1, "ping_interval": 0.1, "ping_timeout": 10, "timeout": 1}
LONG_S = 2.0
"""For longer than `timeout`, and a few pings."""


def start(one: Server, name: str, **options: object) -> Server:
    app, own = SUBJECTS[name]
    return one.start(f"threads:{app}", cwd=Path(__file__).parent, **{**QUICK, **own, **options})


@contextlib.contextmanager
def asking(one: Server, path: str, count: int) -> Iterator[list[bytes]]:
    """So many clients that wait; in the end, the answers that they have got."""
    answers: list[bytes] = []
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connect(one.address)) for _ in range(count)]
        for client in clients:
            client.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        yield answers
        if "is hung" not in one.log:
            with ThreadPoolExecutor(count) as readers:
                answers += readers.map(read_and_close, clients)


def read_and_close(client: socket.socket) -> bytes:
    """As soon as it has all: gunicorn waits for that, in the thread that accepts."""
    with client:
        return read_all(client)


@pytest.mark.parametrize("name", list(SUBJECTS))
def test_threads_that_are_all_stuck(server: MakeServer, name: str) -> None:
    one = start(server(), name)
    one.expect("is hung: every thread", "Python stacks at death", "Fatal Python error: Aborted", "Aborted", "Traceback")
    (pid,) = one.workers
    threads = 1 if name == "uvicorn-asgiref" else FEW
    with asking(one, "/stick", threads + 1):  # one more waits
        one.wait_log("app: stuck", threads)
        one.wait_log(rf"pid={pid} is hung: every thread has been in the same request for 1\.\d s")
        if name != "gevent":  # whose greenlets are not on the stack of their thread
            one.wait_log("in stick")
    assert ask(one.address)["generation"] == 2


@pytest.mark.parametrize(
    ("name", "unix"), [*((name, False) for name in STREAMING), *((name, True) for name in ON_UNIX)]
)
def test_threads_that_are_all_busy_sending(server: MakeServer, name: str, unix: bool) -> None:
    """For several times `timeout`; and then idle for as long."""
    bind = f"unix:@{os.getpid()}-sending" if unix else "127.0.0.1:0"
    one = start(server(), name, ping_interval=0.2, bind=bind)
    count = 2 if name == "uvicorn-asgiref" else FEW
    with asking(one, "/stream", count) as answers:
        pass
    assert [answer.count(b"#") for answer in answers] == [100 * CHUNKS] * count
    if unix:
        return
    time.sleep(LONG_S)
    assert ask(one.address)["generation"] == 1
    assert "is hung" not in one.log


@pytest.mark.parametrize("name", ["handler", "cheroot"])
def test_threads_that_are_all_busy_sending_in_secret(
    server: MakeServer, tls: dict[str, object], tmp_path: Path, name: str
) -> None:
    """To a proxy that speaks TLS on a UNIX socket: the kernel does not know how many bytes have moved."""
    one = start(server(), name, bind=f"unix:@{os.getpid()}-secret", **tls)
    with contextlib.ExitStack() as stack, ThreadPoolExecutor(FEW) as readers:
        clients = [stack.enter_context(secure(one.address, tmp_path)) for _ in range(FEW)]
        for client in clients:
            client.sendall(b"GET /stream HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        assert [answer.count(b"#") for answer in readers.map(read_and_close, clients)] == [100 * CHUNKS] * FEW
    assert "is hung" not in one.log


@pytest.mark.parametrize("name", [name for name in SUBJECTS if name != "uvicorn-asgiref"])
def test_one_thread_that_is_free_is_enough(server: MakeServer, name: str) -> None:
    """And all may be busy while no job waits for one."""
    one = start(server(), name)
    count = FEW if name in PATIENT else FEW - 1
    with asking(one, "/stick", count):
        one.wait_log("app: stuck", count)
        time.sleep(LONG_S)
        assert ask(one.address, "/let-go")["generation"] == 1
    assert "is hung" not in one.log


def test_a_forking_server_that_is_full_keeps_nobody_waiting(server: MakeServer) -> None:
    """The other worker gets new connections."""
    options = {**QUICK, "workers": 2, "policy": "round-robin", "ping_interval": 0}
    one = server().start("threads:Forking", cwd=Path(__file__).parent, **options)
    held = [connect(one.address) for _ in range(79)]  # one takes 40
    for client in held:
        client.sendall(b"hold\n")
    for client in held:
        assert client.recv(5) == b"held\n"
    assert ask(one.address)["generation"] == 1
    for client in held:
        client.sendall(b"go on\n")
    for client in held:
        read_all(client)
        client.close()


def test_a_forking_server_that_is_full(server: MakeServer) -> None:
    """The worker takes no more until a child has ended, answers pings, and exits when it is told to."""
    one = server().start("threads:Forking", cwd=Path(__file__).parent, **{**QUICK, "ping_timeout": 1})
    held = [connect(one.address) for _ in range(40)]
    for client in held:
        client.sendall(b"hold\n")
    for client in held:
        assert client.recv(5) == b"held\n"
    with connect(one.address) as waiting:
        waiting.sendall(b"GET / HTTP/1.0\r\n")
        waiting.settimeout(LONG_S * 2)
        with pytest.raises(TimeoutError):
            waiting.recv(1)
        waiting.settimeout(20)
        held[0].sendall(b"go on\n")
        assert b'"generation": 1' in read_all(held[0])
        assert b'"generation": 1' in read_all(waiting)
    with connect(one.address) as last:  # it is full once more
        last.sendall(b"hold\n")
        assert last.recv(5) == b"held\n"
        one.send(signal.SIGTERM)
        one.wait_log("READY->DRAINING|stopping")
        for client in [*held[1:], last]:
            client.sendall(b"go on\n")
            assert b'"generation": 1' in read_all(client)
    assert one.wait_exit() == 0
    assert "is hung" not in one.log
