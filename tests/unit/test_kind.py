"""kind: what an application is, by its shape."""

from __future__ import annotations

import functools
import http.server
import socketserver
from typing import Any

import aiohttp.web
import flask
import pytest
import tornado.web
from fastapi import FastAPI

from pyfanout.embed import Runner, runner_of
from pyfanout.errors import ConfigError, LoadError
from pyfanout.kind import SERVERS, Kind, kind_of


class Own(Runner):
    def serve(self, worker: Any) -> None: ...


class Missing(Own):
    needs = ("no_such_server",)
    extra = "asgi"


class MyServer(socketserver.TCPServer): ...


class MyHandler(http.server.BaseHTTPRequestHandler): ...


def wsgi(environ: Any, start_response: Any) -> Any: ...


def wsgi_too(env: Any, start: Any) -> Any: ...


async def asgi(scope: Any, receive: Any, send: Any) -> None: ...


async def stream(reader: Any, writer: Any) -> None: ...


def handler(conn: Any, addr: Any) -> None: ...


class Framework:
    def __call__(self, environ: Any, start_response: Any) -> Any: ...


class Framework3:
    async def __call__(self, scope: Any, receive: Any, send: Any) -> None: ...


@pytest.mark.parametrize(
    ("app", "kind"),
    [
        (handler, Kind.HANDLER),
        (lambda conn, addr: None, Kind.HANDLER),
        (stream, Kind.COROUTINE),
        (wsgi, Kind.WSGI),
        (wsgi_too, Kind.WSGI),
        (Framework(), Kind.WSGI),
        (Framework().__call__, Kind.WSGI),
        (functools.partial(wsgi), Kind.WSGI),
        (flask.Flask("app"), Kind.WSGI),
        (asgi, Kind.ASGI),
        (Framework3(), Kind.ASGI),
        (FastAPI(), Kind.ASGI),
        (MyServer, Kind.SOCKETSERVER),
        (socketserver.ThreadingTCPServer, Kind.SOCKETSERVER),
        (http.server.ThreadingHTTPServer, Kind.SOCKETSERVER),
        (functools.partial(MyServer, RequestHandlerClass=MyHandler), Kind.SOCKETSERVER),
        (MyHandler, Kind.SOCKETSERVER),
        (aiohttp.web.Application(), Kind.AIOHTTP),
        (tornado.web.Application(), Kind.TORNADO),
        (Own(), Kind.RUNNER),
    ],
)
def test_kind(app: Any, kind: Kind) -> None:
    assert kind_of(app) is kind


@pytest.mark.parametrize("server", list(SERVERS))
@pytest.mark.parametrize("kind", [Kind.WSGI, Kind.ASGI])
def test_a_server_serves_its_kind_only(server: str, kind: Kind) -> None:
    app: Any = asgi if kind is Kind.ASGI else wsgi
    if SERVERS[server] is kind:
        assert type(runner_of(app, kind, server)).__module__ == f"pyfanout.embed.{server}"
    else:
        with pytest.raises(ConfigError, match=f"server: {server} does not serve {kind.value} applications; .* do"):
            runner_of(app, kind, server)


def test_the_defaults() -> None:
    assert type(runner_of(asgi, Kind.ASGI, "auto")).__module__ == "pyfanout.embed.uvicorn"
    assert type(runner_of(wsgi, Kind.WSGI, "auto")).__module__ == "pyfanout.embed.waitress"


def test_what_is_missing_is_named_with_its_extra() -> None:
    with pytest.raises(LoadError) as caught:
        runner_of(Missing(), Kind.RUNNER, "auto")
    assert str(caught.value) == "no_such_server is not installed: pip install 'pyfanout[asgi]'"
