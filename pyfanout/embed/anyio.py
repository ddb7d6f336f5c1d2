"""anyio, on its asyncio backend: a handler `async def handler(stream)`. On trio, use `embed.trio`."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from pyfanout.embed.aio import AsyncioRunner
from pyfanout.embed.runner import LOOK_S

if TYPE_CHECKING:
    from anyio.abc import ByteStream

    from pyfanout.worker.listener import Listener
    from pyfanout.worker.worker import Worker

log = logging.getLogger("pyfanout.worker")


class Runner(AsyncioRunner):
    """`handler` gets an anyio `SocketStream`, or a `TLSStream` with TLS. `loop`: "asyncio", "uvloop", or "auto" (uvloop
    if it is installed)."""

    needs = ("anyio",)

    def __init__(self, handler: Callable[[ByteStream], Awaitable[object]], *, loop: str = "asyncio") -> None:
        self._handler = handler
        self.loop = loop

    async def run(
        self, worker: Worker, listener: Listener, started: Callable[[], None], stopping: asyncio.Event
    ) -> None:
        import anyio
        from anyio.abc import SocketListener
        from anyio.streams.tls import TLSListener

        async def handle(stream: ByteStream) -> None:
            try:
                async with stream:
                    await self._handler(stream)
            except (
                anyio.BrokenResourceError,
                anyio.EndOfStream,
            ) as error:  # gone, or rude at the end
                log.debug("worker=%d: %r", worker.slot, error)
            except Exception:  # its own affair: it would end the server
                log.exception("worker=%d: the handler failed", worker.slot)

        class Secure(TLSListener):
            @staticmethod
            async def handle_handshake_error(exc: BaseException, stream: Any) -> None:
                """anyio's own one logs a traceback."""
                await anyio.aclose_forcefully(stream)
                if not isinstance(exc, Exception):  # it is cancelled
                    raise exc
                log.info("worker=%d: no TLS with a client: %r", worker.slot, exc)

        accepting: Any = await SocketListener.from_socket(listener)
        if context := worker.tls_context():
            accepting = Secure(accepting, context, handshake_timeout=worker.config.handshake_timeout)
        async with anyio.create_task_group() as handlers, anyio.create_task_group() as group:
            group.start_soon(accepting.serve, handle, handlers)
            started()
            await stopping.wait()
            group.cancel_scope.cancel()
            with anyio.CancelScope(shield=True):
                while listener.live:  # handlers that only wait for their client find the end
                    listener.end_silent()
                    await anyio.sleep(LOOK_S)
