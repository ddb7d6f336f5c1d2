"""tornado: a `tornado.web.Application`, or any callback that tornado's HTTPServer takes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pyfanout.embed.aio import AsyncioRunner
from pyfanout.embed.loop import loop_factory

if TYPE_CHECKING:
    from pyfanout.worker.listener import Listener
    from pyfanout.worker.worker import Worker


class Runner(AsyncioRunner):
    """`options` are those of tornado.httpserver.HTTPServer, such as `xheaders`. `loop`: "asyncio", "uvloop", or "auto"
    (uvloop if it is installed)."""

    needs = ("tornado",)

    def __init__(self, app: Any, *, loop: str = "asyncio", **options: Any) -> None:
        self._app = app
        self._loop = loop
        self._options = options
        self._server: Any = None

    def serve(self, worker: Worker) -> None:
        self.loop_factory = loop_factory(self._loop, worker.config)
        super().serve(worker)

    async def run(
        self, worker: Worker, listener: Listener, started: Callable[[], None], stopping: asyncio.Event
    ) -> None:
        from tornado.httpserver import HTTPServer  # noqa: PLC0415

        worker.adopt_logger("tornado")
        if context := worker.tls_context():
            self._options["ssl_options"] = context
        self._server = server = HTTPServer(self._app, **self._options)
        server.add_sockets([listener])
        started()
        await stopping.wait()
        server.stop()
        await server.close_all_connections()

    def drains(self) -> None:
        self._server.conn_params.no_keep_alive = True  # each of its connections looks there before it goes on
