"""Applications that serve with threads, FEW of them: `/stick` keeps one for ever, `/stream` sends a little at a time,
for longer than `timeout`, and `/` says who answers."""

from __future__ import annotations

import asyncio
import json
import os
import socketserver
import threading
import time
from collections.abc import Iterator
from typing import Any

import pyfanout

FEW = 4
CHUNKS = 25
PAUSE_S = 0.1

WORKER = pyfanout.current_worker()
LET_GO = threading.Event()


def stick() -> bytes:
    os.write(2, b"app: stuck\n")  # in one piece
    LET_GO.wait()
    return b""


def facts() -> bytes:
    assert WORKER is not None
    return json.dumps({"pid": WORKER.pid, "generation": WORKER.generation}).encode()


def answer(path: str) -> bytes:
    if path == "/stick":
        return stick()
    if path == "/let-go":
        LET_GO.set()
    return facts()


def stream() -> Iterator[bytes]:
    for _ in range(CHUNKS):
        time.sleep(PAUSE_S)
        yield b"#" * 100


def wsgi(environ: dict[str, Any], start_response: Any) -> Any:
    path = environ["PATH_INFO"]
    start_response("200 OK", [])
    return stream() if path == "/stream" else [answer(path)]


def handler(conn: Any, _addr: Any) -> None:
    head = b""
    while b"\r\n\r\n" not in head:
        if not (more := conn.recv(4096)):
            return
        head += more
    path = head.split()[1].decode()
    for chunk in wsgi({"PATH_INFO": path}, lambda *_: conn.sendall(b"HTTP/1.0 200 OK\r\n\r\n")):
        conn.sendall(chunk)


def waitress() -> Any:
    from pyfanout.embed import waitress as embedded

    return embedded.Runner(wsgi, threads=FEW)


def cheroot() -> Any:
    from pyfanout.embed import cheroot as embedded

    return embedded.Runner(wsgi, numthreads=FEW)


def gevent() -> Any:
    """Greenlets, FEW at a time."""
    from pyfanout.embed import gevent as embedded

    embedded.patch()
    return embedded.Runner(wsgi, spawn=FEW)


def twisted() -> Any:
    from twisted.internet import reactor
    from twisted.web import server
    from twisted.web import wsgi as web

    from pyfanout.embed import twisted as embedded

    threads: Any = reactor.getThreadPool()  # type: ignore[attr-defined]
    threads.adjustPoolsize(0, FEW)
    site = server.Site(web.WSGIResource(reactor, threads, wsgi))
    site.noisy = False
    return embedded.Runner(site)


def fastapi() -> Any:
    """With `def` endpoints."""
    import contextlib

    import anyio.to_thread
    from fastapi import FastAPI, Response
    from fastapi.responses import StreamingResponse

    @contextlib.asynccontextmanager
    async def few(_app: Any) -> Any:
        anyio.to_thread.current_default_thread_limiter().total_tokens = FEW
        yield

    app = FastAPI(lifespan=few)
    app.get("/stream")(lambda: StreamingResponse(stream()))
    app.get("/{path}")(lambda path: Response(answer(f"/{path}")))
    app.get("/")(lambda: Response(facts()))
    return app


async def answer_from_executor(path: str) -> bytes:
    """The loop's own, which has FEW threads."""
    from concurrent.futures import ThreadPoolExecutor

    loop = asyncio.get_running_loop()
    if not hasattr(loop, "few"):
        loop.set_default_executor(ThreadPoolExecutor(FEW))
        loop.few = True  # type: ignore[attr-defined]
    return answer(path) if path == "/let-go" else await loop.run_in_executor(None, answer, path)


def aiohttp() -> Any:
    from aiohttp import web

    async def root(request: web.Request) -> web.Response:
        return web.Response(body=await answer_from_executor(request.path))

    app = web.Application()
    app.add_routes([web.get("/{path:.*}", root)])
    return app


def aiohttp_on_uvloop() -> Any:
    from pyfanout.embed import aiohttp as embedded

    return embedded.Runner(aiohttp(), loop="uvloop")


async def coroutine(reader: Any, writer: Any) -> None:
    path = (await reader.readline()).split()[1].decode()
    while (await reader.readline()).strip():
        pass
    writer.write(b"HTTP/1.0 200 OK\r\n\r\n" + await answer_from_executor(path))


def asgiref() -> Any:
    """All that is thread-sensitive has one thread."""
    from asgiref.wsgi import WsgiToAsgi

    return WsgiToAsgi(wsgi)


def trio() -> Any:
    from pyfanout.embed import trio as embedded

    async def handle(stream: Any) -> None:
        import trio

        trio.to_thread.current_default_thread_limiter().total_tokens = FEW
        head = b""
        while b"\r\n\r\n" not in head:
            if not (more := await stream.receive_some()):
                return
            head += more
        body = await trio.to_thread.run_sync(answer, head.split()[1].decode())
        await stream.send_all(b"HTTP/1.0 200 OK\r\n\r\n" + body)

    return embedded.Runner(handle)


class Forking(socketserver.ForkingTCPServer):
    """Its 40 children each keep a client until that has said something."""

    class RequestHandlerClass(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            if self.rfile.readline() == b"hold\n":
                self.wfile.write(b"held\n")
                self.rfile.readline()
            self.wfile.write(b"HTTP/1.0 200 OK\r\n\r\n" + facts())
