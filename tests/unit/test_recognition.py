"""recognition: the kind of an application, whatever it is written as; what is refused, and what `--as` may say."""

from __future__ import annotations

import asyncio
import functools
import http.server
import inspect
import socket
import socketserver
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any
from unittest.mock import MagicMock
from wsgiref.simple_server import demo_app
from wsgiref.types import StartResponse, WSGIEnvironment
from wsgiref.validate import validator

import aiohttp.web
import asgiref.compatibility
import asgiref.sync
import asgiref.wsgi
import flask
import pytest
import starlette.endpoints
import starlette.middleware.cors
import tornado.web
import tornado.wsgi
import uvicorn.middleware.asgi2
import werkzeug.middleware.dispatcher
import werkzeug.middleware.proxy_fix
from fastapi import FastAPI
from werkzeug.local import LocalProxy
from werkzeug.wrappers import Request, Response

from pyfanout.embed import Runner
from pyfanout.errors import ConfigError
from pyfanout.kind import Kind
from pyfanout.recognition import doubt, is_double_callable, kind_of


class Own(Runner):
    def serve(self, worker: Any) -> None: ...


class MyServer(socketserver.TCPServer): ...


class MyHandler(http.server.BaseHTTPRequestHandler): ...


# ---- handlers ----


def handler(conn, addr): ...  # type: ignore[no-untyped-def]
def unnamed(c, a): ...  # type: ignore[no-untyped-def]
def wsgi_by_defaults(environ=None, start_response=None): ...  # type: ignore[no-untyped-def]
async def stream_by_defaults(reader=None, writer=None): ...  # type: ignore[no-untyped-def]
def with_a_default(conn, addr, server=None): ...  # type: ignore[no-untyped-def]
def by_type(a: socket.socket, b: object) -> None: ...
def by_union(a: socket.socket | None, b: object) -> None: ...
async def stream(reader, writer): ...  # type: ignore[no-untyped-def]
async def unnamed_stream(a, b): ...  # type: ignore[no-untyped-def]
async def stream_with_a_default(reader, writer, timeout=1): ...  # type: ignore[no-untyped-def]
def three(conn, addr, server): ...  # type: ignore[no-untyped-def]
async def stream_of_three(reader, writer, server): ...  # type: ignore[no-untyped-def]
def returning_stream(reader, writer) -> Awaitable[None]: ...  # type: ignore[no-untyped-def, empty-body]


class Blocking:
    def __call__(self, conn, addr): ...  # type: ignore[no-untyped-def]
    async def serve(self, reader, writer): ...  # type: ignore[no-untyped-def]
    @staticmethod
    async def static(reader, writer): ...  # type: ignore[no-untyped-def]


class Coroutine:
    async def __call__(self, reader, writer): ...  # type: ignore[no-untyped-def]
    def serve(self, conn, addr): ...  # type: ignore[no-untyped-def]


class ServesWhileMade:
    def __init__(self, conn, addr): ...  # type: ignore[no-untyped-def]


# ---- WSGI ----


def wsgi(environ, start_response): ...  # type: ignore[no-untyped-def]
def wsgi_env(env, start): ...  # type: ignore[no-untyped-def]
def wsgi_second(e, start_response): ...  # type: ignore[no-untyped-def]
def wsgi_by_type(e: WSGIEnvironment, s: StartResponse) -> list[bytes]: ...  # type: ignore[empty-body]
def wsgi_by_dict(e: dict[str, Any], s: Callable[..., Any]) -> list[bytes]: ...  # type: ignore[empty-body]
def wsgi_generator(environ, start_response):  # type: ignore[no-untyped-def]
    yield b""


def unnamed_generator(e, s):  # type: ignore[no-untyped-def]
    yield b""


class Framework:
    def __call__(self, environ, start_response): ...  # type: ignore[no-untyped-def]
    def wsgi_app(self, environ, start_response): ...  # type: ignore[no-untyped-def]


