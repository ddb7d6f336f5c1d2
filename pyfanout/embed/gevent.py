"""gevent: WSGI through `gevent.pywsgi`, or a handler through StreamServer.

With `--server gevent` the standard library is patched before the application is imported. A module that makes a
`Runner` does so itself, by `gevent.monkey.patch_all()` in its first line, and is imported in the workers (`pyfanout
run`).
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pyfanout.embed import runner
from pyfanout.embed.runner import LOOK_S
from pyfanout.kind import Kind
from pyfanout.worker.serving import ServingWorker, inside

if TYPE_CHECKING:
    from pyfanout.kind import BlockingHandler, WSGIApp
    from pyfanout.worker.listener import Listener
    from pyfanout.worker.worker import WorkerProcess


KILL_S = 0.25
"""How long the worker waits for a greenlet that it has killed."""


def patch() -> None:
    """Before the application is imported."""
    from gevent import monkey

    monkey.patch_all()


class Runner(runner.Runner):
    """`options` are those of gevent.pywsgi.WSGIServer, such as `spawn` (a pool's size) and `log`, but for those of TLS;
    there is no access log unless `log` says where. With `handler=True` the application is `handler(conn, addr)`, and
    the options are StreamServer's."""

    needs = ("gevent",)

    @classmethod
    def of(cls, app: Any, kind: Kind) -> Runner:
        return cls(app, handler=kind is Kind.HANDLER)

    def __init__(self, app: WSGIApp | BlockingHandler, *, handler: bool = False, **options: Any) -> None:
        self._app = app
        self._is_handler = handler
        self.server_options: dict[str, Any] = options

    def serve(self, face: ServingWorker) -> None:
        worker = inside(face)
        with _awake_for_signals():
            self._serve(worker)

    def _serve(self, worker: WorkerProcess) -> None:
        import gevent
        from gevent.event import Event

        worker.call_hook(worker.config.on_worker_start)
        # It stops accepting when its pool is full.
        listener = worker.listener(control=False, counted=self._is_handler)
        leaving = Event()
        try:
            server = self._server(worker, listener)
        except BaseException:
            listener.close()
            raise

        def drain() -> None:
            if not worker.forked:
                listener.quiet()
                gevent.spawn(_settle, worker, listener, leaving)

        def stop() -> None:
            worker.stopped_with(listener.live)
            leaving.set()

        hearing = None
        try:
            server.start()
            worker.signals.through(gevent.get_hub().loop.run_callback_threadsafe, stop)
            worker.on_drain, worker.on_closing = drain, listener.connections.make_room
            if server.pool is not None and server.pool.size is not None:
                listener.limit(server.pool.size)
            hearing = gevent.spawn(_hear, worker)
            worker.ready(pool=False, threads=0)
            leaving.wait()
        finally:
            try:
                _end(worker, listener, server)
                if hearing is not None:
                    hearing.kill()
            finally:
                worker.signals.plain()
                worker.call_hook(worker.config.on_worker_exit)

    def _server(self, worker: WorkerProcess, listener: Listener) -> Any:
        from pyfanout.embed import gevent_server

        server_of = gevent_server.StreamServer if self._is_handler else gevent_server.WSGIServer
        context = worker.tls_context()
        if context is None:
            return server_of(worker, listener, self._app, **self.server_options)
        from pyfanout.embed.gevent_tls import Handshake

        server = server_of(worker, listener, self._app, ssl_context=context, **self.server_options)
        server.wrap_socket = Handshake(worker, listener, context)
        return server


def _end(worker: WorkerProcess, listener: Listener, server: Any) -> None:
    """The drain is over, or its time is, or it is a fast stop: greenlets of requests are killed, and once more if they
    catch that."""
    server.close()
    worker.stopped_with(listener.live)
    if server.pool is not None:  # it is None if the option `spawn` is a function
        for _ in range(2):
            server.pool.kill(timeout=KILL_S)
            server.pool.dying.clear()


@contextlib.contextmanager
def _awake_for_signals() -> Iterator[None]:
    """The hub comes round for each signal: without that, one that comes just before the hub sleeps would wait until
    something else wakes it. gevent's own handlers cannot be removed without a moment in which a signal kills."""
    import gevent

    reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    watcher = gevent.get_hub().loop.io(reader, 1)
    watcher.start(lambda: os.read(reader, 4096))
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(-1)
        watcher.stop()
        watcher.close()
        os.close(reader)
        os.close(writer)


def _settle(worker: WorkerProcess, listener: Listener, leaving: Any) -> None:
    """Until each connection is over, or silent, or the time is up."""
    import gevent

    with gevent.Timeout(max(worker.config.drain_timeout, 0.001), False):
        while listener.live:
            listener.connections.end_silent()
            gevent.sleep(LOOK_S)
    leaving.set()


def _hear(worker: WorkerProcess) -> None:
    """Answers pings from the hub that serves."""
    import gevent
    from gevent.socket import wait_read

    fd = worker.link.fileno()
    while True:
        wait_read(fd)
        if not worker.receive():
            break
    gevent.sleep(worker.config.drain_timeout)
    worker.give_up()
