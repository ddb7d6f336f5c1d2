"""One application for each server: `GET /` says who answers whom, `/slow` takes a while, `/long` longer than anybody
waits; `POST /` what came."""

from __future__ import annotations

import importlib
import json
import os
import signal
import socketserver
import sys
import time
import xmlrpc.server
from http.server import BaseHTTPRequestHandler, HTTPServer, ThreadingHTTPServer
from typing import Any

import pyfanout

if error := os.environ.get("REFUSE"):
    from fault_injection import refuse_to_take

    refuse_to_take(error, 5)

if how := os.environ.get("PATCH"):
    from gevent import monkey

    monkey.patch_all(**json.loads(how))

SLOW_S = 1.4
LONG_S = 20.0
GO = os.environ.get("GO")
"""If it is set, a file: `/slow` goes on until it is there, too, however slow the machine."""
LOOK_S = 0.02
PADDING = "x" * int(os.environ.get("PADDING", "0"))
"""Makes each answer longer by so many bytes."""


if grace := os.environ.get("GRACE"):
    from pyfanout.embed import runner as embedded_runner

    for module in [
        embedded_runner,
        *(each for name, each in sys.modules.items() if name.startswith("pyfanout.embed.")),
    ]:
        if hasattr(module, "GRACE_S"):
            module.GRACE_S = float(grace)


WORKER = pyfanout.current_worker()
"""Who has imported this; a child that it forks is none."""

for name in os.environ.get("IMPORTS", "").split():  # with --preload: a server that its workers need not import each
    importlib.import_module(name)


# ---- what a test may want of it besides ------------------------------------------------------------------------------


def on_sigterm(*_: Any) -> None:
    """A handler as applications have them."""
    os.write(2, f"app: SIGTERM in {os.getpid()}\n".encode())
    sys.exit(3)


def may_go() -> bool:
    """With IN_A_DRAIN in the environment not before its worker is about to leave, which applications are not shown."""
    waits = "IN_A_DRAIN" in os.environ and WORKER is not None and not WORKER._inside.leaves
    return (not GO or os.path.exists(GO)) and not waits


def slow(sleep: Any = time.sleep) -> None:
    sleep(SLOW_S)
    while not may_go():
        sleep(LOOK_S)


async def slow_on(sleep: Any) -> None:
    """The same on a loop."""
    await sleep(SLOW_S)
    while not may_go():
        await sleep(LOOK_S)


def waits_in(where: str) -> bool:
    """Whether the second worker has to hang for ever."""
    waits = os.environ.get("WAIT") == where and WORKER is not None and WORKER.generation == 2
    if waits:
        os.write(2, f"app: waiting in {where}, pid {os.getpid()}\n".encode())
    return waits


if os.environ.get("OWN") == "import":
    signal.signal(signal.SIGTERM, on_sigterm)
if waits_in("import"):
    time.sleep(1000)


def wait_in_gevent() -> None:
    """Just before the server accepts."""
    from gevent import pywsgi

    update = pywsgi.WSGIServer.update_environ

    def update_environ(self: Any) -> None:
        if waits_in("server"):
            time.sleep(1000)
        update(self)

    pywsgi.WSGIServer.update_environ = update_environ


if os.environ.get("WAIT") == "server":
    wait_in_gevent()


async def start_up() -> None:
    import asyncio

    if os.environ.get("OWN") == "loop":
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, on_sigterm)
    if waits_in("startup"):
        await asyncio.sleep(1000)


def facts(client: Any) -> bytes:
    """With FORKS in the environment its worker forks a child that stays."""
    if "FORKS" in os.environ and os.fork() == 0:
        signal.pause()
    worker = WORKER or pyfanout.current_worker()  # with --preload it was not there yet
    assert worker is not None
    client = list(client)[:2] if isinstance(client, tuple | list) else client
    known = {"pid": worker.pid, "slot": worker.slot, "generation": worker.generation, "client": client}
    if PADDING:
        known["padding"] = PADDING
    return json.dumps(known).encode()


# ---- the standard library -------------------------------------------------------------------------------------------