class WsgiGenerator:
    def __call__(self, environ, start_response):  # type: ignore[no-untyped-def]
        yield b""


class WsgiClass:
    """As in PEP 3333."""

    def __init__(self, environ, start_response): ...  # type: ignore[no-untyped-def]
    def __iter__(self): ...  # type: ignore[no-untyped-def]


class UnnamedWsgiClass:
    def __init__(self, e, s): ...  # type: ignore[no-untyped-def]
    def __iter__(self): ...  # type: ignore[no-untyped-def]


# ---- ASGI ----


async def asgi(scope, receive, send): ...  # type: ignore[no-untyped-def]
async def unnamed_asgi(a, b, c): ...  # type: ignore[no-untyped-def]
def returning_asgi(scope, receive, send): ...  # type: ignore[no-untyped-def]
def asgi_by_result(a, b, c) -> Awaitable[None]: ...  # type: ignore[no-untyped-def, empty-body]
def asgi2(scope): ...  # type: ignore[no-untyped-def]


class Framework3:
    async def __call__(self, scope, receive, send): ...  # type: ignore[no-untyped-def]


class Plain:
    """Its `__call__` is no coroutine function."""

    def __call__(self, scope, receive, send):  # type: ignore[no-untyped-def]
        return asgi(scope, receive, send)


class Slot:
    """As sentry_sdk's SentryAsgiMiddleware: its class has a slot where each object keeps the function."""

    __slots__ = ("__call__", "app")

    def __init__(self, app: Any, call: Any) -> None:
        self.app = app
        self.__call__ = call


class Asgi2:
    def __init__(self, scope): ...  # type: ignore[no-untyped-def]
    async def __call__(self, receive, send): ...  # type: ignore[no-untyped-def]


# ---- around others ----


def wraps(inner: Any) -> Any:
    @functools.wraps(inner)
    def wrapper(*args: Any, **options: Any) -> Any:
        return inner(*args, **options)

    return wrapper


def hides(inner: Any) -> Any:
    def wrapper(*args: Any, **options: Any) -> Any:
        return inner(*args, **options)

    return wrapper


class Middleware:
    def __init__(self, app: Any) -> None:
        self.app = app

    def __call__(self, *args: Any) -> Any:
        return self.app(*args)


class AsyncMiddleware(Middleware):
    async def __call__(self, *args: Any) -> None:
        await self.app(*args)


class UnnamedMiddleware(Middleware):
    def __call__(self, e: Any, s: Any) -> Any:
        return self.app(e, s)


def circle() -> Any:
    one = Middleware(None)
    one.app = Middleware(one)
    return one


def marked(function: Any) -> Any:
    if sys.version_info >= (3, 12):
        return inspect.markcoroutinefunction(function)
    function._is_coroutine = asyncio.coroutines._is_coroutine  # type: ignore[attr-defined]
    return function


flask_app = flask.Flask("app")


def named(value: Any) -> str:
    """For pytest, which would look into a proxy without a request."""
    return value if type(value) is str else type(value).__name__


