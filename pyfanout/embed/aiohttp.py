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
        self._draining = False

    async def run(
        self, worker: Worker, listener: Listener, started: Callable[[], None], stopping: asyncio.Event
    ) -> None:
        from aiohttp import web

        async def say_goodbye(_request: web.Request, response: web.StreamResponse) -> None:
            if self._draining:
                response.force_close()
                response.headers["Connection"] = "close"  # the headers were made before this is called

        worker.adopt_logger("aiohttp")
        self._app.on_response_prepare.append(say_goodbye)
        self._options.setdefault("shutdown_timeout", worker.config.drain_timeout)
        runner = web.AppRunner(self._app, **self._options)
        await runner.setup()
        try:
            await web.SockSite(runner, listener, ssl_context=worker.tls_context()).start()
            started()
            await stopping.wait()
        finally:
            await runner.cleanup()

    def drains(self) -> None:
        self._draining = True
