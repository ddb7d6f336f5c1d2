"""gunicorn: its own arbiter and its own workers, with our dispatcher before them. One more word for its command line:

    gunicorn --worker-class pyfanout.embed.gunicorn.GThread --threads 8 --workers 4 app:app

gunicorn forks, reloads, scales and times out as ever. Its arbiter starts a `Dispatcher` before it forks a worker, if
none runs; each worker joins that. Options of the dispatcher are variables: `PYFANOUT_POLICY`.
"""

from __future__ import annotations

import asyncio
import errno
import os
import select
import signal
import socket
import ssl
import struct
import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from gunicorn.errors import AppImportError
from gunicorn.sock import ssl_context
from gunicorn.workers import base, gasgi, gthread, sync

from pyfanout import greenlets
from pyfanout.core import SHORTAGE_S, Receiver
from pyfanout.dispatcher.owner import config_of
from pyfanout.embed.aio import settled
from pyfanout.embed.asgi import Application
from pyfanout.embed.gunicorn_dispatcher import gunicorn_dispatcher
from pyfanout.embed.gunicorn_tls import Secured, limited, set_socket_class
from pyfanout.embed.loop import loop_factory
from pyfanout.embed.runner import GRACE_S, LOOK_S
from pyfanout.errors import FanoutError, LoadError, WorkerError
from pyfanout.host import stdio
from pyfanout.master.process import own_pidfd
from pyfanout.worker import idle, loop_child
from pyfanout.worker.connection import Connection
from pyfanout.worker.loop_threads import watch_threads
from pyfanout.worker.serving import inside
from pyfanout.worker.threads import Pool
from pyfanout.worker.tls import SecureConnection

if TYPE_CHECKING:
    from pyfanout.worker.public import Public
    from pyfanout.worker.worker import WorkerProcess

HEARTBEAT_S = 1.0
"""Between two signs of life for the arbiter, of a sync worker that has nothing to do; half of `--timeout` if that is
less. Also how late it may see a signal that came just before it fell asleep."""

CUT_S = 0.6
"""How long before the end of `graceful_timeout` requests are cancelled: then the lifespan's shutdown runs."""

AGAIN_S = 1.0
"""Between two workers that cannot join: the dispatcher may be dying, and the arbiter starts another before it forks."""

_TIMEVAL = struct.Struct("@ll")


