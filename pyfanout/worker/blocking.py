"""Runs a plain function per connection: on the main thread, or on N threads that each take for themselves.

A thread that wants work sleeps in `Receiver.take`; the kernel wakes the one that has waited longest. Beside them one
thread listens to the master.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import math
import os
import signal
import socket
import sys
import threading
import time
from select import POLLIN
from typing import TYPE_CHECKING, Any

from pyfanout import greenlets
from pyfanout.core import SHORTAGE_S, Receiver, interrupt_with, is_pooled
from pyfanout.kind import BlockingHandler
from pyfanout.link.messages import WAKE
from pyfanout.worker import clients
from pyfanout.worker.connection import Connection
from pyfanout.worker.idle import LOOK_S, bytes_moved, end_if_idle
from pyfanout.worker.signals import Stopped, getsignal

if TYPE_CHECKING:
    from pyfanout.worker.intake import Intake
    from pyfanout.worker.worker import WorkerProcess

log = logging.getLogger("pyfanout.worker")

INTERRUPT = WAKE
"""Ends a thread's sleep in `take`. While workers take connections, nothing else needs that signal."""

NUDGE_S = 0.01
"""Seconds between two such signals: one that hits a thread on its way into `take` is lost."""

NUDGES = 20
"""Such signals after one that was not for us: 0.2 s."""


