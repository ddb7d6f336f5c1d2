"""aiohttp: an `aiohttp.web.Application`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pyfanout.embed.aio import AsyncioRunner

if TYPE_CHECKING:
    from aiohttp import web

    from pyfanout.worker.listener import Listener
    from pyfanout.worker.worker import Worker


class Runner(AsyncioRunner):
    """`options` are those of aiohttp.web.AppRunner, such as `keepalive_timeout`. `loop`: "asyncio", "uvloop", or "auto"
    (uvloop if it is installed). No access log unless `access_log` says where."""

    needs = ("aiohttp",)

    def __init__(self, app: web.Application, *, loop: str = "asyncio", **options: Any) -> None:
        self._app = app
        self.loop = loop
        self._options: dict[str, Any] = {"access_log": None, "handle_signals": False, **options}
        self._server: Any = None

    async def run(
        self, worker: Worker, listener: Listener, started: Callable[[], None], stopping: asyncio.Event
    ) -> None:
        from aiohttp import web

        worker.adopt_logger("aiohttp")
        self._options.setdefault("shutdown_timeout", worker.config.drain_timeout)
        runner = web.AppRunner(self._app, **self._options)
        await runner.setup()
        self._server = runner.server
        try:
            await web.SockSite(runner, listener, ssl_context=worker.tls_context()).start()
            started()
            await stopping.wait()
        finally:
            await runner.cleanup()

    def busy(self) -> bool:
        """An upload goes on: the server's own stop waits for its handler, but reads no more for it."""
        requests = [connection._current_request for connection in self._server.connections]
        return any(request is not None and not request.content.is_eof() for request in requests)

    def drains(self) -> None:
        """Each request from now on is one whose client wants its connection to end, so the answer says that it does."""
        server = self._server
        make = server.request_factory

        def make_last(message: Any, *arguments: Any) -> Any:
            return make(message._replace(should_close=True), *arguments)

        server.request_factory = make_last
        for connection in server.connections:
            if connection._request_factory is not None:  # else it is lost
                connection._request_factory = make_last