class Joined:
    """What our classes of workers add to gunicorn's. Made in the arbiter, before each fork."""

    sockets: list[Any]
    cfg: Any
    log: Any

    @classmethod
    def setup(cls) -> None:
        """gunicorn calls it before it opens a socket."""
        stdio.occupy()
        if above := getattr(super(), "setup", None):
            above()

    @classmethod
    def check_config(cls, cfg: Any, log: Any) -> None:
        if cfg.reuse_port:
            raise RuntimeError("reuse_port: the dispatcher alone accepts; turn it off")
        try:
            config = config_of({}, os.environ)
            os.close(own_pidfd())
        except FanoutError as error:
            raise RuntimeError(str(error)) from None  # of which gunicorn makes one line
        if config.tls:
            raise RuntimeError("PYFANOUT_CERTFILE: gunicorn speaks TLS itself; use its --certfile")
        if above := getattr(super(), "check_config", None):
            above(cfg, log)

    def __init__(self, age: int, ppid: int, sockets: list[Any], app: Any, timeout: float, cfg: Any, log: Any) -> None:
        self._alive = True
        self._retiring = False
        self._worker: Any = None
        gunicorn_dispatcher.arbiter = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
        self._dispatcher = gunicorn_dispatcher.running(sockets, cfg)
        super().__init__(age, ppid, sockets, app, timeout, cfg, log)  # type: ignore[call-arg]
        self._queue = getattr(gunicorn_dispatcher.arbiter, "SIG_QUEUE", None)
        self._arbiters_own = 0 if self._queue is None else self._queue.qsize()

    @property
    def alive(self) -> bool:
        return self._alive

    @alive.setter
    def alive(self, alive: bool) -> None:
        """gunicorn sets it to False wherever a worker shall leave: at a signal, after `max_requests`, when its code has
        changed. From then on others get its connections; if there are none, it serves what has been accepted."""
        if alive or self._worker is None:
            self._alive = alive
        elif not (self._retiring or self._worker.draining):
            self._retiring = True
            self.max_requests = sys.maxsize  # else each further request would say that it has had them
            self._worker.retire()

    def init_process(self) -> None:
        try:
            self._worker = inside(self._dispatcher.join())
        except (WorkerError, OSError) as error:
            words = "cannot join the dispatcher: %s; this worker exits in %g s, and gunicorn replaces it"
            self.log.error(words, error, AGAIN_S)
            time.sleep(AGAIN_S)
            sys.exit(1)  # not the code of a worker that cannot boot, after which the arbiter gives up
        self._stuck = self._worker.watch.again()
        if self.cfg.is_ssl:
            self._secure()
        theirs, self._listening = self.sockets, self._open()
        self._worker.on_drain = self._leave
        # As gunicorn wraps a listening socket.
        ours = object.__new__(type(theirs[0]))
        ours.__dict__.update(theirs[0].__dict__, sock=self._listening)
        del ours.close  # that of GunicornDispatcher
        self.sockets = [ours]
        super().init_process()  # it serves
        for signum in (signal.SIGQUIT, signal.SIGINT):  # gunicorn's own handler would be a traceback by now
            signal.signal(signum, lambda *_: os._exit(0))

    def load_wsgi(self) -> None:
        super().load_wsgi()
        try:
            self._refuse_greenlets()
        except LoadError as error:
            raise AppImportError(str(error)) from None  # of which gunicorn makes one line, and exit code 4

    def _refuse_greenlets(self) -> None:
        """Raises LoadError if the application is patched, and this class of workers needs threads."""
        greenlets.refuse(type(self).__name__, greenlets.THREADS, "use pyfanout run --server gevent")

    def _secure(self) -> None:
        """TLS sockets, too, report their end; and a handshake, which takes a thread, has a time limit."""
        set_socket_class(self.cfg, limited(self._worker.config.handshake_timeout))
        self.cfg.set("do_handshake_on_connect", True)  # else it would be a part of some read

    def _open(self) -> Any:
        """What connections are accepted from."""
        return self._worker.listener()

    def _leave(self) -> None:
        """The worker drains: by its own wish, or because the dispatcher has stopped or is gone."""
        self._alive = False
        self._listening.quiet()

    def _hear_again(self) -> None:
        """The signals that came after the fork and before `init_signals`, which the arbiter's handler has put into this
        process's copy of the arbiter's queue, behind those that are the arbiter's own. gunicorn's own workers miss a
        stop that comes then, and last until `graceful_timeout`."""
        queued = []
        while self._queue is not None and not self._queue.empty():
            queued.append(self._queue.get_nowait())
        for signum in queued[self._arbiters_own :]:
            if signum in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
                signal.raise_signal(signum)

    def _ready(self, **how: Any) -> None:
        """Connections may come."""
        self._hear_again()
        self._worker.ready(**how)

    def handle_quit(self, sig: Any, frame: Any) -> None:
        """A second one, while the process exits, would be a traceback. And gthread's own one shuts its pool of threads
        down, in a signal handler, and waits for ever if it was about to do that anyway: on 2026-11-22 in 1 of 72 stops,
        with a fast stop just after a graceful one."""
        for signum in (signal.SIGQUIT, signal.SIGINT):
            signal.signal(signum, signal.SIG_IGN)
        base.Worker.handle_quit(self, sig, frame)

    def notify(self) -> None:
        """gunicorn calls it each time the worker comes round, at least once a second, also when it does not accept.
        While each of its threads is in the same request, the arbiter gets no notice of the worker, and so replaces it
        when that has lasted for `--timeout`."""
        if not self._stuck.still_ms():
            super().notify()
        if not self._worker.receive() and self._retiring:  # there is no dispatcher that could release it
            self._worker.drain()


