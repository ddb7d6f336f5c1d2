"""wsgiref: WSGI, the standard library's reference. One request at a time, from the pool; needs nothing installed."""

from __future__ import annotations

import contextlib
import functools
import socket
import urllib.parse
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from pyfanout.embed import socketserver
from pyfanout.embed.threaded import ThreadedRunner

if TYPE_CHECKING:
    from pyfanout.kind import WSGIApp


class Runner(socketserver.Runner):
    """No options: what one would set is set in subclasses; see `socketserver.Runner`."""

    instead = ThreadedRunner.instead

    def __init__(self, app: WSGIApp) -> None:
        super().__init__(functools.partial(_make, app))


class _Handler(WSGIRequestHandler):
    def get_environ(self) -> dict[str, Any]:
        """A UNIX socket has neither a name nor a port, and both must be there (PEP 3333): the client says them. By
        HTTPS wsgiref knows the scheme."""
        environ: dict[str, Any] = super().get_environ()
        if hasattr(self.connection, "cipher"):
            environ["HTTPS"] = "on"
        if self.connection.family == socket.AF_UNIX:
            with contextlib.suppress(ValueError):  # it says something else
                said = urllib.parse.urlsplit(f"//{self.headers.get('Host', '')}")
                if said.hostname:
                    name, port = said.hostname, said.port or environ["SERVER_PORT"]
                    environ.update(SERVER_NAME=name, SERVER_PORT=str(port))
        return environ

    def log_request(self, *_: Any) -> None:
        """Nothing is logged per connection."""


def _make(app: WSGIApp, address: Any, *, bind_and_activate: bool) -> WSGIServer:
    server = WSGIServer(address, _Handler, bind_and_activate)
    server.set_app(app)
    return server