class Server:
    """The threads of one worker."""

    def __init__(self, worker: WorkerProcess, handler: BlockingHandler, *, counted: bool) -> None:
        self._worker = worker
        self._handler = handler
        self._pool = is_pooled(worker.config.policy)
        self._fd = worker.channel(pool=self._pool)
        self._threads = worker.config.threads
        self._alone = self._threads == 1
        self._count = worker.counter("connection") if counted else None
        self._receivers = [Receiver(self._fd, worker.ends, number) for number in range(self._threads)]
        self._intake = _intake(worker, self._fd)
        """Where the threads take from if connections have a preamble; None: from the channel itself."""
        self._idents: dict[Receiver, int] = {}
        """Which thread a receiver is on; those that have left are not in it."""
        self._signalling = threading.Lock()
        """Held from the look at `_idents` to the signal, and by a thread that removes itself: no signal may be sent to
        a thread that may have ended, whose memory is freed (pthread_kill(3): undefined)."""
        self._leaving = threading.Lock()
        """Released when the first thread leaves. Not an Event, whose own lock a signal handler could find taken."""
        self._closing = False
        """Idle connections are ended."""
        self._nudges_left = 0
        self._look_s = 0.0
        """When to look for idle connections next."""
        self._end_s = math.inf
        """When the time without a master is over."""
        worker.watch.add(self._moved)
        self._exit: BaseException | None = None
        """SystemExit (or its like) of a handler: the worker leaves."""

    def run(self) -> None:
        """Until drained, or the channel's end. Raises SystemExit if a handler did."""
        interrupt_with(INTERRUPT)
        self._wakeup, self._poke_end = socket.socketpair()
        self._poke_end.setblocking(False)
        signal.set_wakeup_fd(self._poke_end.fileno(), warn_on_full_buffer=False)
        self._leaving.acquire()
        self._worker.on_drain, self._worker.on_closing = self._cancel, self._close_idle
        # READY before the thread: the master needs as long to send something as we need to be there.
        self._worker.ready(pool=self._pool, threads=self._threads)
        self._news = self._worker.background.poll()
        for fd in (self._worker.link.fileno(), self._wakeup.fileno()):
            self._news.register(fd, POLLIN)
        # Not threading.Thread: its start() would wait for the new thread, and the first connection for that.
        self._worker.background.start(self._listen)
        if self._threads == 1:
            self._take_all(self._receivers[0])
        else:
            self._run_threads()
        if self._exit is not None:
            raise self._exit

    def _run_threads(self) -> None:
        threads = [
            threading.Thread(target=self._take_all, args=(receiver,), name=f"pyfanout-{number}", daemon=True)
            for number, receiver in enumerate(self._receivers)
        ]
        for thread in threads:
            thread.start()
        self._leaving.acquire()
        for thread in threads:
            thread.join()

    def _take_all(self, receiver: Receiver) -> None:
        """One thread's life."""
        self._idents[receiver] = threading.get_ident()
        try:
            self._take_each(receiver)
        except BaseException as error:  # else a worker with threads would go on with one fewer, at last with none
            self._leave(error)
        finally:
            with self._signalling:
                del self._idents[receiver]
        with contextlib.suppress(RuntimeError):  # another was the first
            self._leaving.release()

    def _take_each(self, receiver: Receiver) -> None:
        """Until there is no connection to take any more."""
        if self._intake is not None:
            self._take_each_admitted(self._intake, receiver)
            return
        worker = self._worker
        done, arrival = worker.ends.done, receiver.arrival
        fd_is_free = False
        while True:
            rc = receiver.take(fd_is_free)
            if rc == 1:
                conn, address = Connection.arrived(arrival, True, done)
                fd_is_free = self._handle(receiver, conn, address)
            elif self._is_over(rc):
                break
            else:
                fd_is_free = False

    def _take_each_admitted(self, intake: Intake, receiver: Receiver) -> None:
        """The same for connections that have a preamble."""
        worker = self._worker
        while True:
            rc = intake.take(receiver)
            if rc == 1:
                admitted = intake.admit(*Connection.arrived(receiver.arrival, True, worker.ends.done))
            elif rc == intake.ADMITTED:
                admitted = intake.next(receiver)
            elif self._is_over(rc):
                break
            else:
                continue
            if admitted is not None:
                self._handle(receiver, *admitted)
        while not worker.forked and (admitted := intake.last(receiver)) is not None:
            self._handle(receiver, *admitted)

    def _handle(self, receiver: Receiver, conn: Any, address: Any) -> bool:
        """Serve one connection. Whether a descriptor is free afterwards, and no other thread of this worker could use
        it."""
        worker = self._worker
        receiver.conn = conn
        try:
            self._handler(conn, address)
        except (Exception, _cancelled()) as error:
            if clients.has_gone(error, conn):
                clients.log.debug("worker=%d: the client %s has disconnected: %s", worker.slot, address, error)
            else:
                log.exception(
                    "worker=%d: the handler raised an exception; the worker goes on%s", worker.slot, worker.doubt
                )
                worker.doubt = ""
        except BaseException as error:
            if isinstance(error, Stopped):
                worker.stopped_with(1)
            self._leave(error)
        finally:
            closed = conn.drop() if worker.forked else conn.finish()
        if worker.stopped:
            self._leave(Stopped(0))
        if getsignal(signal.SIGTERM) is not worker.signals.handler:
            worker.signals.hold()
        if self._count is not None:
            self._count()
        if worker.background.stopped:
            worker.background.resume()
        return closed and self._alone

    def _is_over(self, rc: int) -> bool:
        """No connection was taken: whether none ever will be."""
        worker = self._worker
        if rc == 0 or (rc in (-errno.ECANCELED, -errno.EINTR) and worker.draining):
            return True
        if rc in (-errno.EMFILE, -errno.ENFILE):
            if not worker.farewell.drop():
                self._wait_for_descriptor()
        elif rc == -errno.ENOBUFS:
            log.error(
                "worker=%d: a connection was lost: no descriptor was free for it; raise the limit of open files",
                worker.slot,
            )
        elif rc == -errno.ENOMEM:
            worker.short_of(-rc)
            time.sleep(SHORTAGE_S)
        elif rc not in (-errno.EINTR, -errno.EAGAIN):
            self._leave(OSError(-rc, f"take a connection: {os.strerror(-rc)}"))
        return False

    def _leave(self, error: BaseException) -> None:
        """The worker ends because of `error`: SystemExit in a handler, or a channel that cannot be read."""
        if self._exit is None:
            self._exit = error
        if threading.current_thread() is threading.main_thread():
            raise error
        self._worker.drain()

    def _wait_for_descriptor(self) -> None:
        """Take nothing until a descriptor is free: meanwhile others take the connections in the pool, and those in the
        worker's own channel. A shortage that lasts is logged."""
        told = False
        if not self._pool:
            self._worker.is_short(True)
        while not self._worker.draining:
            time.sleep(SHORTAGE_S)
            try:
                os.close(os.dup(self._fd))
            except OSError as error:
                if not told:
                    log.error(
                        "worker=%d: %s; takes no connection until a descriptor is free, meanwhile others may",
                        self._worker.slot,
                        error.strerror,
                    )
                told = True
            else:
                if told:
                    log.info("worker=%d: descriptors are free again; it takes connections", self._worker.slot)
                break
        if not self._pool:
            self._worker.is_short(False)

    def _cancel(self) -> None:
        """No thread takes any more. The control thread wakes the sleeping ones: here a signal handler may be
        running."""
        for receiver in self._receivers:
            receiver.cancel()
        if not self._worker.forked:
            if self._intake is not None:
                self._intake.cancel()
            with contextlib.suppress(BlockingIOError):  # full: it is awake
                self._poke_end.send(b"\0")

    # ---- the control thread ------------------------------------------------------------------------------------

    def _listen(self) -> None:
        """As long as the process lives. After the master's death (end-of-file, which the channel says too, as soon as
        it is empty) that is `drain_timeout` at most.

        A signal came, or the worker drains: have its handler run, have the threads leave. A thread asleep in `take`
        runs no Python, and a signal that hits it on its way there is lost. So they are interrupted again and again:
        until all have left, or, if the signal was another, until it was surely handled.
        """
        worker, control, wakeup = self._worker, self._worker.link.fileno(), self._wakeup
        while True:
            wait_s = None
            if self._idents and (worker.draining or self._nudges_left > 0):
                wait_s = NUDGE_S
            elif self._closing:
                wait_s = max(min(LOOK_S, self._end_s - time.monotonic()), 0)
            ready = worker.background.wait(self._news, wait_s)
            if wakeup.fileno() in ready:
                wakeup.recv(4096)
                self._nudges_left = NUDGES
            if control in ready and not worker.receive():
                self._news.unregister(control)
                self._end_s = time.monotonic() + worker.config.drain_timeout
                self._close_idle()
            if worker.draining or self._nudges_left > 0:
                self._wake_sleepers()
                self._nudges_left -= 1
            now_s = time.monotonic()
            if (self._closing or worker.draining) and now_s >= self._look_s:
                self._look_s = now_s + LOOK_S
                self._end_idle()
            if now_s >= self._end_s:
                self._end_s = math.inf
                worker.give_up()

    def _wake_sleepers(self) -> None:
        if self._threads > 1 and self._idents and not self._worker.draining:
            signal.pthread_kill(threading.main_thread().ident or 0, INTERRUPT)
        for receiver in list(self._idents):
            with self._signalling:
                ident = self._idents.get(receiver)
                if ident is not None and receiver.sleeps:
                    signal.pthread_kill(ident, INTERRUPT)

    def _close_idle(self) -> None:
        """The server stops: from now on connections that only wait for their client's next request are ended."""
        self._closing = True

    def _moved(self) -> object:
        """For `Watch`: the scoreboard says which thread is busy, and since when."""
        conns = [receiver.conn for receiver in self._receivers]
        return [bytes_moved(conn) for conn in conns if conn is not None]

    def _end_idle(self) -> None:
        for receiver in list(self._idents):
            if receiver.conn is not None:
                end_if_idle(receiver.conn)


