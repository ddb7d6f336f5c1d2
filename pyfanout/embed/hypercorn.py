"""hypercorn: ASGI over HTTP/1 and HTTP/2. On asyncio or uvloop; not on trio, which takes no socket but its own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pyfanout.embed.asgi import ASGIRunner
from pyfanout.embed.counting import counted_asgi
from pyfanout.errors import ConfigError
from pyfanout.worker.serving import ServingWorker, inside

if TYPE_CHECKING:
    import ssl

    from pyfanout.kind import ASGIApp
    from pyfanout.worker.listener import Listener

HURRY_S = 0.9
"""For handlers, which see the end of their connection, and are cancelled. If it cancels what is left, asyncio
complains."""


class Runner(ASGIRunner):
    """`options` are attributes of hypercorn's Config: `keep_alive_timeout`, `h2_max_concurrent_streams`, `accesslog`,
    and not those of addresses and TLS. `loop`: "asyncio", as hypercorn has it, "uvloop", or "auto" (uvloop if it is
    installed)."""

    needs = ("hypercorn",)

    def __init__(self, app: ASGIApp, *, loop: str = "asyncio", **options: Any) -> None:
        super().__init__(app, loop)
        self.server_options = options
        self._config: Any = None
        self._listener: Any = None

    async def run(
        self, face: ServingWorker, listener: Listener, started: Callable[[], None], stopping: asyncio.Event
    ) -> None:
        worker = inside(face)
        from hypercorn.asyncio import serve, tcp_server
        from hypercorn.config import Config, Sockets

        self._listener = listener
        context = worker.tls_context()

        async def stop() -> None:
            await stopping.wait()
            listener.connections.end_silent()  # which it would wait for otherwise, until its own keep_alive_timeout

        class Ours(Config):
            def create_sockets(self) -> Sockets:
                """Called after the application's startup, just before they are served from."""
                started()
                return Sockets([listener], [], []) if context else Sockets([], [listener], [])

            @property
            def ssl_enabled(self) -> bool:
                return context is not None

            def create_ssl_context(self) -> ssl.SSLContext | None:
                if context is not None:
                    context.set_alpn_protocols(self.alpn_protocols)
                return context

        if listener.proxied:
            vars(tcp_server)["parse_socket_addr"] = _parse
        self._config = config = Ours()
        config.loglevel = "WARNING"
        config.graceful_timeout = worker.config.drain_timeout
        config.ssl_handshake_timeout = worker.config.handshake_timeout
        for name, value in self.server_options.items():
            if not hasattr(Config, name):
                raise ConfigError(f"{name}: hypercorn's Config has no such attribute")
            setattr(config, name, value)
        app: Any = counted_asgi(self.app, worker)
        await serve(app, config, shutdown_trigger=stop, mode="asgi")

    async def farewell(self) -> None:
        await self.app.close_websockets()

    def hurry(self) -> None:
        self._listener.connections.end_all()
        self._config.graceful_timeout = HURRY_S


def _parse(_family: int, address: Any) -> tuple[str, int] | None:
    """As hypercorn's own, which knows no address of a UNIX socket's client. A PROXY header does."""
    return address[:2] if isinstance(address, tuple) else None