@pytest.mark.parametrize(
    ("app", "kind"),
    [
        (handler, Kind.HANDLER),
        (unnamed, Kind.HANDLER),
        (lambda conn, addr: None, Kind.HANDLER),
        (with_a_default, Kind.HANDLER),
        (by_type, Kind.HANDLER),
        (by_union, Kind.HANDLER),
        (functools.partial(three, server=1), Kind.HANDLER),
        (functools.partial(lambda server, conn, addr: None, 1), Kind.HANDLER),
        (Blocking(), Kind.HANDLER),
        (Coroutine().serve, Kind.HANDLER),
        (wraps(handler), Kind.HANDLER),
        (ServesWhileMade, Kind.HANDLER),
        (stream, Kind.COROUTINE),
        (unnamed_stream, Kind.COROUTINE),
        (stream_with_a_default, Kind.COROUTINE),
        (functools.partial(stream_of_three, server=1), Kind.COROUTINE),
        (functools.partial(functools.partial(stream_of_three), server=1), Kind.COROUTINE),
        (returning_stream, Kind.COROUTINE),
        (wraps(stream), Kind.COROUTINE),
        (Coroutine(), Kind.COROUTINE),
        (functools.partial(Coroutine()), Kind.COROUTINE),
        (Blocking().serve, Kind.COROUTINE),
        (Blocking.static, Kind.COROUTINE),
        (marked(lambda a, b: None), Kind.COROUTINE),
        (wsgi, Kind.WSGI),
        (wsgi_env, Kind.WSGI),
        (wsgi_second, Kind.WSGI),
        (wsgi_by_type, Kind.WSGI),
        (wsgi_by_dict, Kind.WSGI),
        (wsgi_generator, Kind.WSGI),
        (unnamed_generator, Kind.WSGI),
        (Framework(), Kind.WSGI),
        (Framework().__call__, Kind.WSGI),
        (Framework().wsgi_app, Kind.WSGI),
        (WsgiGenerator(), Kind.WSGI),
        (WsgiClass, Kind.WSGI),
        (UnnamedWsgiClass, Kind.WSGI),
        (functools.partial(wsgi), Kind.WSGI),
        (functools.lru_cache(wsgi), Kind.WSGI),
        (wraps(wsgi), Kind.WSGI),
        (wraps(wraps(wsgi)), Kind.WSGI),
        (Middleware(wsgi), Kind.WSGI),
        (Middleware(Middleware(flask_app)), Kind.WSGI),
        (UnnamedMiddleware(wsgi), Kind.WSGI),
        (Slot(None, wsgi), Kind.WSGI),
        (demo_app, Kind.WSGI),
        (flask_app, Kind.WSGI),
        (flask_app.wsgi_app, Kind.WSGI),
        (LocalProxy(lambda: flask_app), Kind.WSGI),
        (werkzeug.middleware.proxy_fix.ProxyFix(flask_app), Kind.WSGI),
        (werkzeug.middleware.dispatcher.DispatcherMiddleware(flask_app), Kind.WSGI),
        (Response("ok"), Kind.WSGI),
        (asgi, Kind.ASGI),
        (unnamed_asgi, Kind.ASGI),
        (returning_asgi, Kind.ASGI),
        (asgi_by_result, Kind.ASGI),
        (marked(lambda a, b, c: None), Kind.ASGI),
        (Framework3(), Kind.ASGI),
        (Framework3().__call__, Kind.ASGI),
        (Plain(), Kind.ASGI),
        (Slot(None, asgi), Kind.ASGI),
        (functools.partial(asgi), Kind.ASGI),
        (wraps(asgi), Kind.ASGI),
        (wraps(unnamed_asgi), Kind.ASGI),
        (Middleware(asgi), Kind.ASGI),
        (AsyncMiddleware(unnamed_asgi), Kind.ASGI),
        (FastAPI(), Kind.ASGI),
        (starlette.middleware.cors.CORSMiddleware(asgi), Kind.ASGI),
        (starlette.endpoints.HTTPEndpoint, Kind.ASGI),
        (asgiref.wsgi.WsgiToAsgi(wsgi), Kind.ASGI),
        (MyServer, Kind.SOCKETSERVER),
        (socketserver.ThreadingTCPServer, Kind.SOCKETSERVER),
        (http.server.ThreadingHTTPServer, Kind.SOCKETSERVER),
        (functools.partial(MyServer, RequestHandlerClass=MyHandler), Kind.SOCKETSERVER),
        (MyHandler, Kind.SOCKETSERVER),
        (aiohttp.web.Application(), Kind.AIOHTTP),
        (tornado.web.Application(), Kind.TORNADO),
        (tornado.wsgi.WSGIContainer(wsgi), Kind.TORNADO),
        (Own(), Kind.RUNNER),
    ],
    ids=named,
)
def test_kind(app: Any, kind: Kind) -> None:
    assert kind_of(app) is kind
    assert kind_of(app, as_=kind.value) is kind
    assert not is_double_callable(app) or kind in (Kind.SOCKETSERVER, Kind.TORNADO)


