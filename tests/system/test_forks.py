"""A blocking handler that forks: no thread of pyfanout's is there at that moment, and all are there again afterwards.

From Python 3.12 on os.fork warns in a process with several threads, and `Server` does not pass a log with a warning.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import Server, connect, is_over, read_all, read_line, wait_until

MakeServer = Callable[[], Server]

COUNTED = """
import os

def threads():
    return len(os.listdir("/proc/self/task"))

counted = []
# It is called after those that a worker registers, because it is there before them: the application is preloaded.
os.register_at_fork(before=lambda: counted.append(threads()))
"""

APP = (
    COUNTED
    + """
import multiprocessing, signal, subprocess, time
import pyfanout

def by_fork():
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)

def by_multiprocessing():
    child = multiprocessing.get_context("fork").Process(target=os.getpid)
    child.start()
    child.join()

def by_subprocess():
    subprocess.run(["true"], preexec_fn=os.getpid)

def handler(conn, addr):
    before = threads()
    word = conn.recv(100).decode().strip()
    if word == "threads":
        conn.sendall(b"%d\\n" % before)
        return
    counted.clear()
    for _ in range(5):
        globals()[word]()
    end = time.monotonic() + 10
    while threads() < before and time.monotonic() < end:
        time.sleep(0.001)
    conn.sendall(b"%s %s\\n" % (str(max(counted)).encode(), b"back" if threads() >= before else b"lost"))
    if conn.recv(1) == b"d":
        while not pyfanout.current_worker().draining:
            time.sleep(0.001)
        conn.sendall(b"drains\\n")

def hooked(worker):
    os.register_at_fork(after_in_parent=lambda: None)
"""
)
"""A client that keeps its connection after the answer, or that sends no PROXY header, makes a thread necessary."""

WAYS = ["by_fork", "by_multiprocessing", "by_subprocess"]
HEADER = "PROXY TCP4 127.0.0.9 127.0.0.1 9 9\r\n"


@pytest.fixture(params=["plain", "proxied"])
def one(server: MakeServer, tmp_path: Path, request: pytest.FixtureRequest) -> Server:
    (tmp_path / "app.py").write_text(APP)
    options = {"proxy_protocol": True} if request.param == "proxied" else {}
    return server().start("app:handler", cwd=tmp_path, workers=1, preload=True, **options)


@pytest.fixture
def header(request: pytest.FixtureRequest) -> str:
    return HEADER if "proxied" in request.node.name else ""


def lingering(one: Server, header: str) -> tuple[list[socket.socket], int]:
    """Clients for which the worker has its threads, and how many a handler finds then."""
    stay = [connect(one.address)] if header else []
    wanted = 4 if header else 3

    def found() -> int:
        client = connect(one.address, f"{header}threads")
        stay.append(client)
        return int(read_line(client))

    wait_until(lambda: found() >= wanted, f"{wanted} threads")
    return stay, wanted


def test_none_is_there_when_a_handler_forks(one: Server, header: str) -> None:
    for way in WAYS:
        stay, _ = lingering(one, header)
        with connect(one.address, f"{header}{way}") as client:
            assert read_line(client) == b"1 back\n", way
            client.sendall(b".")
            assert read_all(client) == b""
        for each in stay:
            each.close()


def test_the_master_is_heard_after_a_fork(one: Server, header: str) -> None:
    """In the handler that has forked, and while it goes on: it is told to leave."""
    with connect(one.address, f"{header}by_fork") as client:
        assert read_line(client) == b"1 back\n"
        client.sendall(b"d")
        one.send(signal.SIGHUP)
        assert read_line(client) == b"drains\n"
    one.wait_log("reload")


def test_it_leaves_without_a_master_after_a_fork(server: MakeServer, tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(APP)
    one = server().start("app:handler", cwd=tmp_path, workers=1, preload=True, drain_timeout=0.2)
    (worker,) = one.workers
    with connect(one.address, "by_fork") as client:
        assert read_line(client) == b"1 back\n"
        one.expect("the master has exited and 0.2 s are over")
        one.send(signal.SIGKILL)
        assert one.wait_exit() == -signal.SIGKILL
        one.wait_until(lambda: is_over(worker), "it has given up")


# ---- servers ---------------------------------------------------------------------------------------------------------

SERVERS = (
    COUNTED
    + """
import asyncio, socketserver, time

def fork():
    if (pid := os.fork()) == 0:
        os._exit(0)
    os.waitpid(pid, 0)

class Handler(socketserver.StreamRequestHandler):
    def handle(self):
        word = self.rfile.readline().strip()
        if word == b"fork":
            before = threads()
            fork()
            while threads() < before:
                time.sleep(0.001)
            assert before == 2
        self.wfile.write(b"%d" % counted[-1])

class Forking(socketserver.ForkingTCPServer):
    RequestHandlerClass = Handler

async def alone(scope, receive, send):
    if scope["type"] == "http":
        os.write(2, b"app: begun\\n")
        while threads() == 1:
            await asyncio.sleep(0.001)
        fork()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"1")]})
        await send({"type": "http.response.body", "body": b"%d" % counted[-1]})
