"""Runs a coroutine per connection on an asyncio loop, with asyncio's own stream classes.

The loop watches the slot's channel and takes what is there in one go. Transports are made directly: the public
`connect_accepted_socket` makes a task, a future and a coroutine more per connection (0.85 of the throughput, measured
before this was written), and serves as the fallback for loops that have no `_make_socket_transport`.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import inspect
import logging
import os
import signal
from types import CoroutineType
from typing import TYPE_CHECKING, Any, NoReturn

from pyfanout.core import BATCH, OUT_OF_MEMORY, SHORTAGE_S, Receiver
from pyfanout.kind import AsyncHandler
from pyfanout.link.messages import WAKE
from pyfanout.worker import child, clients, loop_child
from pyfanout.worker.connection import Address, Connection
from pyfanout.worker.idle import IDLE_S, LOOK_S, IdleWatch, end_input, is_silent
from pyfanout.worker.loop_threads import watch_threads

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from pyfanout.worker.face import Worker
    from pyfanout.worker.preamble import Preambles
    from pyfanout.worker.worker import WorkerProcess

log = logging.getLogger("pyfanout.worker")

_GONE = (*clients.GONE, asyncio.IncompleteReadError)

CANCEL_S = 0.5
"""How long a task may clean up when it is cancelled in a fast stop, before it is cancelled again."""

END_S = 0.7
"""How long a fast stop waits for the tasks that are left at its end."""

STREAM_LIMIT = 64 * 1024
"""Bytes that a reader buffers; asyncio's own default."""


