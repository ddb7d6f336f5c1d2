"""Applications that answer with all that their server tells them of itself and of the client. `python identity.py NAME
FOLDER` has the plain server of that name, one process for each kind of listening socket, serve the same."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import socket
import socketserver
import sys
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer, ThreadingHTTPServer
from pathlib import Path
from typing import Any

KINDS = ("tcp", "any", "tcp6", "unix", "abstract")
"""Of listening sockets."""

HEAD = b"HTTP/1.0 200 OK\r\n\r\n"


def address_of(kind: str, folder: str) -> tuple[socket.AddressFamily, Any]:
    """Where to bind. Abstract names have no folder."""
    match kind:
        case "tcp":
            return socket.AF_INET, ("127.0.0.1", 0)
        case "any":
            return socket.AF_INET, ("0.0.0.0", 0)
        case "tcp6":
            return socket.AF_INET6, ("::1", 0)
        case "unix":
            return socket.AF_UNIX, f"{folder}/sock"
        case _:
            return socket.AF_UNIX, f"\0plain-{os.getpid()}"


def tell(address: Any) -> None:
    """The test where a plain server listens."""
    os.write(1, json.dumps(os.fsdecode(address) if isinstance(address, bytes) else address).encode() + b"\n")


def listening(kind: str, folder: str) -> socket.socket:
    family, address = address_of(kind, folder)
    sock = socket.socket(family)
    if family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    sock.bind(address)
    sock.listen(50)
    tell(sock.getsockname())
    return sock


def shown(value: Any) -> Any:
    """As JSON; of an object its class, of bytes what Python shows."""
    if isinstance(value, str | int | float | None):
        return value
    if isinstance(value, bytes):
        return repr(value)
    if isinstance(value, tuple | list):
        return [shown(each) for each in value]
    if isinstance(value, dict):
        return {shown(key): shown(each) for key, each in value.items()}
    return "socket" if isinstance(value, socket.socket) else type(value).__name__


def described(facts: dict[str, Any]) -> bytes:
    return json.dumps(shown(facts)).encode()


def of_socket(sock: Any) -> dict[str, Any]:
    found = {"sockname": sock.getsockname(), "peername": sock.getpeername()}
    return {**found, "family": int(sock.family), "type": int(sock.type)}


# ---- applications ----------------------------------------------------------------------------------------------------


def wsgi(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    known = {name: value for name, value in environ.items() if name not in os.environ}  # wsgiref shows all of it
    body = described(known)
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]


def flask() -> Any:
    from flask import Flask, request

    app = Flask(__name__)

    @app.get("/")
    def root() -> Any:
        return described({**request.environ, "remote_addr": request.remote_addr, "url": request.url})

    return app


async def asgi(scope: Any, receive: Any, send: Any) -> None:
    assert scope["type"] == "http"
    body = described(scope)
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def fastapi() -> Any:
    from fastapi import FastAPI, Request, Response

    app = FastAPI()

    async def root(request: Request) -> Response:
        facts = {name: request.scope[name] for name in ("scheme", "server", "client", "root_path", "http_version")}
        return Response(described({**facts, "url": str(request.url)}))

    app.add_route("/", root)
    return app


def aiohttp() -> Any:
    from aiohttp import web

    async def root(request: web.Request) -> web.Response:
        assert request.transport is not None
        facts = {name: getattr(request, name) for name in ("remote", "host", "scheme", "secure", "path")}
        facts["url"] = str(request.url)
        for name in ("peername", "sockname", "sslcontext"):
            facts[name] = request.transport.get_extra_info(name)
        facts["socket"] = of_socket(request.transport.get_extra_info("socket"))
        return web.Response(body=described(facts))

    app = web.Application()
    app.add_routes([web.get("/", root)])
    return app


def tornado() -> Any:
    from tornado import web

    class Root(web.RequestHandler):
        def get(self) -> None:
            context: Any = self.request.connection.context  # type: ignore[union-attr]
            facts = {name: getattr(self.request, name) for name in ("remote_ip", "protocol", "host", "host_name")}
            facts |= {name: getattr(context, name) for name in ("address", "address_family", "remote_ip", "protocol")}
            facts |= {"url": self.request.full_url(), "context": str(context)}
            facts["socket"] = of_socket(self.request.connection.stream.socket)  # type: ignore[union-attr]
            self.finish(described(facts))

    return web.Application([("/", Root)])


def site() -> Any:
    """Of twisted."""
    from twisted.web import resource, server

    class Root(resource.Resource):
        isLeaf = True

        def render_GET(self, request: Any) -> bytes:
            transport = request.channel.transport
            facts = {
                "client": repr(request.getClientAddress()),
                "host": repr(request.getHost()),
                "name": request.getRequestHostname(),
                "secure": request.isSecure(),
                "peer": repr(transport.getPeer()),
                "port": repr(transport.server.getHost()),
                "number": transport.server._realPortNumber if transport.socket.family != socket.AF_UNIX else None,
                "hostname": transport.hostname,
                "socket": of_socket(transport.socket),
            }
            return described(facts)

    made = server.Site(Root())
    made.noisy = False
    return made


class Web(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        host = self.address_string() if isinstance(self.client_address, tuple) else None
        self.wfile.write(described({**of_handler(self), "address_string": host}))


class Raw(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        while self.rfile.readline() not in (b"\r\n", b""):
            pass
        self.wfile.write(HEAD + described(of_handler(self)))


def of_handler(handler: Any) -> dict[str, Any]:
    server = handler.server
    facts = {name: getattr(server, name, None) for name in ("server_address", "server_name", "server_port")}
    facts |= {"class": type(server).__name__, "address_family": int(server.address_family)}
    facts |= {"listener": server.socket.getsockname(), "client_address": handler.client_address}
    return {**facts, "socket": of_socket(handler.request), "base_environ": getattr(server, "base_environ", None)}


class TcpServer(socketserver.TCPServer):
    RequestHandlerClass = Raw


class ForkingServer(socketserver.ForkingTCPServer):
    RequestHandlerClass = Raw


class OneByOne(HTTPServer):
    RequestHandlerClass = Web


class Threading(ThreadingHTTPServer):
    RequestHandlerClass = Web


def on_socket(conn: Any, address: Any) -> None:
    """A handler, of gevent, too."""
    head = b""
    while b"\r\n\r\n" not in head:
        head += conn.recv(4096)
    conn.sendall(HEAD + described({**of_socket(conn), "address": address}))


async def on_streams(reader: Any, writer: Any) -> None:
    await reader.readuntil(b"\r\n\r\n")
    facts = {name: writer.get_extra_info(name) for name in ("peername", "sockname", "sslcontext")}
    writer.write(HEAD + described({**facts, "socket": of_socket(writer.get_extra_info("socket"))}))
    await writer.drain()
    writer.close()


async def on_trio(stream: Any) -> None:
    async with stream:
        head = b""
        while b"\r\n\r\n" not in head:
            head += await stream.receive_some()
        await stream.send_all(HEAD + described({"socket": of_socket(stream.socket)}))


async def on_anyio(stream: Any) -> None:
    from anyio.abc import SocketAttribute

    async with stream:
        head = b""
        while b"\r\n\r\n" not in head:
            head += await stream.receive()
        known = {"class": type(stream).__name__, "abstract": [kind.__name__ for kind in type(stream).__mro__]}
        for name in ("family", "local_address", "local_port", "remote_address", "remote_port"):
            known[name] = stream.extra(getattr(SocketAttribute, name), None)
        known["socket"] = of_socket(stream.extra(SocketAttribute.raw_socket))
        await stream.send(HEAD + described(known))


# ---- runners ---------------------------------------------------------------------------------------------------------


def gevent_handler() -> Any:
    from pyfanout.embed import gevent

    return gevent.Runner(on_socket, handler=True)


def uvicorn_on_asyncio() -> Any:
    from pyfanout.embed import uvicorn

    return uvicorn.Runner(asgi, loop="asyncio", http="h11")


def hypercorn_on_uvloop() -> Any:
    from pyfanout.embed import hypercorn

    return hypercorn.Runner(asgi, loop="uvloop")


def aiohttp_on_uvloop() -> Any:
    from pyfanout.embed import aiohttp as embedded

    return embedded.Runner(aiohttp(), loop="uvloop")


def tornado_on_uvloop() -> Any:
    from pyfanout.embed import tornado as embedded

    return embedded.Runner(tornado(), loop="uvloop")


def trio() -> Any:
    from pyfanout.embed import trio as embedded

    return embedded.Runner(on_trio)


def anyio() -> Any:
    from pyfanout.embed import anyio as embedded

    return embedded.Runner(on_anyio)


def twisted() -> Any:
    from pyfanout.embed import twisted as embedded

    return embedded.Runner(site())


# ---- plain servers ---------------------------------------------------------------------------------------------------


def serve_socketserver(server: Any, kind: str, folder: str) -> None:
    family, address = address_of(kind, folder)
    kind_of_server = type(server.__name__, (server,), {"address_family": family})
    made = kind_of_server(address, server.RequestHandlerClass)
    tell(made.server_address)
    made.serve_forever()


def serve_wsgiref(kind: str, folder: str) -> None:
    from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

    family, address = address_of(kind, folder)
    server = type("WSGIServer", (WSGIServer,), {"address_family": family})(address, WSGIRequestHandler)
    server.set_app(wsgi)
    tell(server.server_address)
    server.serve_forever()


def serve_waitress(app: Any, kind: str, folder: str) -> None:
    import waitress

    waitress.serve(app, sockets=[listening(kind, folder)], _quiet=True)


def serve_cheroot(kind: str, folder: str) -> None:
    from cheroot import wsgi as cheroot

    _, address = address_of(kind, folder)
    server = cheroot.Server(address, wsgi)
    server.prepare()
    tell(server.bind_addr)
    server.serve()


def serve_gevent(kind: str, folder: str) -> None:
    from gevent import monkey

    monkey.patch_all()
    from gevent import pywsgi

    pywsgi.WSGIServer(listening(kind, folder), wsgi, log=None).serve_forever()


def serve_gevent_handler(kind: str, folder: str) -> None:
    from gevent import socket as patched
    from gevent.server import StreamServer

    plain = listening(kind, folder)
    StreamServer(patched.socket(plain.family, plain.type, 0, plain.detach()), on_socket).serve_forever()


def serve_uvicorn(app: Any, kind: str, folder: str, **options: Any) -> None:
    import uvicorn

    server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False, **options))
    server.run(sockets=[listening(kind, folder)])


def serve_hypercorn(kind: str, folder: str, loop: Any) -> None:
    from hypercorn.asyncio import serve
    from hypercorn.config import Config

    sock = listening(kind, folder)
    config = Config()
    config.bind = [f"fd://{sock.detach()}"]
    run(loop, serve(asgi, config, mode="asgi"))


def run(loop: Any, coroutine: Any) -> None:
    import asyncio

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(coroutine)


async def for_ever() -> None:
    import asyncio

    await asyncio.get_running_loop().create_future()


def serve_aiohttp(kind: str, folder: str, loop: Any) -> None:
    from aiohttp import web

    async def serve() -> None:
        runner = web.AppRunner(aiohttp(), access_log=None)
        await runner.setup()
        await web.SockSite(runner, listening(kind, folder)).start()
        await for_ever()

    run(loop, serve())


def serve_tornado(kind: str, folder: str, loop: Any) -> None:
    from tornado.httpserver import HTTPServer as TornadoServer

    async def serve() -> None:
        sock = listening(kind, folder)
        sock.setblocking(False)
        TornadoServer(tornado()).add_sockets([sock])
        await for_ever()

    run(loop, serve())


def serve_asyncio(kind: str, folder: str) -> None:
    import asyncio

    async def serve() -> None:
        await asyncio.start_server(on_streams, sock=listening(kind, folder))
        await for_ever()

    run(None, serve())


def serve_trio(kind: str, folder: str) -> None:
    import trio as plain

    async def serve() -> None:
        sock = plain.socket.from_stdlib_socket(listening(kind, folder))
        await plain.serve_listeners(on_trio, [plain.SocketListener(sock)])

    plain.run(serve)


def serve_anyio(kind: str, folder: str) -> None:
    import anyio as plain
    from anyio.abc import SocketListener

    async def serve() -> None:
        sock = listening(kind, folder)
        sock.setblocking(False)
        await (await SocketListener.from_socket(sock)).serve(on_anyio)

    plain.run(serve)


def serve_twisted(kind: str, folder: str) -> None:
    from twisted.internet import reactor

    plain: Any = reactor
    sock = listening(kind, folder)
    sock.setblocking(False)
    plain.adoptStreamPort(sock.fileno(), sock.family, site())
    plain.run()


def serve_handler(kind: str, folder: str) -> None:
    sock = listening(kind, folder)
    while True:
        conn, address = sock.accept()
        with conn:
            on_socket(conn, address)


def serve_gunicorn(kind: str, folder: str, worker_class: str) -> None:
    import gunicorn.app.base

    sock = listening(kind, folder)

    class Application(gunicorn.app.base.BaseApplication):
        def load_config(self) -> None:
            options = {"bind": f"fd://{sock.detach()}", "worker_class": worker_class, "loglevel": "error"}
            options |= {"threads": 2 if worker_class == "gthread" else 1, "control_socket_disable": True}
            for name, value in options.items():
                self.cfg.set(name, value)

        def load(self) -> Any:
            return asgi if worker_class == "asgi" else wsgi

    Application().run()


def uvloop() -> Any:
    return importlib.import_module("uvloop").new_event_loop()


PLAIN: dict[str, Callable[[str, str], None]] = {
    "handler": serve_handler,
    "coroutine": serve_asyncio,
    "socketserver": lambda *where: serve_socketserver(TcpServer, *where),
    "socketserver-handler": lambda *where: serve_socketserver(
        type("TCPServer", (socketserver.TCPServer,), {"RequestHandlerClass": Raw}), *where
    ),
    "socketserver-forking": lambda *where: serve_socketserver(ForkingServer, *where),
    "http.server": lambda *where: serve_socketserver(OneByOne, *where),
    "http.server-handler": lambda *where: serve_socketserver(
        type("HTTPServer", (HTTPServer,), {"RequestHandlerClass": Web}), *where
    ),
    "http.server-threading": lambda *where: serve_socketserver(Threading, *where),
    "wsgiref": serve_wsgiref,
    "waitress": lambda *where: serve_waitress(wsgi, *where),
    "waitress-flask": lambda *where: serve_waitress(flask(), *where),
    "cheroot": serve_cheroot,
    "gevent": serve_gevent,
    "gevent-handler": serve_gevent_handler,
    "uvicorn": lambda *where: serve_uvicorn(asgi, *where),
    "uvicorn-fastapi": lambda *where: serve_uvicorn(fastapi(), *where),
    "uvicorn-asyncio": lambda *where: serve_uvicorn(asgi, *where, loop="asyncio", http="h11"),
    "hypercorn": lambda *where: serve_hypercorn(*where, None),
    "hypercorn-uvloop": lambda *where: serve_hypercorn(*where, uvloop),
    "aiohttp": lambda *where: serve_aiohttp(*where, None),
    "aiohttp-uvloop": lambda *where: serve_aiohttp(*where, uvloop),
    "tornado": lambda *where: serve_tornado(*where, None),
    "tornado-uvloop": lambda *where: serve_tornado(*where, uvloop),
    "trio": serve_trio,
    "anyio": serve_anyio,
    "twisted": serve_twisted,
    "gunicorn-sync": lambda *where: serve_gunicorn(*where, "sync"),
    "gunicorn-gthread": lambda *where: serve_gunicorn(*where, "gthread"),
    "gunicorn-asgi": lambda *where: serve_gunicorn(*where, "asgi"),
}

IMPORTS = {
    "waitress": "waitress",
    "waitress-flask": "flask",
    "cheroot": "cheroot.wsgi",
    "uvicorn": "uvicorn",
    "uvicorn-fastapi": "fastapi",
    "hypercorn": "hypercorn.asyncio",
    "aiohttp": "aiohttp.web",
    "tornado": "tornado.web",
    "trio": "trio",
    "anyio": "anyio",
    "gunicorn": "gunicorn.app.base",
}
"""What may be imported before the fork: once for all processes."""


def serve_plainly(name: str, folder: str) -> None:
    """A process for each kind. It ends when the test closes our standard input."""
    for prefix in (name, name.partition("-")[0]):
        if prefix in IMPORTS:
            importlib.import_module(IMPORTS[prefix])
            break
    pids = []
    for kind in KINDS:
        place = f"{folder}/{kind}"
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(reader)
            os.dup2(writer, 1)
            try:
                PLAIN[name](kind, folder)
            finally:
                os._exit(1)
        os.close(writer)
        pids.append(pid)
        with open(reader) as said:
            Path(place).write_text(said.readline())
    os.write(1, b"\n")
    sys.stdin.read()
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    serve_plainly(sys.argv[1], sys.argv[2])
