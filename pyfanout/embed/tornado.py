"""tornado: a `tornado.web.Application`, or any callback that tornado's HTTPServer takes."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pyfanout.embed.aio import AsyncioRunner

if TYPE_CHECKING:
    from pyfanout.worker.listener import Listener
    from pyfanout.worker.worker import Worker


class Runner(AsyncioRunner):
    """`options` are those of tornado.httpserver.HTTPServer, such as `xheaders`. `loop`: "asyncio", "uvloop", or "auto"
    (uvloop if it is installed)."""

    needs = ("tornado",)

    def __init__(self, app: Any, *, loop: str = "asyncio", **options: Any) -> None:
        self._app = app
        self.loop = loop
        self._options = options
        self._server: Any = None
        self._requests: weakref.WeakSet[Any] = weakref.WeakSet()  # of those whose client left nobody tells

    async def run(
        self, worker: Worker, listener: Listener, started: Callable[[], None], stopping: asyncio.Event
    ) -> None:
        from tornado.httpserver import HTTPServer

        class Server(HTTPServer):
            """Knows which requests it has not answered; `close_all_connections` cuts them off."""

            def start_request(server, server_conn: Any, request_conn: Any) -> Any:
                finish = request_conn.finish

                def finished() -> None:
                    self._requests.discard(request_conn)
                    finish()

                self._requests.add(request_conn)
                request_conn.finish = finished
                return super().start_request(server_conn, request_conn)

        worker.adopt_logger("tornado")
        if context := worker.tls_context():
            self._options["ssl_options"] = context
        self._server = server = Server(self._app, **self._options)
        server.add_sockets([listener])
        started()
        await stopping.wait()
        server.stop()
        await server.close_all_connections()

    def busy(self) -> bool:
        return any(not request.stream.closed() for request in list(self._requests))

    def drains(self) -> None:
        self._server.conn_params.no_keep_alive = True  # each of its connections looks there before it goes on
