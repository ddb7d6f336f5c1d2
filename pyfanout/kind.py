"""What kind of application it is, told by its shape: which of the ways to serve fits it. Never calls it.

The shapes are tried from the most particular to the most general: any callable could be a handler.
"""

from __future__ import annotations

import functools
import inspect
import sys
from enum import Enum
from typing import TYPE_CHECKING, TypeAlias

from pyfanout.errors import ConfigError

if TYPE_CHECKING:  # asyncio is the asyncio workers' affair
    import asyncio
    import socket
    import socketserver
    from collections.abc import Awaitable, Callable, Iterable
    from typing import Any

    from pyfanout.embed.runner import Runner

BlockingHandler: TypeAlias = "Callable[[socket.socket, Any], object]"
AsyncHandler: TypeAlias = "Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[object]]"
WSGIApp: TypeAlias = "Callable[[dict[str, Any], Any], Iterable[bytes]]"
ASGIApp: TypeAlias = "Callable[[Any, Any, Any], Awaitable[None]]"
SocketServer: TypeAlias = (
    "type[socketserver.BaseServer] | type[socketserver.BaseRequestHandler] | Callable[..., socketserver.BaseServer]"
)
App: TypeAlias = "BlockingHandler | AsyncHandler | WSGIApp | ASGIApp | SocketServer | Runner"


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


SERVERS = {
    "uvicorn": Kind.ASGI,
    "hypercorn": Kind.ASGI,
    "waitress": Kind.WSGI,
    "cheroot": Kind.WSGI,
    "gevent": Kind.WSGI,
    "wsgiref": Kind.WSGI,
}
"""Who speaks HTTP for an application that does not: modules of `pyfanout.embed`, each with a `Runner`. The first of a
kind is its default."""

_CLASSES = {
    "pyfanout.embed.runner.Runner": Kind.RUNNER,
    "aiohttp.web_app.Application": Kind.AIOHTTP,
    "tornado.web.Application": Kind.TORNADO,
}


def kind_of(app: object) -> Kind:
    """The kind that its shape tells. What takes two arguments, and is not known for anything else, is a handler.

    A function, a method, an object whose class has `__call__`, or a `functools.partial` of these; or one of the
    classes named in `Kind`. Raises ConfigError if it cannot be called, or is a generator, whose call would run nothing.
    """
    if known := known_class(app):
        return known
    if not callable(app):
        raise ConfigError(f"the application must be a function, not {type(app).__name__}")
    inner: Any = app
    while isinstance(inner, functools.partial):
        inner = inner.func
    # `__call__` of its class, not its own: to call a class is to make an object, whatever the object can do.
    bodies = (inner, getattr(type(inner), "__call__", None))  # noqa: B004 - wanted is the function
    if any(inspect.isgeneratorfunction(body) or inspect.isasyncgenfunction(body) for body in bodies):
        raise ConfigError(
            f"the handler {name_of(inner)} is a generator, which does not run when called: remove its yield"
        )
    if is_socketserver(inner):
        return Kind.SOCKETSERVER
    names = _positional(app)
    if any(map(inspect.iscoroutinefunction, bodies)):
        return Kind.ASGI if len(names) == 3 else Kind.COROUTINE
    return Kind.WSGI if names[:1] in (["environ"], ["env"]) or names[1:2] == ["start_response"] else Kind.HANDLER


def known_class(app: object) -> Kind | None:
    """The kind of an object whose class tells it. By name: nothing is imported to find out."""
    for base in type(app).__mro__:
        if known := _CLASSES.get(f"{base.__module__}.{base.__qualname__}"):
            return known
    return None


def is_socketserver(app: object) -> bool:
    """A class of the standard library's socketserver, or one made from it."""
    module = sys.modules.get("socketserver")  # who has such a class has imported it
    return (
        module is not None and isinstance(app, type) and issubclass(app, module.BaseServer | module.BaseRequestHandler)
    )


def _positional(app: Any) -> list[str]:
    """The names of its arguments that may be given by position."""
    try:
        parameters = inspect.signature(app).parameters.values()
    except (ValueError, TypeError):  # built in
        return []
    return [each.name for each in parameters if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)]


def name_of(app: object) -> str:
    return getattr(app, "__qualname__", type(app).__qualname__)
