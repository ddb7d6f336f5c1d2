"""Runs a coroutine per connection on an asyncio loop, with asyncio's own stream classes.

The loop watches the slot's channel and takes what is there in one go. Transports are made directly: the public
`connect_accepted_socket` makes a task, a future and a coroutine more per connection (0.85 of the throughput, measured
before this was written), and serves as the fallback for loops that have no `_make_socket_transport`.
"""

from __future__ import annotations

import asyncio
import errno
import functools
import inspect
import logging
import os
import signal
from typing import TYPE_CHECKING, Any

from pyfanout.app import AsyncHandler, Kind
from pyfanout.core import BATCH, Taker
from pyfanout.worker.connection import Connection, address_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from pyfanout.worker.worker import Worker

log = logging.getLogger("pyfanout.worker")

SHORTAGE_S = 0.05
"""Seconds between two looks for a free descriptor: nothing tells when there is one."""

STREAM_LIMIT = 64 * 1024
"""Bytes that a reader buffers; asyncio's own default."""


class Server:
    """The loop of one worker. At most `max_connections` are open at once; then it stops reading its channel."""

    def __init__(self, worker: Worker, handler: AsyncHandler, fd: int) -> None:
        self._worker = worker
        self._handler = handler
        self._fd = fd
        self._taker = Taker(fd, worker.station, 0, BATCH)
        self._loop = asyncio.get_running_loop()
        self._most = worker.config.max_connections or 1 << 30
        self._live = 0
        self._tasks: set[asyncio.Task[Any]] = set()
        """The loop itself holds them by weak references only."""
        self._reading = False
        self._over = self._loop.create_future()
        """Done when the worker drains and nothing is left to finish."""
        self._make_transport: Callable[..., Any] | None = getattr(self._loop, "_make_socket_transport", None)

    async def run(self) -> None:
        """Until drained, or the channel's end."""
        worker, loop = self._worker, self._loop
        worker.on_drain = self._drain
        loop.add_signal_handler(signal.SIGTERM, self._terminate)
        loop.add_signal_handler(signal.SIGQUIT, self._stop)
        loop.add_reader(worker.control.fileno(), self._on_control)
        self._read_on()
        worker.ready(pool=False, threads=0)
        await self._over

    # ---- taking ------------------------------------------------------------------------------------------------

    def _read_on(self) -> None:
        if not self._reading and not self._worker.draining and self._live < self._most:
            self._reading = True
            self._loop.add_reader(self._fd, self._take)

    def _pause(self) -> None:
        if self._reading:
            self._reading = False
            self._loop.remove_reader(self._fd)

    def _take(self) -> None:
        """The channel is readable: take what is there, as many as may be held."""
        rc, arrivals = self._taker.take_ready(self._most - self._live)
        for arrival in arrivals:
            self._begin(arrival)
        if rc > 0:
            if self._live >= self._most:
                self._pause()
        elif rc == 0:  # the master has finished, or is gone
            self._worker.drain()
        elif rc in (-errno.EMFILE, -errno.ENFILE):
            log.error("worker=%d: %s; takes no connection until one is free", self._worker.slot, os.strerror(-rc))
            self._pause()
            self._loop.call_later(SHORTAGE_S, self._look_for_descriptor)
        elif rc not in (-errno.EAGAIN, -errno.EINTR):
            self._fail(OSError(-rc, f"take a connection: {os.strerror(-rc)}"))

    def _look_for_descriptor(self) -> None:
        try:
            os.close(os.dup(self._fd))
        except OSError:
            self._loop.call_later(SHORTAGE_S, self._look_for_descriptor)
        else:
            log.info("worker=%d: descriptors are free again", self._worker.slot)
            self._read_on()

    # ---- one connection ----------------------------------------------------------------------------------------

    def _begin(self, arrival: Any) -> None:
        """A socket, its streams, its transport; `_serve` follows when the loop comes round."""
        self._live += 1
        conn = Connection.arrived(arrival, False, self._ended)
        reader = asyncio.StreamReader(limit=STREAM_LIMIT, loop=self._loop)
        protocol = asyncio.StreamReaderProtocol(reader, self._serve, loop=self._loop)
        if self._make_transport is None:
            task = self._loop.create_task(self._connect(protocol, conn))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        else:
            try:
                self._make_transport(conn, protocol, extra={"peername": address_of(arrival)})
            except Exception:
                self._lose(conn)
        self._worker.count()

    async def _connect(self, protocol: asyncio.StreamReaderProtocol, conn: Connection) -> None:
        """The public way to a transport."""
        try:
            await self._loop.connect_accepted_socket(lambda: protocol, conn)
        except Exception:
            self._lose(conn)

    def _lose(self, conn: Connection) -> None:
        log.exception("worker=%d: no transport for a connection, which is closed", self._worker.slot)
        conn.finish()

    def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task: asyncio.Task[Any] = self._loop.create_task(self._handler(reader, writer))  # type: ignore[arg-type]
        self._tasks.add(task)
        task.add_done_callback(functools.partial(self._finish, writer, writer.transport.get_protocol()))

    def _finish(self, writer: asyncio.StreamWriter, protocol: asyncio.BaseProtocol, task: asyncio.Task[Any]) -> None:
        """A handler is over."""
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            if isinstance(error, Exception):
                log.error("worker=%d: the handler failed", self._worker.slot, exc_info=error)
            else:
                self._fail(error)
        if writer.transport.get_protocol() is protocol:  # else another protocol has taken the transport over
            writer.close()
        if not self._reading:
            self._leave_if_done()

    def _ended(self) -> None:
        """A connection was closed or detached."""
        self._worker.station.done()
        self._live -= 1
        if not self._reading:
            self._read_on()
            self._leave_if_done()

    # ---- leaving -----------------------------------------------------------------------------------------------

    def _drain(self) -> None:
        """Take no more; what was begun goes on."""
        if self._worker.forked:
            return
        self._pause()
        self._leave_if_done()

    def _leave_if_done(self) -> None:
        if self._worker.draining and self._live <= 0 and not self._tasks and not self._over.done():
            self._over.set_result(None)

    def _terminate(self) -> None:
        if self._worker.draining:
            self._stop()
        else:
            self._worker.drain()

    def _stop(self) -> None:
        """At once: asyncio.Runner cancels the handlers that still run."""
        if not self._over.done():
            self._over.set_result(None)

    def _fail(self, error: BaseException) -> None:
        """The worker ends because of `error`: SystemExit in a handler, or a channel that cannot be read."""
        if not self._over.done():
            self._over.set_exception(error)

    def _on_control(self) -> None:
        """The master says nothing; end-of-file is its death, and the channel says so too, when it is empty."""
        if not self._worker.control.recv(4096):
            self._loop.remove_reader(self._worker.control.fileno())
            self._loop.call_later(self._worker.config.drain_timeout, self._give_up)

    def _give_up(self) -> None:
        patience_s = self._worker.config.drain_timeout
        log.error("worker=%d: the master is gone and %g s are over", self._worker.slot, patience_s)
        os._exit(1)


def serve(worker: Worker, handler: AsyncHandler) -> None:
    """Start hook, READY, connections, exit hook. A hook may be a coroutine function: it runs on the loop."""
    fd, _ = worker.channel(Kind.ASYNCIO)

    async def live() -> None:
        await _call_hook(worker, worker.config.on_worker_start)
        try:
            await Server(worker, handler, fd).run()
        finally:
            await _call_hook(worker, worker.config.on_worker_exit)

    asyncio.run(live())


async def _call_hook(worker: Worker, hook: Callable[[Worker], object] | None) -> None:
    result = worker.call_hook(hook)
    if inspect.isawaitable(result):
        await result