class Server:
    """The loop of one worker. At most `max_connections` are open at once; then it stops reading its channel."""

    def __init__(self, worker: WorkerProcess, handler: AsyncHandler, fd: int) -> None:
        self._worker = worker
        self._handler = handler
        self._fd = fd
        self._receiver = Receiver(fd, worker.ends, 0, BATCH)
        self._loop = asyncio.get_running_loop()
        self._count = worker.counter("connection")
        self._most = worker.config.max_connections or 1 << 30
        self._live = 0
        self._tasks: dict[asyncio.Task[Any], tuple[asyncio.StreamReader, asyncio.StreamWriter]] = {}
        """The handlers, with their streams. The loop itself holds tasks by weak references."""
        self._connecting: set[asyncio.Task[Any]] = set()
        """Tasks that make a transport, by way of a TLS handshake."""
        self._secure: dict[int, tuple[Connection, asyncio.StreamReader, float]] = {}
        """With TLS: the open connections by descriptor, with the reader of each and when its handshake began."""
        self._idle = IdleWatch()
        self._closing = False
        """Idle connections are closed."""
        self._reading = False
        self._over = self._loop.create_future()
        """Done when the worker drains and nothing is left to finish."""
        self._context = worker.tls_context()
        self._headless = _headless(worker)
        self._timed = False
        """Whether a timer checks the time of preambles."""
        self._make_transport: Callable[..., Any] | None = getattr(self._loop, "_make_socket_transport", None)

    async def run(self) -> None:
        """Until drained, or the channel's end."""
        worker, loop = self._worker, self._loop
        watch_threads(worker.watch, loop)
        worker.on_drain, worker.on_closing = self._drain, self._close_idle
        signals_through(worker, self._stop)
        worker.farewell.on(loop)
        loop.add_reader(worker.link.fileno(), self._on_control)
        if self._headless is not None:
            loop.add_reader(self._headless.fileno(), self._open_arrived, self._headless)
        self._read_on()
        worker.ready(pool=False, threads=0)
        await self._over

    # ---- taking ------------------------------------------------------------------------------------------------

    def _read_on(self) -> None:
        if not (self._reading or self._worker.draining or self._over.done()) and self._live < self._most:
            self._reading = True
            self._loop.add_reader(self._fd, self._take)

    def _pause(self) -> None:
        if self._reading:
            self._reading = False
            self._loop.remove_reader(self._fd)

    def _take(self) -> None:
        """The channel is readable: take what is there, as many as may be held."""
        rc, arrivals = self._receiver.take_ready(self._most - self._live)
        for arrival in arrivals:
            self._begin(arrival)
        if rc > 0:
            if self._live >= self._most:
                self._pause()
        elif rc == 0:  # the master has finished, or is gone
            self._worker.drain()
        elif rc in (-errno.EMFILE, -errno.ENFILE) and not self._worker.farewell.drop():  # else it comes again at once
            self._rest()
            self._loop.call_later(SHORTAGE_S, self._look_for_descriptor, False)
        elif rc in OUT_OF_MEMORY:
            self._worker.short_of(-rc)
            self._rest()
            self._loop.call_later(SHORTAGE_S, self._go_on)
        elif rc not in (-errno.EAGAIN, -errno.EINTR, -errno.EMFILE, -errno.ENFILE):
            self._fail(OSError(-rc, f"take a connection: {os.strerror(-rc)}"))

    def _look_for_descriptor(self, told: bool) -> None:
        """Goes on when there is one. A shortage that lasts is told, once."""
        try:
            os.close(os.dup(self._fd))
        except OSError as error:
            if not told:
                short = "worker=%d: %s; takes no connection until a descriptor is free, meanwhile others may"
                log.error(short, self._worker.slot, error.strerror)
            self._loop.call_later(SHORTAGE_S, self._look_for_descriptor, True)
        else:
            if told:
                log.info("worker=%d: descriptors are free again; it takes connections", self._worker.slot)
            self._go_on()

    def _rest(self) -> None:
        """Takes nothing until `_go_on`."""
        self._pause()
        self._worker.is_short(True)

    def _go_on(self) -> None:
        self._worker.is_short(False)
        self._read_on()

    # ---- one connection ----------------------------------------------------------------------------------------

    def _begin(self, arrival: Any) -> None:
        """Makes a socket; `_open` follows, at once unless the connection waits for its PROXY header."""
        self._live += 1
        ended = self._ended if self._context is None else functools.partial(self._end_secure, arrival.fd)
        conn, address = Connection.arrived(arrival, False, ended)
        if self._headless is None:
            self._open(conn, address)
        else:
            admitted = self._headless.admit(conn, address)
            if admitted is not None:
                self._open(*admitted)
            elif not self._timed:
                self._expire(self._headless)
        if self._count is not None:
            self._count()

    def _open_arrived(self, headless: Preambles) -> None:
        while known := headless.arrived():
            self._open(*known)

    def _expire(self, headless: Preambles) -> None:
        due_s = headless.expire()
        self._timed = due_s is not None
        if due_s is not None:
            self._loop.call_later(due_s, self._expire, headless)

    def _open(self, conn: Connection, client: Address) -> None:
        """Makes its streams and its transport; `_serve` follows when the loop comes round."""
        reader = asyncio.StreamReader(limit=STREAM_LIMIT, loop=self._loop)
        protocol = asyncio.StreamReaderProtocol(reader, self._serve, loop=self._loop)
        if self._make_transport is None or self._context is not None:
            if self._context is not None:
                self._secure[conn.fileno()] = conn, reader, self._loop.time()
            task = self._loop.create_task(self._connect(protocol, conn, client))
            self._connecting.add(task)
            task.add_done_callback(self._connecting.discard)
        else:
            try:
                self._make_transport(conn, protocol, extra={"peername": client})
            except Exception:
                self._lose(conn)

    async def _connect(self, protocol: asyncio.StreamReaderProtocol, conn: Connection, client: Address) -> None:
        """The public way to a transport, by way of a TLS handshake."""
        timeout_s = None if self._context is None else self._worker.config.handshake_timeout
        try:
            await self._loop.connect_accepted_socket(
                lambda: protocol, conn, ssl=self._context, ssl_handshake_timeout=timeout_s
            )
        except OSError as error:  # ssl.SSLError is one, too
            refused = "worker=%d: the connection from %s could not be set up (%s) and is closed"
            clients.log.info(refused, self._worker.slot, client, error)
            conn.finish()
        except Exception:
            self._lose(conn)

    def _lose(self, conn: Connection) -> None:
        log.exception(
            "worker=%d: the event loop made no transport for a connection; the connection is closed", self._worker.slot
        )
        conn.finish()

    def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            running: Any = self._handler(reader, writer)
        except BaseException as error:  # of a plain function that was to return an awaitable
            running = _fail_with(error)
        if type(running) is not CoroutineType:
            running = _finished(running)
        task: asyncio.Task[Any] = self._loop.create_task(running)
        self._tasks[task] = reader, writer
        task.add_done_callback(functools.partial(self._finish, writer.transport.get_protocol()))

    def _finish(self, protocol: asyncio.BaseProtocol, task: asyncio.Task[Any]) -> None:
        """A handler is over."""
        if self._worker.forked:  # its copy in a child that it forked
            child.leave(task)
        reader, writer = self._tasks.pop(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            if type(error) in _GONE and (writer.transport.is_closing() or reader.at_eof()):
                clients.log.debug("worker=%d: a client has disconnected: %r", self._worker.slot, error)
            elif isinstance(error, Exception):
                log.error(
                    "worker=%d: the handler raised an exception; the worker goes on", self._worker.slot, exc_info=error
                )
            else:
                self._fail(error)
        if writer.transport.get_protocol() is protocol:  # else another protocol has taken the transport over
            writer.close()
        if not self._reading:
            self._leave_if_done()

    def _end_secure(self, fd: int) -> None:
        self._secure.pop(fd, None)
        self._ended()

    def _ended(self) -> None:
        """A connection was closed or detached."""
        self._live -= 1
        self._worker.ended()
        if not self._reading:
            self._read_on()
            self._leave_if_done()

    # ---- leaving -----------------------------------------------------------------------------------------------

    def _drain(self) -> None:
        """Take no more; what was begun goes on."""
        if self._worker.forked:
            loop_child.leave_loop(self._loop)
            return
        self._pause()
        self._leave_if_done()
        self._close_idle()

    def _close_idle(self) -> None:
        """From now on a connection that only waits for its client's next request ends as if the client had gone, which
        is an end that its handler knows."""
        if not self._closing:
            self._closing = True
            self._close_those_idle()

    def _close_those_idle(self) -> None:
        """Again and again, until the end."""
        if self._over.done():
            return
        now_s = self._loop.time()
        for reader, writer in self._tasks.values():
            if not reader.at_eof() and self._idle.is_idle(reader, writer, now_s):
                reader.feed_data = _drop  # type: ignore[method-assign, assignment]  # after the end it would be an error
                reader.feed_eof()
        if self._headless is not None:
            self._headless.hurry()
            self._headless.expire()
        self._end_handshakes(now_s)
        self._loop.call_later(LOOK_S, self._close_those_idle)

    def _end_handshakes(self, now_s: float) -> None:
        """Ends handshakes whose client is silent: at the beginning, before there is a handler, and at the end, after
        it, where asyncio waits for the client's close_notify for 30 s."""
        for conn, reader, since_s in self._secure.values():
            transport = reader._transport  # type: ignore[attr-defined]  # None: there is no handler yet
            unserved = transport is None or transport.is_closing()
            if unserved and now_s - since_s >= IDLE_S and is_silent(conn.fileno()):
                end_input(conn.fileno())

    def _leave_if_done(self) -> None:
        if self._worker.draining and self._live <= 0 and not self._tasks and not self._over.done():
            self._over.set_result(None)

    def _stop(self) -> None:
        """At once: asyncio.Runner cancels the handlers that still run."""
        if not self._over.done():
            self._cut_short()
            self._over.set_result(None)

    def _fail(self, error: BaseException) -> None:
        """The worker ends because of `error`: SystemExit in a handler, or a channel that cannot be read."""
        if not self._over.done():
            self._cut_short()
            self._over.set_exception(error)

    def _cut_short(self) -> None:
        """The loop comes round a few times more: what it would take then waits for another worker."""
        self._pause()
        self._worker.stopped_with(self._live)

    def _on_control(self) -> None:
        """A pong from here proves that the loop comes round. End-of-file is the master's death, and the channel says so
        too, when it is empty; which one at `max_connections` does not read."""
        if not self._worker.receive():
            self._close_idle()
            self._loop.remove_reader(self._worker.link.fileno())
            self._loop.call_later(self._worker.config.drain_timeout, self._worker.give_up)


async def _finished(running: Any) -> None:
    """A task for each connection, also if a handler returns one future for several."""
    await running


async def _fail_with(error: BaseException) -> NoReturn:
    raise error


def _drop(_: object) -> None:
    """In the place of a reader's `feed_data`."""


def serve(worker: WorkerProcess, handler: AsyncHandler) -> None:
    """Start hook, READY, connections, exit hook. A hook may be a coroutine function: it runs on the loop."""
    fd = worker.channel(pool=False)

    async def live() -> None:
        async with hooks(worker):
            await Server(worker, handler, fd).run()

    runner = runner_of(worker)
    try:
        runner.run(live())
    finally:
        close(worker, runner)


def runner_of(
    worker: WorkerProcess, loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None
) -> asyncio.Runner:
    """Of the loop that the application has used while it was loaded; else of a new one."""
    used = worker.used_runner
    return asyncio.Runner(loop_factory=loop_factory) if used is None else used


def close(worker: WorkerProcess, runner: asyncio.Runner) -> None:
    """Cancel what still runs, and close the loop. A runner's own `close` waits for tasks that do not end when they are
    cancelled, and for the threads of the default executor; after a SIGQUIT there is no time for that."""
    if worker.forked:  # a child that a handler forked, and that calls sys.exit, cancels no tasks
        return
    if worker.signals.quit:
        loop = runner.get_loop()
        loop.run_until_complete(_end_tasks(worker, loop))
        asyncio.set_event_loop(None)
        loop.close()
    else:
        runner.close()


async def _end_tasks(worker: WorkerProcess, loop: asyncio.AbstractEventLoop) -> None:
    """Cancel all other tasks, those that catch it again after a while, and wait for a second at most."""
    tasks = asyncio.all_tasks(loop) - {asyncio.current_task(loop)}
    left, patience_s = tasks, CANCEL_S
    end_s = loop.time() + END_S
    while left and loop.time() < end_s:
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=patience_s)
        patience_s = LOOK_S
    for task in tasks - left:
        if not task.cancelled() and (error := task.exception()) is not None:
            loop.call_exception_handler({"message": "a task failed in a stop", "exception": error, "task": task})
    for task in left:
        task._log_destroy_pending = False  # type: ignore[attr-defined]  # else each is one more line, at the exit
    if left:
        log.warning("worker=%d: %d cancelled tasks do not end; the worker exits without them", worker.slot, len(left))
    closing = loop.create_task(loop.shutdown_asyncgens())
    await asyncio.wait([closing], timeout=LOOK_S)