def serve(worker: WorkerProcess, handler: BlockingHandler, *, counted: bool = True) -> None:
    """Start hook, READY, connections, exit hook. `counted` as in `WorkerProcess.listener`."""
    server = Server(worker, handler, counted=counted)
    worker.call_hook(worker.config.on_worker_start)
    greenlets.refuse("a blocking handler", greenlets.THREADS, "use --server gevent")
    try:
        server.run()
    finally:
        worker.call_hook(worker.config.on_worker_exit)


def _cancelled() -> type[BaseException]:
    """asyncio's CancelledError, which is no Exception: of a loop that the handler has run, or of one in another
    thread. If nothing has imported asyncio, nothing raises it."""
    asyncio: Any = sys.modules.get("asyncio.exceptions")
    return Exception if asyncio is None else asyncio.CancelledError


def _intake(worker: WorkerProcess, channel_fd: int) -> Intake | None:
    """The intake; None: connections have no preamble. Raises ConfigError."""
    if not (worker.config.tls or worker.config.proxy_protocol):
        return None
    from pyfanout.worker.intake import Intake  # noqa: PLC0415
    from pyfanout.worker.preamble import Preambles  # noqa: PLC0415 - few workers have any

    preambles = Preambles.of(worker, tls=True)
    assert preambles is not None
    return Intake(worker, channel_fd, preambles)
