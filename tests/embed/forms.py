"""The same application in the forms that applications have: each says "ok"."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import http.server
import socket
import socketserver
import ssl
import time
from collections.abc import Awaitable, Iterator
from typing import Any

from pyfanout.embed.socketserver import Runner


async def _say(send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


async def asgi(scope: Any, receive: Any, send: Any) -> None:
    assert scope["type"] == "http"
    await _say(send)


async def any_arguments(*args: Any) -> None:
    await asgi(*args)


class Plain:
    """Its `__call__` is no coroutine function, which uvicorn itself takes for ASGI 2."""

    def __call__(self, scope: Any, receive: Any, send: Any) -> Awaitable[None]:
        return asgi(scope, receive, send)


plain = Plain()
partial = functools.partial(asgi)


class Asgi2:
    def __init__(self, scope: Any) -> None:
        self.scope = scope

    async def __call__(self, receive: Any, send: Any) -> None:
        await asgi(self.scope, receive, send)


class Wsgi:
    """As in PEP 3333."""

    def __init__(self, environ: Any, start_response: Any) -> None:
        self.start = start_response

    def __iter__(self) -> Iterator[bytes]:
        self.start("200 OK", [("Content-Length", "2")])
        yield b"ok"


def unnamed(e: Any, s: Any) -> list[bytes]:
    """Taken for a handler."""
    s("200 OK", [("Content-Length", "2")])
    return [b"ok"]


def make() -> Any:
    return asgi


class Ok(http.server.BaseHTTPRequestHandler):
    def __init__(self, *args: Any, answer: bytes, **options: Any) -> None:
        self.answer = answer
        super().__init__(*args, **options)

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(self.answer)


handlers = functools.partial(Ok, answer=b"ok")
threads_and_handlers = Runner(http.server.ThreadingHTTPServer, handlers)


def make_handler(*args: Any) -> Ok:
    return Ok(*args, answer=b"ok")


function_of_handlers = Runner(http.server.HTTPServer, make_handler)


# ---- classes of servers ----------------------------------------------------------------------------------------------


class Stateful(http.server.HTTPServer):
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.state = "state"


class HasHandlers(Stateful):
    RequestHandlerClass = handlers


class Renamed(http.server.ThreadingHTTPServer):
    """It binds and listens when it is made."""

    def __init__(self, addr: Any, handler: Any) -> None:
        super().__init__(addr, handler)


class OnlyAddress(http.server.HTTPServer):
    def __init__(self, address: Any) -> None:
        super().__init__(address, handlers)


def make_server(address: Any, handler: Any, *, bind_and_activate: bool) -> Stateful:
    return Stateful(address, handler, bind_and_activate=bind_and_activate)


stateful = Runner(Stateful, handlers)
renamed = Runner(Renamed, handlers)
partial_of_servers = Runner(functools.partial(Stateful), handlers)
function_of_servers = Runner(make_server, handlers)


class Looks(http.server.HTTPServer):
    """At its listening socket, wherever it may."""

    RequestHandlerClass = handlers

    def look(self) -> None:
        sock = self.socket
        assert (sock.family, sock.type, sock.proto) == (self.address_family, socket.SOCK_STREAM, 0)
        assert sock.gettimeout() is None
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE) == socket.SOCK_STREAM
        fcntl.fcntl(self.fileno(), fcntl.F_GETFD)
        with contextlib.suppress(OSError):
            sock.getpeername()

    def server_bind(self) -> None:
        self.socket.settimeout(None)
        self.look()
        super().server_bind()
        self.look()

    def server_activate(self) -> None:
        self.look()
        super().server_activate()
        self.look()

    def get_request(self) -> Any:
        self.look()
        return super().get_request()


class LooksThreading(socketserver.ThreadingMixIn, Looks):
    daemon_threads = True


# ---- servers that do TLS themselves ----------------------------------------------------------------------------------


class Kept(Ok):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.path == "/slow":
            print("app: slow", flush=True)
            time.sleep(1.5)
        super().do_GET()


class WrapsEach(http.server.HTTPServer):
    RequestHandlerClass = functools.partial(Kept, answer=b"ok")

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain("server.pem", "server.key")

    def get_request(self) -> Any:
        conn, address = super().get_request()
        return self.context.wrap_socket(conn, server_side=True), address


class WrapsEachThreading(socketserver.ThreadingMixIn, WrapsEach):
    daemon_threads = True


class WrapsEachForking(socketserver.ForkingMixIn, WrapsEach):
    pass


class Wraps(http.server.HTTPServer):
    RequestHandlerClass = handlers

    def wrap(self) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.socket = context.wrap_socket(self.socket, server_side=True)


class WrapsFirst(Wraps):
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.wrap()


class WrapsBound(Wraps):
    def server_bind(self) -> None:
        super().server_bind()
        self.wrap()


class WrapsLast(Wraps):
    """As the HTTPSServer of Python 3.14."""

    def server_activate(self) -> None:
        super().server_activate()
        self.wrap()


class WrapsFirstThreading(socketserver.ThreadingMixIn, WrapsFirst):
    pass


class WrapsBoundThreading(socketserver.ThreadingMixIn, WrapsBound):
    pass


class WrapsLastThreading(socketserver.ThreadingMixIn, WrapsLast):
    pass
