"""aiohttp: an `aiohttp.web.Application`."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, cast

from pyfanout.embed.aio import AsyncioRunner
from pyfanout.embed.counting import counted
from pyfanout.embed.runner import FAREWELL_S, SERVICE_RESTART
from pyfanout.worker.serving import ServingWorker, inside

if TYPE_CHECKING:
    from aiohttp import web

    from pyfanout.worker.listener import Listener

HURRY_S = 0.7
"""For handlers that are cancelled in a fast stop; then come the application's `on_cleanup` callbacks."""


class Runner(AsyncioRunner):
    """`options` are those of aiohttp.web.AppRunner, such as `keepalive_timeout`. `loop`: "asyncio", "uvloop", or "auto"
    (uvloop if it is installed). No access log unless `access_log` says where."""

    needs = ("aiohttp",)
    shows_requests = True

    def __init__(self, app: web.Application, *, loop: str = "asyncio", **options: Any) -> None:
        self._app = app
        self.loop = loop
        self.server_options: dict[str, Any] = {"access_log": None, "handle_signals": False, **options}
        self._server: Any = None
        self._shutting: Any = None
        """The application's `on_shutdown` callbacks."""
        self._hurried: Any = None
        """An event: the worker stops at once."""
        self._told: list[Any] = []
        """Requests whose websocket is closed because the drain's time is over."""
        self._websockets: weakref.WeakSet[Any] = weakref.WeakSet()
        """aiohttp's own list of connections does not tell websockets from other requests."""

    async def run(
        self, face: ServingWorker, listener: Listener, started: Callable[[], None], stopping: asyncio.Event
    ) -> None:
        worker = inside(face)
        from aiohttp import web

        class AppRunner(web.AppRunner):
            async def shutdown(_) -> None:
                self.notice()
                await self._shutting

        websockets: weakref.WeakSet[Any] = self._websockets
        response: Any = web.WebSocketResponse
        begin = response._post_start

        def begin_known(websocket: Any, *arguments: Any) -> None:
            begin(websocket, *arguments)
            websockets.add(websocket)

        response._post_start = begin_known
        self._hurried = asyncio.Event()
        worker.adopt_logger("aiohttp")
        self.server_options.setdefault("shutdown_timeout", worker.config.drain_timeout)
        runner = AppRunner(self._app, **self.server_options)
        await runner.setup()
        self._server = server = cast("Any", runner.server)
        server.request_handler = counted(server.request_handler, worker)
        shut_down = server.shutdown

        async def shut_down_in_time(timeout: float | None = None) -> None:
            """aiohttp waits for each handler, twice `timeout` at most, and force-closes its connection then."""
            closing, hurried = asyncio.ensure_future(shut_down(timeout)), asyncio.ensure_future(self._hurried.wait())
            try:
                await asyncio.wait([closing, hurried], return_when=asyncio.FIRST_COMPLETED)
                await asyncio.wait([closing], timeout=HURRY_S)
            finally:
                hurried.cancel()
                closing.cancel()

        server.shutdown = shut_down_in_time
        try:
            await web.SockSite(runner, listener, ssl_context=worker.tls_context()).start()
            started()
            await stopping.wait()
        finally:
            await runner.cleanup()

    def busy(self) -> bool:
        """An upload or a websocket goes on: the server's own stop waits for its handler, but reads no more for it."""
        if self._open_websockets():
            return True
        requests = [connection._current_request for connection in self._server.connections]
        return any(request is not None and not request.content.is_eof() for request in requests)

    def _open_websockets(self) -> list[Any]:
        def is_open(websocket: Any) -> bool:
            return not websocket.closed and websocket._req is not None and websocket._req.transport is not None

        return [each for each in self._websockets if is_open(each)]

    def held(self, _: Listener) -> int:
        requests = [connection._current_request for connection in self._server.connections]
        told = set(map(id, self._told))
        return sum(request is not None and id(request) not in told for request in requests)

    def cut(self, _: Listener) -> int:
        self._told = [each._req for each in self._open_websockets()]
        return len(self._told)

    def requests(self) -> Iterable[asyncio.Task[Any]]:
        tasks = [connection._task_handler for connection in self._server.connections]
        return [task for task in tasks if task is not None]

    def hurry(self) -> None:
        self._hurried.set()

    def notice(self) -> None:
        """The callbacks end what does not end by itself: websockets, streams."""
        if self._shutting is None:
            self._shutting = asyncio.ensure_future(self._app.shutdown())

    async def farewell(self) -> None:
        closing = asyncio.gather(
            *(each.close(code=SERVICE_RESTART) for each in self._open_websockets()), return_exceptions=True
        )
        await asyncio.wait([closing], timeout=FAREWELL_S)

    def drains(self) -> None:
        """Each answer from now on ends its connection, and says so: to an HTTP/1.0 client, too, to which aiohttp would
        say nothing."""
        from aiohttp import web

        kind: Any = web.StreamResponse
        prepare = kind._prepare_headers

        async def prepare_last(response: Any) -> None:
            if response.status >= 200:
                response.force_close()
                response.headers["Connection"] = "close"
            await prepare(response)

        kind._prepare_headers = prepare_last