def test_both_names_tell_enough_of_what_needs_no_arguments() -> None:
    assert kind_of(wsgi_by_defaults) is Kind.WSGI
    assert kind_of(stream_by_defaults) is Kind.COROUTINE


@pytest.mark.parametrize("app", [asgi2, Asgi2, functools.partial(Asgi2), uvicorn.middleware.asgi2.ASGI2Middleware])
def test_asgi_2(app: Any) -> None:
    """The last one is made with an application, and its objects are of ASGI 3."""
    if app is uvicorn.middleware.asgi2.ASGI2Middleware:
        with pytest.raises(ConfigError, match="is a class that is made with one argument: name an object of it"):
            kind_of(app)
    else:
        assert kind_of(app) is Kind.ASGI
        assert is_double_callable(app)
        assert not is_double_callable(asgiref.compatibility.guarantee_single_callable(app))


def test_asgirefs_marks() -> None:
    two, three = hides(asgi2), hides(asgi)
    two._asgi_double_callable = three._asgi_single_callable = True
    assert kind_of(two) is kind_of(three) is Kind.ASGI
    assert (is_double_callable(two), is_double_callable(three)) == (True, False)


@pytest.mark.parametrize("app", [None, 3, "app:handler", object()])
def test_what_cannot_be_called(app: object) -> None:
    with pytest.raises(ConfigError, match="the application must be a function, not"):
        kind_of(app)


def generator(conn: Any, addr: Any) -> Iterator[None]:
    yield


async def async_generator(reader: Any, writer: Any) -> AsyncIterator[None]:
    yield


def make() -> Any: ...
async def make_async() -> Any: ...
def make_with(config=None): ...  # type: ignore[no-untyped-def]
def make_by_type(config: dict | None = None, testing: bool = False): ...  # type: ignore[no-untyped-def, type-arg]
def make_by_env(env="prod", debug=False): ...  # type: ignore[no-untyped-def]
def make_by_client(client=None, debug=False): ...  # type: ignore[no-untyped-def]
def make_by_reader(reader=None, debug=False) -> Awaitable[None]: ...  # type: ignore[no-untyped-def, empty-body]
async def make_async_by_type(config: dict | None = None, testing=False): ...  # type: ignore[no-untyped-def, type-arg]
async def make_async_untyped(config=None, testing=False): ...  # type: ignore[no-untyped-def]
def make_or_serve(config=None, testing=False): ...  # type: ignore[no-untyped-def]
def one(conn): ...  # type: ignore[no-untyped-def]
async def one_stream(stream): ...  # type: ignore[no-untyped-def]
def four(a, b, c, d): ...  # type: ignore[no-untyped-def]
def three_unnamed(a, b, c): ...  # type: ignore[no-untyped-def]
def by_name(conn, addr, *, log): ...  # type: ignore[no-untyped-def]
def anything(*args): ...  # type: ignore[no-untyped-def]
async def anything_async(*args): ...  # type: ignore[no-untyped-def]
def not_async(reader, writer): ...  # type: ignore[no-untyped-def]
async def async_wsgi(environ, start_response): ...  # type: ignore[no-untyped-def]


class Made:
    def __call__(self, scope, receive, send): ...  # type: ignore[no-untyped-def]


class NotServed: ...


@Request.application
def werkzeug_request(request: Request) -> Response:
    return Response("ok")


TWO_OR_FACTORY = "takes none to two arguments, .* --factory if it returns the application, else --as wsgi, --as asgi"
FACTORY = "can be called without arguments, as a function that returns the application: --factory"
ANY = "which tells no kind: --as wsgi, --as asgi or --as handler"