class Web(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.path == "/slow":
            slow()
        body = facts(self.client_address)
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Not to the log of the test."""


class Raw(socketserver.StreamRequestHandler):
    """HTTP by hand, as old as it gets."""

    def handle(self) -> None:
        asked = self.rfile.readline().split()
        if len(asked) < 2:
            return
        path = asked[1]
        while self.rfile.readline() not in (b"\r\n", b""):
            pass
        if path == b"/slow":
            slow()
        self.wfile.write(b"HTTP/1.0 200 OK\r\n\r\n" + facts(self.client_address))


class TcpServer(socketserver.TCPServer):
    RequestHandlerClass = Raw


class ForkingServer(socketserver.ForkingTCPServer):
    RequestHandlerClass = Raw


class ForkingWeb(socketserver.ForkingMixIn, HTTPServer):
    RequestHandlerClass = Web


class OneByOne(HTTPServer):
    RequestHandlerClass = Web


class Threading(ThreadingHTTPServer):
    RequestHandlerClass = Web


class Remote(xmlrpc.server.SimpleXMLRPCServer):
    def __init__(self, address: Any, bind_and_activate: bool = True) -> None:
        super().__init__(address, logRequests=False, bind_and_activate=bind_and_activate)
        self.register_function(lambda: json.loads(facts("")), "who")


# ---- WSGI and ASGI ---------------------------------------------------------------------------------------------------


def wsgi(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    if environ["PATH_INFO"] == "/slow":
        slow()
    elif environ["PATH_INFO"] == "/long":
        time.sleep(LONG_S)
    if environ["REQUEST_METHOD"] == "POST":
        start_response("200 OK", [])
        return [environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))]
    body = facts(client_of(environ))
    start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    return [body]


async def asgi(scope: Any, receive: Any, send: Any) -> None:
    import asyncio

    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            print(f"app: {message['type']}", flush=True)
            if message["type"] == "lifespan.startup":
                await start_up()
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return
    if scope["type"] == "websocket":
        await echo(receive, send)
        return
    if scope["path"] == "/slow":
        await slow_on(asyncio.sleep)
    elif scope["path"] == "/long":
        await asyncio.sleep(LONG_S)
    if scope["method"] == "POST":
        body, more = b"", True
        while more:
            message = await receive()
            more = message["type"] == "http.request" and message["more_body"]
            body += message.get("body", b"")
    else:
        body = facts(scope["client"])
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def echo(receive: Any, send: Any) -> None:
    await receive()
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        await send({"type": "websocket.send", "text": f"{os.getpid()} {message['text']}"})


async def broken_lifespan(scope: Any, receive: Any, send: Any) -> None:
    assert scope["type"] == "lifespan"
    await receive()
    await send({"type": "lifespan.startup.failed", "message": "no database"})


def client_of(environ: dict[str, Any]) -> list[Any]:
    """A client of a UNIX socket has no port, and perhaps no address."""
    port = environ.get("REMOTE_PORT", "")
    return [environ.get("REMOTE_ADDR", ""), int(port) if port.isdigit() else 0]


def make_wsgi() -> Any:
    return wsgi


def make_broken() -> Any:
    raise RuntimeError("not today")


def flask() -> Any:
    from flask import Flask, request

    app = Flask(__name__)

    @app.get("/")
    @app.get("/slow")
    def root() -> Any:
        if request.path == "/slow":
            slow()
        return app.response_class(facts(client_of(request.environ)))

    return app


def fastapi() -> Any:
    import asyncio

    from fastapi import FastAPI, Request, Response

    app = FastAPI()

    async def root(request: Request) -> Response:
        if request.url.path == "/slow":
            await slow_on(asyncio.sleep)
        return Response(facts(tuple(request.client or ())), media_type="application/json")

    app.add_route("/", root)
    app.add_route("/slow", root)
    return app


# ---- servers with applications of their own --------------------------------------------------------------------------


def aiohttp() -> Any:
    import asyncio

    from aiohttp import web

    async def root(request: web.Request) -> web.Response:
        if request.path == "/slow":
            await slow_on(asyncio.sleep)
        if request.method == "POST":
            return web.Response(body=await request.read())
        return web.Response(body=facts(request.transport.get_extra_info("peername")))

    app = web.Application()
    app.on_startup.append(lambda _: start_up())

    async def echo(request: web.Request) -> web.WebSocketResponse:
        websocket = web.WebSocketResponse()
        await websocket.prepare(request)
        async for message in websocket:
            await websocket.send_str(f"{os.getpid()} {message.data}")
        return websocket

    app.add_routes([web.get("/", root), web.get("/slow", root), web.post("/", root), web.get("/ws", echo)])
    return app


def tornado() -> Any:
    import asyncio

    from tornado import web, websocket

    class Root(web.RequestHandler):
        async def get(self) -> None:
            if self.request.path == "/slow":
                await slow_on(asyncio.sleep)
            self.write(facts(self.request.connection.context.address))

        def post(self) -> None:
            self.write(self.request.body)

    class Echo(websocket.WebSocketHandler):
        def on_message(self, message: str) -> None:
            self.write_message(f"{os.getpid()} {message}")

    return web.Application([("/ws", Echo), ("/.*", Root)])


def gevent_handler() -> Any:
    from pyfanout.embed import gevent

    def handle(conn: Any, addr: Any) -> None:
        import gevent as green

        head = b""
        while b"\r\n\r\n" not in head:
            if not (more := conn.recv(4096)):
                return
            head += more
        if b"/slow" in head:
            slow(green.sleep)
        conn.sendall(b"HTTP/1.0 200 OK\r\n\r\n" + facts(addr))

    return gevent.Runner(handle, handler=True)


def trio() -> Any:
    from pyfanout.embed import trio as embedded

    async def handle(stream: Any) -> None:
        import trio

        head = b""
        while b"\r\n\r\n" not in head:
            if not (more := await stream.receive_some()):
                return
            head += more
        if b"/slow" in head:
            await slow_on(trio.sleep)
        await stream.send_all(b"HTTP/1.0 200 OK\r\n\r\n" + facts(getattr(stream, "transport_stream", stream).peer))

    async def start(_nursery: Any) -> None:
        import trio

        if waits_in("startup"):
            await trio.sleep(1000)

    return embedded.Runner(handle, start=start)


def anyio() -> Any:
    from pyfanout.embed import anyio as embedded

    async def handle(stream: Any) -> None:
        import anyio
        from anyio.abc import SocketAttribute

        head = b""
        while b"\r\n\r\n" not in head:
            try:
                head += await stream.receive()
            except anyio.EndOfStream:
                return
        if b"/slow" in head:
            await slow_on(anyio.sleep)
        await stream.send(b"HTTP/1.0 200 OK\r\n\r\n" + facts(stream.extra(SocketAttribute.remote_address)))

    return embedded.Runner(handle)


def twisted() -> Any:
    from twisted.web import resource, server

    from pyfanout.embed import twisted as embedded

    class Root(resource.Resource):
        isLeaf = True

        def render_POST(self, request: Any) -> Any:
            return request.content.read()

        def render_GET(self, request: Any) -> Any:
            peer = request.getClientAddress()
            body = facts([peer.host, peer.port] if hasattr(peer, "host") else None)
            if request.path != b"/slow":
                return body
            from twisted.internet import reactor

            def answer() -> None:
                if may_go():
                    request.write(body)
                    request.finish()
                else:
                    reactor.callLater(LOOK_S, answer)

            reactor.callLater(SLOW_S, answer)
            return server.NOT_DONE_YET

    site = server.Site(Root())
    site.noisy = False
    return embedded.Runner(site)


# ---- on uvloop, or not -----------------------------------------------------------------------------------------------


def waitress_of_three() -> Any:
    from pyfanout.embed import waitress

    return waitress.Runner(wsgi, connection_limit=5)  # with waitress's own two descriptors


def gevent_of_three() -> Any:
    from pyfanout.embed import gevent

    return gevent.Runner(wsgi, spawn=3)


def uvicorn_on_asyncio() -> Any:
    from pyfanout.embed import uvicorn

    return uvicorn.Runner(asgi, loop="asyncio", http="h11", ws="wsproto")


def hypercorn_on_uvloop() -> Any:
    from pyfanout.embed import hypercorn

    return hypercorn.Runner(asgi, loop="uvloop")


def aiohttp_on_uvloop() -> Any:
    from pyfanout.embed import aiohttp as embedded

    return embedded.Runner(aiohttp(), loop="uvloop")


def tornado_on_uvloop() -> Any:
    from pyfanout.embed import tornado as embedded

    return embedded.Runner(tornado(), loop="uvloop")


# ---- handlers, for TLS and PROXY headers -----------------------------------------------------------------------------


def tls_handler(conn: Any, addr: Any) -> None:
    head = b""
    while b"\r\n\r\n" not in head:
        if not (more := conn.recv(4096)):
            return
        head += more
    if b"/slow" in head:
        slow()
    conn.sendall(b"HTTP/1.0 200 OK\r\n\r\n" + facts(addr))


def curt_handler(conn: Any, addr: Any) -> None:
    """It reads no more than it needs."""
    conn.recv(1024)
    conn.sendall(b"HTTP/1.0 200 OK\r\n\r\n" + facts(addr))


async def curt_coroutine(reader: Any, writer: Any) -> None:
    await reader.read(1024)
    writer.write(b"HTTP/1.0 200 OK\r\n\r\n" + facts(writer.get_extra_info("peername")))


async def rest_in_a_child() -> None:
    """A child goes on with its copy of the loop."""
    import asyncio

    loop = asyncio.get_running_loop()  # which asyncio does not find in a child
    if os.fork() == 0:
        await loop.create_future()


async def forking_coroutine(reader: Any, writer: Any) -> None:
    await rest_in_a_child()
    await curt_coroutine(reader, writer)


async def forking_asgi(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "http":
        await rest_in_a_child()
    await asgi(scope, receive, send)


def forking_asgi_on_asyncio() -> Any:
    from pyfanout.embed import uvicorn

    return uvicorn.Runner(forking_asgi, loop="asyncio")


def forking_trio() -> Any:
    from pyfanout.embed import trio as embedded

    async def handle(stream: Any) -> None:
        import trio

        if os.fork() == 0:
            await trio.sleep(600)
        await stream.receive_some()
        await stream.send_all(b"HTTP/1.0 200 OK\r\n\r\n" + facts(stream.peer))

    return embedded.Runner(handle)


def ending_trio() -> Any:
    """It answers with the exit code of a child, whose copy of the handler ends as the client has asked."""
    from pyfanout.embed import trio as embedded

    async def fork(how: bytes, pids: list[int]) -> None:
        import trio

        pids.append(os.fork())
        if pids[0] == 0:
            await trio.sleep(0.01)
            if how == b"exits":
                sys.exit(3)
            if how == b"raises":
                raise RuntimeError("as asked")

    async def handle(stream: Any) -> None:
        import trio

        pids: list[int] = []
        _, where, how = (await stream.receive_some()).split()
        if where == b"nursery":
            async with trio.open_nursery() as nursery:
                nursery.start_soon(fork, how, pids)
        else:
            await fork(how, pids)
        if pids[0] == 0:
            return
        _, status = await trio.to_thread.run_sync(os.waitpid, pids[0], 0)
        await stream.send_all(b"%d" % os.waitstatus_to_exitcode(status))

    return embedded.Runner(handle)


async def tls_coroutine(reader: Any, writer: Any) -> None:
    import asyncio

    asked = await reader.readline()
    while (await reader.readline()).strip():
        pass
    if b"/slow" in asked:
        await slow_on(asyncio.sleep)
    writer.write(b"HTTP/1.0 200 OK\r\n\r\n" + facts(writer.get_extra_info("peername")))
    await writer.drain()


# ---- what an application keeps when its request is over --------------------------------------------------------------

kept: list[Any] = []


def keeping_wsgi(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    """As tracers do."""
    kept.append(environ)
    return wsgi(environ, start_response)


class KeepingFile(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        file = self.request.makefile("rwb")
        kept.append(file)
        while file.readline() not in (b"\r\n", b""):
            pass
        file.write(b"HTTP/1.0 200 OK\r\n\r\n" + facts(self.client_address))
        file.flush()


class KeepingThreads(socketserver.ThreadingTCPServer):
    RequestHandlerClass = KeepingFile


class KeepingForks(socketserver.ForkingTCPServer):
    RequestHandlerClass = KeepingFile


def keeping_gevent_handler() -> Any:
    from pyfanout.embed import gevent

    def handle(conn: Any, addr: Any) -> None:
        file = conn.makefile("rwb")
        kept.append(file)
        while file.readline() not in (b"\r\n", b""):
            pass
        file.write(b"HTTP/1.0 200 OK\r\n\r\n" + facts(addr))
        file.flush()

    return gevent.Runner(handle, handler=True)


# ---- what does not end by itself -------------------------------------------------------------------------------------


def events() -> Any:
    """An endless stream of events at `/events`."""
    import asyncio

    from sse_starlette.sse import EventSourceResponse
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route

    async def stream(_: Request) -> Response:
        async def ticks() -> Any:
            while True:
                yield {"data": "tick"}
                await asyncio.sleep(0.1)

        return EventSourceResponse(ticks())

    async def root(request: Request) -> Response:
        return Response(facts(tuple(request.client or ())), media_type="application/json")

    return Starlette(routes=[Route("/events", stream), Route("/", root)])


def events_on_asyncio() -> Any:
    from pyfanout.embed import uvicorn

    return uvicorn.Runner(events(), loop="asyncio", http="h11")


def aiohttp_events() -> Any:
    """Endless at `/events`, until `on_shutdown`, as aiohttp's documentation has it."""
    import asyncio

    from aiohttp import web

    over = asyncio.Event()

    async def stream(request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse()
        await answer.prepare(request)
        while not over.is_set():
            await answer.write(b"tick")
            await asyncio.sleep(0.1)
        return answer

    async def tell(_: web.Application) -> None:
        over.set()

    app = aiohttp()
    app.router.add_get("/events", stream)
    app.on_shutdown.append(tell)
    return app


def with_options() -> Any:
    """A runner with options of its server."""
    kind = importlib.import_module(f"pyfanout.embed.{os.environ['SERVER']}").Runner
    app = {"aiohttp": aiohttp, "tornado": tornado}.get(os.environ["SERVER"])
    options = json.loads(os.environ["OPTIONS"])
    return kind(asgi if "lifespan" in options else wsgi if app is None else app(), **options)
