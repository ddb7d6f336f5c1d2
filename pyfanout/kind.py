"""The kinds of applications: which ways to serve there are, what each is called, and which server is for which.

Which one an application is of: see `recognition`.
"""

from __future__ import annotations

import sys
from enum import Enum
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:  # asyncio is the asyncio workers' affair
    import asyncio
    import socket
    import socketserver
    from collections.abc import Awaitable, Callable, Iterable
    from typing import Any

BlockingHandler: TypeAlias = "Callable[[socket.socket, Any], object]"
AsyncHandler: TypeAlias = "Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[object]]"
WSGIApp: TypeAlias = "Callable[[dict[str, Any], Any], Iterable[bytes]]"
ASGIApp: TypeAlias = "Callable[[Any, Any, Any], Awaitable[None]]"
SocketServer: TypeAlias = (
    "type[socketserver.BaseServer] | type[socketserver.BaseRequestHandler] | Callable[..., socketserver.BaseServer]"
)


class Kind(Enum):
    """How an application is served. The values are what `--as` takes."""

    HANDLER = "handler"
    """`handler(conn, addr)`, one at a time on each thread."""
    COROUTINE = "coroutine"
    """`async def handler(reader, writer)`, many at once on a loop."""
    SOCKETSERVER = "socketserver"
    """A class of servers, or of request handlers, of the standard library's socketserver and http.server."""
    WSGI = "wsgi"
    """`app(environ, start_response)`: Flask, Django, Bottle, Falcon, Pyramid."""
    ASGI = "asgi"
    """`async def app(scope, receive, send)`: FastAPI, Starlette, Django, Quart, Litestar."""
    AIOHTTP = "aiohttp"
    """An `aiohttp.web.Application`."""
    TORNADO = "tornado"
    """A `tornado.web.Application`."""
    RUNNER = "runner"
    """An `embed.Runner`, which says itself how it serves."""


_CLASSES = {
    "pyfanout.embed.runner.Runner": Kind.RUNNER,
    "aiohttp.web_app.Application": Kind.AIOHTTP,
    "tornado.web.Application": Kind.TORNADO,
    "tornado.wsgi.WSGIContainer": Kind.TORNADO,  # a callback of its server
    "webob.dec.wsgify": Kind.WSGI,  # its instances take a request, too, and so do not tell
}


def known_class(app: object) -> Kind | None:
    """The kind of an object whose class tells it. By name: nothing is imported to find out."""
    for base in type(app).__mro__:
        if known := _CLASSES.get(f"{base.__module__}.{base.__qualname__}"):
            return known
    return None


def is_socketserver(app: object) -> bool:
    """A class of the standard library's socketserver, or one made from it."""
    module = sys.modules.get("socketserver")  # an application with such a class has imported it
    return (
        module is not None and isinstance(app, type) and issubclass(app, module.BaseServer | module.BaseRequestHandler)
    )


def name_of(app: object) -> str:
    """What a function, a class or a method is called; of another object, and of a partial, its class."""
    return getattr(app, "__qualname__", type(app).__qualname__)