@pytest.mark.parametrize(
    ("app", "reason"),
    [
        (generator, "is a generator, which does not run when called: remove its yield"),
        (functools.partial(generator), "is a generator"),
        (async_generator, "is a generator"),
        (make, FACTORY),
        (make_async, FACTORY),
        (make_with, FACTORY),
        (make_or_serve, "--factory if it returns the application, else --as wsgi, --as asgi or --as handler"),
        *((make, TWO_OR_FACTORY) for make in (make_by_type, make_by_env, make_by_client, make_by_reader)),
        (make_async_by_type, "is async and takes none to two arguments, .* --factory if it returns"),
        (make_async_untyped, "is async and takes none to two arguments, .* --factory if it returns"),
        (Coroutine, "is a class, whose objects can be called: --factory makes one"),
        (Made, "is a class, whose objects can be called: --factory makes one"),
        (Middleware, "is a class that is made with one argument: name an object of it"),
        (NotServed, "is a class that is made with no arguments, and none of those that can be served"),
        (one, "takes one argument: a handler and a WSGI application take two, an ASGI application three"),
        (functools.partial(handler, 1), "takes one argument"),
        (one_stream, "is async and takes one argument, where a coroutine handler takes a reader and a writer"),
        (three_unnamed, "takes three arguments, .* --as asgi"),
        (four, "takes 4 arguments: a handler"),
        (by_name, "takes an argument that must be given by name: a handler and"),
        (anything, f"takes any number of arguments, {ANY}"),
        (hides(wsgi), ANY),
        (hides(asgi), ANY),
        (validator(wsgi), ANY),
        (Middleware(handler), ANY),
        (circle(), ANY),
        (MagicMock(), ANY),
        (print, ANY),
        (flask.current_app, ANY),
        (werkzeug_request, f"wraps what takes one argument, {ANY}"),
        (
            anything_async,
            "is async and takes any number of arguments, which tells no kind: --as asgi or --as coroutine",
        ),
        (wraps(unnamed_stream), "--as coroutine if it returns what that returns, --as handler if it waits for it"),
        (not_async, "takes a reader, but is not async: write async def, or --as coroutine"),
        (async_wsgi, "is async, but takes the arguments of a WSGI application"),
        (Asgi2({}), "takes receive and send, as the object of an ASGI 2 application for one request: name its class"),
    ],
    ids=named,
)
def test_refused(app: Any, reason: str) -> None:
    with pytest.raises(ConfigError, match=f"^the application .* {reason}") as caught:
        kind_of(app)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("app", "kinds"),
    [
        (unnamed, ["handler", "wsgi", "coroutine"]),
        (wsgi_env, ["wsgi", "handler"]),
        (anything, ["wsgi", "asgi", "handler", "coroutine"]),
        (hides(asgi), ["wsgi", "asgi", "handler", "coroutine"]),
        (Middleware(asgi), ["asgi", "wsgi", "handler"]),
        (print, ["wsgi", "asgi", "handler", "coroutine"]),
        (werkzeug_request, ["wsgi", "asgi"]),
        (flask.current_app, ["wsgi"]),
        (anything_async, ["asgi", "coroutine"]),
        (wraps(unnamed_stream), ["coroutine", "handler"]),
        (not_async, ["coroutine", "handler"]),
        (three_unnamed, ["asgi"]),
        (make_or_serve, ["handler", "wsgi"]),
        (one, ["asgi", "tornado"]),
        (make, ["socketserver"]),
    ],
    ids=named,
)
def test_as_says_what_is_uncertain(app: Any, kinds: list[str]) -> None:
    for kind in kinds:
        assert kind_of(app, as_=kind) is Kind(kind)