"""
)
"""An answer has the number of threads at the last fork."""


@pytest.fixture
def begin(server: MakeServer, tmp_path: Path) -> Callable[..., Server]:
    (tmp_path / "servers.py").write_text(SERVERS)
    return lambda app, **options: server().start(f"servers:{app}", cwd=tmp_path, workers=1, preload=True, **options)


def threads_of(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/task"))


def test_a_server_forks_while_a_client_sends_no_header(begin: Callable[..., Server]) -> None:
    one = begin("Forking", proxy_protocol=True)
    (worker,) = one.workers
    with connect(one.address):
        one.wait_until(lambda: threads_of(worker) == 2, "the thread that ends its preamble")
        assert read_all(connect(one.address, f"{HEADER}count")) == b"1"
        one.wait_until(lambda: threads_of(worker) == 2, "it is there again")


def test_its_child_forks(begin: Callable[..., Server]) -> None:
    """It has a thread that waits for its worker's drain."""
    one = begin("Forking")
    assert read_all(connect(one.address, "fork")) == b"1"


def test_a_request_forks_when_the_master_is_gone(begin: Callable[..., Server]) -> None:
    one = begin("alone", drain_timeout=60)
    (worker,) = one.workers
    with connect(one.address, "GET / HTTP/1.0\r\n\r") as client:
        one.wait_log("app: begun")
        one.send(signal.SIGKILL)
        assert one.wait_exit() == -signal.SIGKILL
        assert read_all(client).endswith(b"\r\n\r\n1")
    one.wait_until(lambda: is_over(worker), "it has drained")


# ---- coroutines ------------------------------------------------------------------------------------------------------

COROUTINES = """
import asyncio, os, sys

async def child(how, loop):
    if how in ("runs", "runs on"):
        asyncio.run(asyncio.sleep(0.001))
        if how == "runs":
            os._exit(5)
    if how != "returns":
        waits = loop.create_future()
        loop.call_later(0.001, waits.set_result, None)
        await waits
    if how == "exits":
        sys.exit(3)
    if how == "raises":
        raise RuntimeError("as asked")

async def code_of(how):
    loop = asyncio.get_running_loop()  # which asyncio does not find in a child
    pid = os.fork()
    if pid == 0:
        await child(how, loop)
        return b""
    while not (found := os.waitpid(pid, os.WNOHANG))[0]:
        await asyncio.sleep(0.001)
    return b"%d" % os.waitstatus_to_exitcode(found[1])

async def coroutine(reader, writer):
    writer.write(await code_of((await reader.readline()).decode().strip()))

async def asgi(scope, receive, send):
    if scope["type"] == "http":
        body = await code_of(scope["path"][1:])
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
        await send({"type": "http.response.body", "body": body})

def on_asyncio():
    from pyfanout.embed import uvicorn
    return uvicorn.Runner(asgi, loop="asyncio")

def on_uvloop():
    from pyfanout.embed import uvicorn
    return uvicorn.Runner(asgi, loop="uvloop")

def on_aiohttp():
    from aiohttp import web

    async def answer(request):
        return web.Response(body=await code_of(request.path[1:]))

    app = web.Application()
    app.add_routes([web.get("/{how}", answer)])
    return app

def on_tornado():
    from tornado import web

    class Answer(web.RequestHandler):
        async def get(self, how):
            self.write(await code_of(how))

    return web.Application([("/(.*)", Answer)])
"""
"""The child of a coroutine: what it does, and what it answers with; its parent's answer is the child's exit code."""

ENDS = {"returns": 0, "waits": 0, "runs": 5, "runs on": 0}


@pytest.fixture(params=[{}, {"preload": True}], ids=["loaded", "preloaded"])
def coroutines(server: MakeServer, tmp_path: Path, request: pytest.FixtureRequest) -> Callable[..., Server]:
    """`preload`: asyncio's own hooks for a fork are there before the worker's."""
    (tmp_path / "app.py").write_text(COROUTINES)

    def start(app: str, *, one: Server | None = None, **options: object) -> Server:
        return (one or server()).start(f"app:{app}", cwd=tmp_path, workers=1, **request.param, **options)

    return start


@pytest.mark.parametrize(("how", "code"), [*ENDS.items(), ("exits", 3), ("raises", 1)])
def test_a_child_of_a_coroutine(server: MakeServer, coroutines: Callable[..., Server], how: str, code: int) -> None:
    """It ends with its copy of the handler, and says nothing. It may run a loop of its own before that."""
    one = server()
    if how == "raises":
        one.expect("the handler raised an exception in a child that it forked", "Traceback", "RuntimeError: as asked")
    coroutines("coroutine", one=one)
    for _ in range(2):
        assert read_all(connect(one.address, how)) == b"%d" % code
    assert one.stop() == 0


@pytest.mark.parametrize("name", ["asyncio", "uvloop", "aiohttp", "tornado"])
def test_a_child_of_a_request(server: MakeServer, coroutines: Callable[..., Server], name: str) -> None:
    """The same in servers on an asyncio loop."""
    if name in ("aiohttp", "tornado") and sys.version_info >= (3, 14):
        pytest.skip("it starts its task eagerly, or makes futures, in a step of the child, which has no running loop")
    one = server()
    if name == "tornado":
        one.expect("DeprecationWarning: There is no current event loop")  # Python 3.12 on: the same, and makes one
    coroutines(f"on_{name}", one=one, factory=True)
    for how in ("returns", "waits", "runs"):
        answer = read_all(connect(one.address, f"GET /{how} HTTP/1.0\r\n\r"))
        assert answer.endswith(b"\r\n\r\n%d" % ENDS[how]), (how, answer)
    assert one.stop() == 0
