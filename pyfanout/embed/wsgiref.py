"""wsgiref: WSGI, the standard library's reference. One request at a time, from the pool; needs nothing installed."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from pyfanout.embed import socketserver

if TYPE_CHECKING:
    from pyfanout.kind import WSGIApp


class Runner(socketserver.Runner):
    """No options: what one would set is set in subclasses; see `socketserver.Runner`."""

    def __init__(self, app: WSGIApp) -> None:
        super().__init__(functools.partial(_make, app))


class _Handler(WSGIRequestHandler):
    def log_request(self, *_: Any) -> None:
        """Nothing is logged per connection."""


def _make(app: WSGIApp, address: Any, *, bind_and_activate: bool) -> WSGIServer:
    server = WSGIServer(address, _Handler, bind_and_activate)
    server.set_app(app)
    return server