class Sync(Joined, sync.SyncWorker):
    """`sync`: one request at a time. The workers share the pool channel: any idle one takes the next."""

    @classmethod
    def check_config(cls, cfg: Any, log: Any) -> None:
        if cfg.threads > 1:
            raise RuntimeError("threads: a Sync worker has one; use pyfanout.embed.gunicorn.GThread")
        for name in ("PYFANOUT_PROXY_PROTOCOL", "PYFANOUT_POLICY"):
            if os.environ.get(name):
                raise RuntimeError(f"{name}: means nothing to Sync workers, which share one queue; use GThread")
        super().check_config(cfg, log)

    def _open(self) -> Any:
        return _Pool(self._worker)

    def run(self) -> None:
        worker, pool = self._worker, self.sockets[0]
        heartbeat_s = min(HEARTBEAT_S, self.timeout or HEARTBEAT_S)
        # Not settimeout: that would make it non-blocking, for all that share it.
        timeval = _TIMEVAL.pack(int(heartbeat_s), int(heartbeat_s % 1 * 1e6))
        pool.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeval)
        receiver = Receiver(pool.fileno(), worker.ends, 0)
        self._ready(pool=True, threads=1)
        news = select.poll()
        for each in (pool, worker.link.sock):
            news.register(each, select.POLLIN)
        while self.alive and self.is_parent_alive():
            self.notify()
            if self._retiring and pool.fileno() not in dict(news.poll(heartbeat_s * 1000)):
                continue
            rc = receiver.take(False)
            if rc == 1:
                conn, address = Connection.arrived(receiver.arrival, True, worker.ends.done)
                try:
                    self.handle(worker.public.listeners[conn.listener], conn, address)
                finally:
                    conn.finish()
            elif rc == 0:  # the dispatcher has stopped, or is gone
                worker.drain()
            elif rc in (-errno.EMFILE, -errno.ENFILE):
                time.sleep(SHORTAGE_S)
            elif rc == -errno.ENOBUFS:
                self.log.error("a connection was lost: no descriptor was free for it; raise the limit of open files")
            elif rc == -errno.ENOMEM:
                worker.short_of(-rc)
                time.sleep(SHORTAGE_S)
            elif rc not in (-errno.EAGAIN, -errno.EINTR):
                raise OSError(-rc, f"take a connection: {os.strerror(-rc)}")
        receiver.cancel()
        receiver.take(False)  # which takes nothing, and has the scoreboard say that nothing is in our hands


class GThread(Joined, gthread.ThreadWorker):
    """`gthread`: a pool of threads behind one accept loop."""

    _context: ssl.SSLContext | None = None

    def _secure(self) -> None:
        """No thread waits for a handshake: it is done before gunicorn has the connection."""
        set_socket_class(self.cfg, SecureConnection)
        self._context = ssl_context(self.cfg)
        self.cfg.set("ssl_context", lambda conf, default: Secured)

    def _open(self) -> Any:
        listener = self._worker.listener(greedy=True, tls=self._context or False)
        listener.limit(self.cfg.worker_connections)
        return listener

    def _leave(self) -> None:
        super()._leave()
        if not self._worker.forked:
            threading.Thread(target=self._end_silent, daemon=True).start()

    def _end_silent(self) -> None:
        """gunicorn waits for silent clients until its `keepalive` is over."""
        while True:
            self._listening.connections.end_silent()
            time.sleep(idle.LOOK_S)

    def handle_request(self, req: Any, conn: Any) -> Any:
        """In a thread, when the head of the request has been read."""
        req.should_close = _decided(req.should_close, lambda: not self.alive)
        with idle.answering(conn.sock):
            return self._pool.run(conn.sock, super().handle_request, req, conn)

    def handle_http2_request(self, req: Any, conn: Any, h2_conn: Any) -> Any:
        with idle.answering(conn.sock):
            return self._pool.run(conn.sock, super().handle_http2_request, req, conn, h2_conn)

    def run(self) -> None:
        self._pool = Pool(lambda: self.cfg.threads)
        self._worker.watch.add(self._pool.look)
        self._worker.on_closing = self._accept_all
        self._ready()
        super().run()

    def _accept_all(self) -> None:
        """The server stops. At its limit of connections it would not find the end, and no other serves the rest."""
        self.worker_connections = sys.maxsize
        self._worker.most = 0
        self._worker.ready()

    def accept(self, listener: Any) -> None:
        """All that has been taken, not one each time the loop comes round."""
        accepting = _Accepting(self._listening, self._worker.public)
        super().accept(accepting)
        while self._listening.pending:
            super().accept(accepting)