def _headless(worker: WorkerProcess) -> Preambles | None:
    """The preambles of PROXY headers; None: there are none."""
    if not worker.config.proxy_protocol:
        return None
    from pyfanout.worker.preamble import Preambles  # noqa: PLC0415 - few are behind a proxy

    return Preambles.of(worker, tls=False)


@contextlib.asynccontextmanager
async def hooks(worker: WorkerProcess) -> AsyncIterator[None]:
    """Start hook; exit hook."""
    with waking(worker):
        await call_hook(worker, worker.config.on_worker_start)
        for name in ("asyncio", "concurrent.futures"):  # its executor's
            worker.adopt_logger(name)
        try:
            yield
        finally:
            await call_hook(worker, worker.config.on_worker_exit)


@contextlib.contextmanager
def waking(worker: WorkerProcess) -> Iterator[None]:
    """Meanwhile the running loop wakes up for signals: without that a signal that comes just before the loop sleeps
    would wait until something else wakes it."""
    asyncio.get_running_loop().add_signal_handler(WAKE, worker.signals.look)
    signal.signal(WAKE, worker.signals.look)  # not only between two steps: the application may take long
    try:
        yield
    finally:
        worker.signals.plain()
        signal.set_wakeup_fd(-1)  # the loop closes its end before it removes its signal handlers


def signals_through(worker: WorkerProcess, stop: Callable[[], None]) -> None:
    """SIGTERM and SIGQUIT are handled between two steps of the running loop, which calls nothing else for them."""
    loop = asyncio.get_running_loop()

    def mute() -> None:
        loop.add_signal_handler(signal.SIGTERM, lambda: None)

    worker.signals.through(loop.call_soon_threadsafe, stop, mute)


async def call_hook(worker: WorkerProcess, hook: Callable[[Worker], object] | None) -> None:
    """On the loop, if it is a coroutine function."""
    result = None if hook is None or worker.forked else hook(worker.face)
    if inspect.isawaitable(result):
        await result
