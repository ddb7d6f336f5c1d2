"""What makes a socketserver of what an application has: a class of servers or of request handlers, or a function."""

from __future__ import annotations

import http.server
import inspect
import socketserver
from collections.abc import Callable
from typing import Any

from pyfanout.embed.socketserver_handlers import is_a
from pyfanout.errors import ConfigError
from pyfanout.shape import innermost


def factory(server: Any, handler: Any) -> Callable[[Any], Any]:
    """What makes the server for an address."""
    if handler is None and is_a(server, socketserver.BaseRequestHandler):
        speaks_http = is_a(server, http.server.BaseHTTPRequestHandler)
        server, handler = http.server.HTTPServer if speaks_http else socketserver.TCPServer, server
    if is_a(server, socketserver.UDPServer):
        raise ConfigError(f"{innermost(server).__name__} serves datagrams; pyfanout passes connections")
    is_class = isinstance(server, type) and issubclass(server, socketserver.BaseServer)
    if is_class and handler is None:
        found = getattr(server, "RequestHandlerClass", None)
        if _takes(server, "address", found):
            handler = found
        if handler is None and not _takes(server, "address"):
            raise ConfigError(
                f"{server.__name__} needs its class of request handlers: "
                f"pyfanout.embed.socketserver.Runner({server.__name__}, MyHandler), or an attribute RequestHandlerClass"
            )
    given = () if handler is None else (handler,)
    return lambda address: (_made if is_class else _call)(server, address, *given)


def _takes(server: Any, *arguments: Any, **named: Any) -> bool:
    try:
        inspect.signature(server).bind(*arguments, **named)
    except TypeError:
        return False
    except ValueError:  # it does not tell
        pass
    return True


def _call(server: Any, *arguments: Any) -> Any:
    return server(*arguments, bind_and_activate=False)


def _made(kind: Any, *arguments: Any) -> Any:
    """It may listen when it is made, as by itself it would: that has been done."""
    options = {"bind_and_activate": False}
    if not _takes(kind, *arguments, **options):
        options = {}
    server = kind.__new__(kind)
    vars(server).update(server_bind=bool, server_activate=bool)
    server.__init__(*arguments, **options)
    for name in ("server_bind", "server_activate"):
        del vars(server)[name]
    return server