@pytest.mark.parametrize(
    ("app", "kind", "reason"),
    [
        (asgi, "wsgi", "is an ASGI application, --as asgi"),
        (Plain(), "wsgi", "is an ASGI application, --as asgi"),
        (Asgi2, "wsgi", "is an ASGI application, --as asgi"),
        (unnamed_asgi, "coroutine", "is an ASGI application, --as asgi"),
        (FastAPI(), "handler", "is an ASGI application, --as asgi"),
        (flask_app, "asgi", "is a WSGI application, --as wsgi"),
        (wsgi, "handler", "is a WSGI application, --as wsgi"),
        (wsgi_generator, "coroutine", "is a WSGI application, --as wsgi"),
        (WsgiClass, "asgi", "is a WSGI application, --as wsgi"),
        (wsgi_env, "asgi", "takes two arguments, where an ASGI application takes 3"),
        (stream, "handler", "is a coroutine handler, --as coroutine"),
        (unnamed_stream, "wsgi", "is a coroutine handler, --as coroutine"),
        (anything_async, "wsgi", "is async: --as coroutine or --as asgi"),
        (handler, "asgi", "takes two arguments, where an ASGI application takes 3"),
        (handler, "aiohttp", "is not an aiohttp.web.Application"),
        (handler, "tornado", "is not a tornado.web.Application"),
        (handler, "runner", "is not a pyfanout.embed.Runner"),
        (asgi, "socketserver", "is an ASGI application, --as asgi"),
        (one, "handler", "takes one argument: a handler"),
        (make, "wsgi", FACTORY),
        (Made, "asgi", "is a class, whose objects can be called: --factory makes one"),
        (generator, "handler", "is a generator"),
        (unnamed_generator, "handler", "is a generator"),
        (async_generator, "coroutine", "is a generator"),
        (MyHandler, "handler", "is a class of socketserver, --as socketserver"),
        (aiohttp.web.Application(), "asgi", "is an aiohttp.web.Application, --as aiohttp"),
        (tornado.web.Application(), "wsgi", "is a tornado.web.Application, --as tornado"),
        (Own(), "asgi", "is a pyfanout.embed.Runner, --as runner"),
    ],
    ids=named,
)
def test_as_cannot_say_what_is_surely_wrong(app: Any, kind: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=f"^--as {kind} does not fit the application .*: it {reason}"):
        kind_of(app, as_=kind)


def test_the_server_tells_the_kind_of_what_does_not() -> None:
    assert kind_of(unnamed, server="waitress") is Kind.WSGI
    assert kind_of(hides(wsgi), server="gevent") is Kind.WSGI
    assert kind_of(hides(asgi), server="uvicorn") is Kind.ASGI
    assert kind_of(anything_async, server="hypercorn") is Kind.ASGI
    assert kind_of(handler, server="gevent") is Kind.HANDLER  # which patches it
    assert kind_of(Own(), server="uvicorn") is Kind.RUNNER
    for app, kind in ((handler, "a blocking handler"), (stream, "a coroutine handler")):
        with pytest.raises(ConfigError, match=f"^server: uvicorn is for asgi applications, and .* is {kind}$"):
            kind_of(app, server="uvicorn")


def test_only_a_handler_that_may_be_something_else_is_doubted() -> None:
    assert doubt(unnamed) == (
        ". unnamed(c, a) is taken for a handler(conn, addr), as nothing tells what it is; if it is a WSGI application:"
        " --as wsgi"
    )
    assert [doubt(app) for app in (handler, by_type, Blocking(), stream, wsgi, ServesWhileMade)] == [""] * 6


def test_nothing_is_called() -> None:
    """Nor a property that fails minded."""

    class Fragile:
        @property
        def app(self) -> Any:
            raise RuntimeError("no request")

        def __call__(self, *args: Any) -> Any:
            raise AssertionError("called")

    with pytest.raises(ConfigError, match="tells no kind"):
        kind_of(Fragile())
    with pytest.raises(ConfigError, match="tells no kind"):
        kind_of(Middleware(Fragile()))
