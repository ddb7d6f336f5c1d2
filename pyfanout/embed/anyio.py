"""anyio, on its asyncio backend: a handler `async def handler(stream)`. On trio, use `embed.trio`."""

from __future__ import annotations

import asyncio
import functools
import logging
import socket
import ssl
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from pyfanout import greenlets
from pyfanout.embed.aio import AsyncioRunner
from pyfanout.embed.runner import LOOK_S
from pyfanout.worker import clients
from pyfanout.worker.serving import ServingWorker, inside

if TYPE_CHECKING:
    import anyio
    from anyio.abc import ByteStream, SocketListener

    from pyfanout.worker.listener import Listener
    from pyfanout.worker.worker import WorkerProcess

log = logging.getLogger("pyfanout.worker")


class Runner(AsyncioRunner):
    """`handler` gets an anyio `SocketStream`, or a `TLSStream` with TLS. `loop`: "asyncio", "uvloop", or "auto" (uvloop
    if it is installed)."""

    needs = ("anyio",)

    def __init__(self, handler: Callable[[ByteStream], Awaitable[object]], *, loop: str = "asyncio") -> None:
        self._handler = handler
        self.loop = loop
        self._handlers: anyio.CancelScope | None = None

    def check(self) -> None:
        greenlets.refuse("anyio", greenlets.ALL, "do not patch its process")
        super().check()

    async def run(
        self, face: ServingWorker, listener: Listener, started: Callable[[], None], stopping: asyncio.Event
    ) -> None:
        worker = inside(face)
        import anyio
        from anyio.abc import SocketAttribute, SocketListener
        from anyio.streams.tls import TLSStream

        handle = functools.partial(self._handle, worker)

        async def shake_hands(stream: ByteStream) -> None:
            """As anyio's TLSListener, which logs a traceback if the handshake fails."""
            try:
                fd = stream.extra(SocketAttribute.raw_socket).fileno()
                with anyio.fail_after(worker.config.handshake_timeout):
                    with listener.connections.shaking_hands(fd, lambda: secure._read_bio.pending):
                        secure = await TLSStream.wrap(stream, ssl_context=context)
            except BaseException as error:
                await anyio.aclose_forcefully(stream)
                if not isinstance(error, Exception):  # it is cancelled
                    raise
                clients.log.info("worker=%d: no TLS with a client: %r; the connection is closed", worker.slot, error)
            else:
                await handle(secure)

        context = worker.tls_context()
        accepting: SocketListener = await SocketListener.from_socket(listener)
        families = {bound.family for bound in worker.public.listeners}
        if socket.AF_UNIX in families and len(families) > 1:
            accepting = _accepting(listener)
        async with anyio.create_task_group() as handlers, anyio.create_task_group() as group:
            self._handlers = handlers.cancel_scope
            group.start_soon(accepting.serve, handle if context is None else shake_hands, handlers)
            started()
            await stopping.wait()
            group.cancel_scope.cancel()
            with anyio.CancelScope(shield=True):
                # Handlers that only wait for their client find the end.
                while listener.live and not handlers.cancel_scope.cancel_called:
                    listener.connections.end_silent()
                    await anyio.sleep(LOOK_S)

    async def _handle(self, worker: WorkerProcess, stream: ByteStream) -> None:
        import anyio

        try:
            async with stream:
                await self._handler(stream)
        except (
            anyio.BrokenResourceError,
            anyio.EndOfStream,
            ssl.SSLError,
        ) as error:  # closed, or without a close_notify
            clients.log.debug("worker=%d: a client has disconnected: %r", worker.slot, error)
        except Exception:  # its own affair: it would end the server
            log.exception("worker=%d: the handler raised an exception; the worker goes on", worker.slot)

    def hurry(self) -> None:
        if self._handlers is not None:
            self._handlers.cancel()


def _accepting(listener: Listener) -> SocketListener:
    """anyio's own listener is for TCP, or for UNIX sockets, whose streams have more methods."""
    import anyio.lowlevel
    from anyio._backends._asyncio import SocketStream, StreamProtocol, TCPSocketListener, UNIXSocketStream

    class Accepting(TCPSocketListener):
        async def accept(self) -> anyio.abc.SocketStream:
            await anyio.lowlevel.checkpoint()
            loop = asyncio.get_running_loop()
            conn, _ = await loop.sock_accept(listener)
            if conn.family == socket.AF_UNIX:
                return UNIXSocketStream(conn)
            conn.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return SocketStream(*await loop.connect_accepted_socket(StreamProtocol, conn))

    return Accepting(listener)