class ASGI(Joined, gasgi.ASGIWorker):
    """`asgi`; on uvloop if `--asgi-loop` says so, or is "auto" and it is installed."""

    asgi: Any
    _is_ready = False
    _serving: asyncio.Task[Any] | None = None
    """gunicorn's, until its stop begins: the task looks once a second whether the worker leaves, and takes its
    cancellation for that."""

    def _setup_event_loop(self) -> None:
        self.loop = loop_factory(self.cfg.asgi_loop, self._dispatcher.config)()
        watch_threads(self._worker.watch, self.loop)
        asyncio.set_event_loop(self.loop)

    def _refuse_greenlets(self) -> None:
        """A loop needs no threads."""

    def load_wsgi(self) -> None:
        super().load_wsgi()
        self.asgi = self._app = Application(self.asgi)

    def notify(self) -> None:
        """For the first time when the application has started, and there is a server."""
        super().notify()
        if not self._is_ready:
            self._is_ready = True
            self._serving = asyncio.current_task(self.loop)
            self._ready()

    def _leave(self) -> None:
        """gunicorn's own stop closes each connection after the answer that is being made, and announces that only in
        those whose head has not gone out: so it comes when each has been silent for a while."""
        if self._worker.forked:
            loop_child.leave_loop(self.loop)
            return
        self._listening.quiet()
        self._app.draining = True
        self._settling = self.loop.create_task(self._settle())  # kept: a loop holds its tasks by weak references

    def handle_quit_signal(self) -> None:
        self._worker.stopped_with(self._app.calls)
        super().handle_quit_signal()
        self._go()  # it waits for no client

    def _go(self) -> None:
        self._alive = False
        if self._serving is not None:
            self._serving.cancel()

    async def _shutdown(self) -> None:
        self._serving = None
        await super()._shutdown()

    async def _settle(self) -> None:
        end_s = self.loop.time() + max(self.cfg.graceful_timeout - GRACE_S, 0)
        await settled(self._listening, lambda: self._app.calls > 0, end_s)
        self._go()
        connections = self._listening.connections
        end = connections.end_silent if self._app.calls == 0 else connections.end_unserved
        # Until the server has stopped: it waits for connections as long as `graceful_timeout`. Then comes SIGKILL.
        while self.loop.time() < end_s + GRACE_S - CUT_S:
            end()
            await asyncio.sleep(LOOK_S)
        self._worker.stopped_with(self._app.calls)
        self._app.ending = True
        while True:
            for task in self._app.tasks:
                task.cancel()
            self._listening.connections.end_all()
            await asyncio.sleep(CUT_S / 3)


class _Accepting:
    """A listening socket that has the address of the one by which the latest connection came."""

    def __init__(self, listening: Any, public: Public) -> None:
        self._listening = listening
        self._listeners = public.listeners
        self._number = public.number

    def accept(self) -> tuple[Any, Any]:
        conn, address = self._listening.accept()
        self._number = conn.listener
        return conn, address

    def getsockname(self) -> Any:
        return self._listeners[self._number].address


class _Pool(socket.socket):
    """The reading end of the pool's channel, with what gunicorn wants to know of a listening socket."""

    def __init__(self, worker: WorkerProcess) -> None:
        super().__init__(socket.AF_UNIX, socket.SOCK_SEQPACKET, fileno=worker.channel(pool=True))
        self._address = worker.public.first.address

    def getsockname(self) -> Any:
        return self._address

    def quiet(self) -> None:
        """Nothing is to be done: a worker that drains does not ask for more."""


def _decided(should_close: Callable[[], bool], leaves: Callable[[], bool]) -> Callable[[], bool]:
    """Whether a connection ends with the answer, decided when gunicorn first asks: it makes the answer's head then.
    gunicorn itself decides before it calls the application, which may be long before."""
    decided: list[bool] = []

    def decide() -> bool:
        if not decided:
            decided.append(should_close() or leaves())
        return decided[0]

    return decide
