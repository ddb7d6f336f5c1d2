"""The base of ASGI servers, and what stands between them and the application: it counts calls, and has a draining
worker say goodbye."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyfanout.embed.aio import AsyncioRunner

if TYPE_CHECKING:
    from pyfanout.kind import ASGIApp


class Application:
    """Wraps an ASGI application. Until `draining` is set it adds nothing to a request but the counting of it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self.calls = 0
        """Requests and websockets that the application has not returned from."""
        self.draining = False

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            return await self._app(scope, receive, send)
        self.calls += 1
        try:
            if self.draining and scope["type"] == "http" and scope["http_version"] in ("1.0", "1.1"):
                send = _Goodbye(send)
            await self._app(scope, receive, send)
        finally:
            self.calls -= 1
        return None


class _Goodbye:
    """Has an answer say that the connection ends with it (RFC 9112, 9.6), which the server then does."""

    def __init__(self, send: Any) -> None:
        self._send = send

    async def __call__(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            headers = [pair for pair in message.get("headers", ()) if bytes(pair[0]).lower() != b"connection"]
            message = {**message, "headers": [*headers, (b"connection", b"close")]}
        await self._send(message)


class ASGIRunner(AsyncioRunner):
    """A server that is given `self.app` in the place of the application."""

    def __init__(self, app: ASGIApp, loop: str) -> None:
        self.app = Application(app)
        self.loop = loop

    def busy(self) -> bool:
        return self.app.calls > 0

    def drains(self) -> None:
        self.app.draining = True
