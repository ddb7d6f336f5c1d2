"""The base of ASGI servers, and what stands between them and the application: it counts calls, and has a draining
worker say goodbye."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, cast

from pyfanout.embed.aio import AsyncioRunner
from pyfanout.embed.runner import SERVICE_RESTART
from pyfanout.recognition import is_double_callable
from pyfanout.shape import shape_of

if TYPE_CHECKING:
    from pyfanout.kind import ASGIApp
    from pyfanout.worker.listener import Listener


def single_callable(app: Any) -> ASGIApp:
    """As an async function, or an object with one, of just the three arguments of ASGI 3. Servers take others for
    ASGI 2, or call them without arguments to see whether they are factories."""
    shape = shape_of(app)
    if shape.is_async and not shape.takes(0) and not isinstance(app, functools.partial):
        return cast("ASGIApp", app)

    async def call(scope: Any, receive: Any, send: Any) -> None:
        await app(scope, receive, send)

    async def call_twice(scope: Any, receive: Any, send: Any) -> None:
        await app(scope)(receive, send)

    return call_twice if is_double_callable(app) else call


class Application:
    """Wraps an ASGI application. Until `draining` is set it only counts requests."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self.tasks: set[Any] = set()
        """In each the application is called, for a request or a websocket, and has not returned."""
        self.draining = False
        self.ending = False
        """In a fast stop: servers log a request that is cancelled as an error of the application, so it returns."""
        self._websockets: set[_Websocket] = set()

    @property
    def calls(self) -> int:
        """Requests and websockets that the application has not returned from."""
        return len(self.tasks)

    @property
    def held(self) -> int:
        """The same, without the websockets that `cut_websockets` has counted."""
        return self.calls - sum(websocket.is_cut for websocket in self._websockets)

    def cut_websockets(self) -> int:
        """The number of open websockets, which are closed now."""
        websockets = [each for each in self._websockets if each.is_open]
        for each in websockets:
            each.is_cut = True
        return len(websockets)

    async def close_websockets(self) -> None:
        """With a close frame that tells the client to come again. For a server that does not send one itself."""
        await asyncio.gather(*(websocket.close() for websocket in self._websockets), return_exceptions=True)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            return await self._app(scope, receive, send)
        task = asyncio.current_task()
        self.tasks.add(task)
        try:
            if scope["type"] == "websocket":
                await self._serve_websocket(scope, receive, _Websocket(send))
                return None
            if scope["type"] == "http" and scope["http_version"] in ("1.0", "1.1"):
                send = functools.partial(self._answer, send)
            await self._app(scope, receive, send)
        except asyncio.CancelledError:
            if not self.ending:
                raise
        finally:
            self.tasks.discard(task)
        return None

    async def _answer(self, send: Any, message: Any) -> None:
        """`send`, but the head of an answer that a draining worker gives says that the connection ends with it (RFC
        9112, 9.6), which the server then does. An async function, as which some applications know theirs."""
        if self.draining and message["type"] == "http.response.start":
            headers = [pair for pair in message.get("headers", ()) if bytes(pair[0]).lower() != b"connection"]
            message = {**message, "headers": [*headers, (b"connection", b"close")]}
        await send(message)

    async def _serve_websocket(self, scope: Any, receive: Any, websocket: _Websocket) -> None:
        self._websockets.add(websocket)
        try:
            await self._app(scope, receive, websocket)
        finally:
            self._websockets.discard(websocket)


class _Websocket:
    """The function with which the application sends."""

    def __init__(self, send: Any) -> None:
        self._send = send
        self._accepted = False
        self._closed = False
        self.is_cut = False

    @property
    def is_open(self) -> bool:
        return self._accepted and not self._closed

    async def __call__(self, message: Any) -> None:
        """A message after the worker's close frame is dropped, as after the client's."""
        if self._closed:
            return
        await self._send(message)
        if message["type"] == "websocket.accept":
            self._accepted = True
        elif message["type"] == "websocket.close":
            self._accepted = False

    async def close(self) -> None:
        """The application reads the end when the client has answered."""
        if self.is_open:
            self._closed = True
            await self._send({"type": "websocket.close", "code": SERVICE_RESTART, "reason": ""})


class ASGIRunner(AsyncioRunner):
    """A server that is given `self.app` in the place of the application, behind `counted_asgi`."""

    shows_requests = True

    def __init__(self, app: ASGIApp, loop: str) -> None:
        self.app = Application(single_callable(app))
        self.loop = loop

    def busy(self) -> bool:
        return self.app.calls > 0

    def held(self, listener: Listener) -> int:
        return self.app.held

    def cut(self, listener: Listener) -> int:
        return self.app.cut_websockets()

    def requests(self) -> Iterable[asyncio.Task[Any]]:
        self.app.ending = True
        return self.app.tasks.copy()

    def drains(self) -> None:
        self.app.draining = True
