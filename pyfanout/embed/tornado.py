"""tornado: a `tornado.web.Application`, or any callback that tornado's HTTPServer takes."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pyfanout.embed.aio import AsyncioRunner
from pyfanout.embed.runner import LOOK_S, SERVICE_RESTART
from pyfanout.worker import clients
from pyfanout.worker.serving import ServingWorker, inside

if TYPE_CHECKING:
    from pyfanout.worker.listener import Listener


class Runner(AsyncioRunner):
    """`options` are those of tornado.httpserver.HTTPServer, such as `xheaders`, but for `ssl_options`. `loop`:
    "asyncio", "uvloop", or "auto" (uvloop if it is installed)."""

    needs = ("tornado",)
    shows_requests = True

    def __init__(self, app: Any, *, loop: str = "asyncio", **options: Any) -> None:
        self._app = app
        self.loop = loop
        self.server_options: dict[str, Any] = options
        self._server: Any = None
        self._cut_off: list[Any] = []
        """Websockets that are closed because the drain's time is over."""
        self._websockets: weakref.WeakSet[Any] = weakref.WeakSet()
        """The server itself does not track them."""
        self._hurried = False
        """Requests that are under way are cut off."""

    async def run(
        self, face: ServingWorker, listener: Listener, started: Callable[[], None], stopping: asyncio.Event
    ) -> None:
        worker = inside(face)
        from pyfanout.embed.tornado_server import Server

        self._track_websockets()
        worker.adopt_logger("tornado")
        clients.limit("tornado.general", "SSL Error on")  # one for each client that speaks no TLS
        if context := worker.tls_context():
            self.server_options["ssl_options"] = context
        self._server = server = Server(self._app, **self.server_options)
        server.worker = worker
        server.add_sockets([listener])
        started()
        await stopping.wait()
        server.stop()
        self._cut_off = self._open_websockets()
        for websocket in self._cut_off:
            websocket.close(SERVICE_RESTART)
        while self._requests() > 0 and not self._hurried:
            await asyncio.sleep(LOOK_S)
        await server.close_all_connections()

    def _track_websockets(self) -> None:
        from tornado.websocket import WebSocketHandler, WebSocketProtocol

        protocols: Any = WebSocketProtocol
        known, begin = self._websockets, protocols.__init__

        def begin_known(protocol: Any, handler: Any) -> None:
            begin(protocol, handler)
            if isinstance(handler, WebSocketHandler):  # else it is a client's
                known.add(handler)

        protocols.__init__ = begin_known

    def hurry(self) -> None:
        self._hurried = True

    def _open_websockets(self) -> list[Any]:
        def is_open(connection: Any) -> bool:
            return connection is not None and connection.stream is not None and not connection.is_closing()

        return [each for each in self._websockets if is_open(each.ws_connection)]

    def busy(self) -> bool:
        return self._requests() > 0 or bool(self._open_websockets())

    def held(self, _: Listener) -> int:
        return self._requests() + sum(each not in self._cut_off for each in self._open_websockets())

    def cut(self, _: Listener) -> int:
        self._cut_off = [*self._cut_off, *self._open_websockets()]
        return len(self._cut_off)

    def _requests(self) -> int:
        """The number of requests that are not done."""
        requests = [getattr(conn, "latest", None) for conn in self._server._connections]
        # The latest one of a connection that is only kept is there, too, before its first line has come.
        begun = [request for request in requests if request is not None and request._request_start_line is not None]
        return sum(not request._write_finished for request in begun)

    def drains(self) -> None:
        from tornado.http1connection import HTTP1Connection

        self._server.conn_params.no_keep_alive = True  # each of its connections looks there before it goes on
        kind: Any = HTTP1Connection
        write_headers = kind.write_headers

        def write_last(connection: Any, start_line: Any, headers: Any, *rest: Any, **keywords: Any) -> Any:
            """Also of a request that has begun before. tornado tells an HTTP/1.0 client that asks for it that the
            connection is kept, and then closes it."""
            if not connection.is_client and start_line.code >= 200:
                connection._disconnect_on_finish = True
                connection._request_headers["Connection"] = headers["Connection"] = "close"
            return write_headers(connection, start_line, headers, *rest, **keywords)

        kind.write_headers = write_last
