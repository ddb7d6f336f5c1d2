"""Runners as users write them, good and bad; and applications that listen on a port of their own."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import time
from collections.abc import Callable
from http.server import HTTPServer, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from apps import Web, asgi, facts, wsgi

from pyfanout.embed import Runner, waitress
from pyfanout.embed.aio import AsyncioRunner
from pyfanout.embed.threaded import ThreadedRunner

HELLO = b"HTTP/1.0 200 OK\r\n\r\n"
LOOK_S = 0.02


def may_accept() -> bool:
    return Path(os.environ["GO"]).exists()


# ---- servers that do not accept --------------------------------------------------------------------------------------


class Elsewhere(ThreadedRunner):
    """Its server ignores the socket that it is given, as waitress has done."""

    def run(self, worker: Any, listener: Any, started: Callable[[], None]) -> None:
        with HTTPServer(("127.0.0.1", 0), Web) as server:
            started()
            server.serve_forever()

    def stop(self) -> None:
        """Nothing."""


class OnAUnixSocket(AsyncioRunner):
    async def run(self, worker: Any, listener: Any, started: Callable[[], None], stopping: asyncio.Event) -> None:
        await asyncio.start_unix_server(print, f"\0{os.getpid()}-elsewhere")
        started()
        await asyncio.sleep(1000)


class Nowhere(Runner):
    def serve(self, worker: Any) -> None:
        worker.listener()
        worker.on_drain = bool
        worker.ready()
        time.sleep(1000)


class WithoutProc(Elsewhere):
    """Where the container has none."""

    def run(self, worker: Any, listener: Any, started: Callable[[], None]) -> None:
        def no_proc(path: str) -> list[str]:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)

        os.listdir = no_proc  # type: ignore[assignment]  # of the types that it takes this is one
        super().run(worker, listener, started)


# ---- servers that do -------------------------------------------------------------------------------------------------


class Late(Runner):
    """It says that it is ready, and accepts later."""

    def serve(self, worker: Any) -> None:
        import select

        listener = worker.listener()
        over: list[bool] = []

        def drain() -> None:
            listener.quiet()
            over.append(True)

        worker.on_drain = drain
        worker.ready()
        while not may_accept():
            time.sleep(LOOK_S)
        while not over:
            select.select([listener], [], [])
            try:
                conn, addr = listener.accept()
            except BlockingIOError:
                continue
            with conn:
                conn.recv(1024)
                conn.sendall(HELLO + facts(addr))


class OneAfterTheOther(ThreadedRunner):
    """Its loop is made of `handle_request`, of a server that was made from a socket."""

    def run(self, worker: Any, listener: Any, started: Callable[[], None]) -> None:
        server = HTTPServer(("", 0), Web, bind_and_activate=False)
        server.socket.close()
        server.socket = listener
        self._over = False
        started()
        while not self._over:
            server.handle_request()

    def stop(self) -> None:
        self._over = True


class OwnLoop(ThreadingHTTPServer):
    """A class of servers with a loop of its own, and a way to end it."""

    RequestHandlerClass = Web
    over = False

    def serve_forever(self, poll_interval: float = 0.5) -> None:
        while not self.over:
            self.handle_request()
        print("app: the loop is over", flush=True)

    def shutdown(self) -> None:
        self.over = True


class EndlessLoop(ThreadingHTTPServer):
    """The same without: by itself it is killed. Its `timeout` is looked at, too."""

    RequestHandlerClass = Web
    waited = 0

    def serve_forever(self) -> None:  # type: ignore[override]  # as users write it
        self.timeout = 0.05
        try:
            while True:
                self.handle_request()
        finally:
            print("app: the loop is over", flush=True)

    def handle_timeout(self) -> None:
        self.waited += 1
        if self.waited == 3:
            print("app: nobody came", flush=True)


class AroundTheLoop(ThreadingHTTPServer):
    """It uses the stock loop, and does something afterwards."""

    RequestHandlerClass = Web

    def serve_forever(self, poll_interval: float = 0.5) -> None:
        super().serve_forever(poll_interval)
        print("app: the loop is over", flush=True)


class SockAccept(AsyncioRunner):
    """The loop's own `sock_accept`, which wants a socket that does not block, and says so in debug mode."""

    async def run(self, worker: Any, listener: Any, started: Callable[[], None], stopping: asyncio.Event) -> None:
        loop = asyncio.get_running_loop()
        loop.set_debug(True)
        ending = asyncio.ensure_future(stopping.wait())
        started()
        while not ending.done():
            accepting = asyncio.ensure_future(loop.sock_accept(listener))
            await asyncio.wait([accepting, ending], return_when=asyncio.FIRST_COMPLETED)
            if not accepting.done():
                accepting.cancel()
                break
            conn, addr = accepting.result()
            with conn:
                await loop.sock_recv(conn, 1024)
                await loop.sock_sendall(conn, HELLO + facts(addr))


elsewhere, on_a_unix_socket, nowhere, late = Elsewhere(), OnAUnixSocket(), Nowhere(), Late()
without_proc = WithoutProc()
one_after_the_other, sock_accept = OneAfterTheOther(), SockAccept()


# ---- a port for metrics ----------------------------------------------------------------------------------------------

_metrics: list[socket.socket] = []


def open_metrics() -> None:
    _metrics.append(socket.create_server(("127.0.0.1", 0)))
    print(f"app: metrics at {_metrics[-1].getsockname()[1]}", flush=True)


async def asgi_with_metrics(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        open_metrics()
    await asgi(scope, receive, send)


def wsgi_with_metrics() -> Any:
    open_metrics()
    return waitress.Runner(wsgi)
