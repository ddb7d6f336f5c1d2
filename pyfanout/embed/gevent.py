"""gevent: WSGI through `gevent.pywsgi`, or a handler through StreamServer.

With `--server gevent` the standard library is patched before the application is imported. A module that makes a
`Runner` does so itself, by `gevent.monkey.patch_all()` in its first line, and is imported in the workers (`pyfanout
run`).
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import signal
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from pyfanout.embed import runner
from pyfanout.embed.counting import counted
from pyfanout.embed.runner import LOOK_S
from pyfanout.embed.views import changed, probe, views
from pyfanout.embed.wsgi import informed
from pyfanout.worker import clients, connection
from pyfanout.worker.connection import Counting
from pyfanout.worker.idle import answering
from pyfanout.worker.threads import Pool

if TYPE_CHECKING:
    from pyfanout.kind import BlockingHandler, WSGIApp
    from pyfanout.worker.listener import Listener
    from pyfanout.worker.public import Bound
    from pyfanout.worker.worker import Worker


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

    def __init__(self, app: WSGIApp | BlockingHandler, *, handler: bool = False, **options: Any) -> None:
        self._app = app
        self._is_handler = handler
        self.server_options: dict[str, Any] = options

    def serve(self, worker: Worker) -> None:
        with _awake_for_signals():
            self._serve(worker)

    def _serve(self, worker: Worker) -> None:
        import gevent
        from gevent.event import Event

        worker.call_hook(worker.config.on_worker_start)
        # It stops accepting when its pool is full.
        listener = worker.listener(control=False, counted=self._is_handler)
        leaving = Event()
        try:
            server = _server(worker, listener, self._app, self._is_handler, self.server_options)
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
            worker.on_drain, worker.on_closing = drain, listener.make_room
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


def _end(worker: Worker, listener: Listener, server: Any) -> None:
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


def _settle(worker: Worker, listener: Listener, leaving: Any) -> None:
    """Until each connection is over, or silent, or the time is up."""
    import gevent

    with gevent.Timeout(max(worker.config.drain_timeout, 0.001), False):
        while listener.live:
            listener.end_silent()
            gevent.sleep(LOOK_S)
    leaving.set()


def _hear(worker: Worker) -> None:
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


class NoHandshakeError(Exception):
    """A client has failed to do its TLS handshake, or was too slow."""


def _server(worker: Worker, listener: Listener, app: Any, is_handler: bool, options: dict[str, Any]) -> Any:
    import gevent
    from gevent import pool, pywsgi, server, socket

    class Raw(socket.socket._gevent_sock_class):
        """Reports its end, whether a gevent socket closes it or, as in pywsgi, code that reaches into that."""

        __slots__ = ("on_done",)

        def take_over(self) -> Callable[[], object] | None:
            on_done, self.on_done = getattr(self, "on_done", None), None
            return on_done

        def _tell(self) -> None:
            on_done = self.take_over()
            if on_done is not None:
                on_done()

        def close(self) -> None:
            on_done = self.take_over()
            if on_done is None:
                super().close()
            else:
                on_done()
                connection.part(int(super().detach()))

        def detach(self) -> int:
            self._tell()
            return int(super().detach())

    class Connection(Counting, socket.socket):
        __slots__ = ("_moves", "listener")
        _gevent_sock_class = Raw

        def finish(self) -> None:
            """Close it, also if the application has kept a `makefile` object, such as `wsgi.input`."""
            self._closed = True
            self._real_close()

    class Accepting(server.StreamServer):
        def do_read(self) -> Any:
            try:
                plain, address = listener.accept()
            except BlockingIOError:
                return None
            on_done = plain.hand_over()
            conn = Connection(plain.family, plain.type, plain.proto, fileno=plain.detach())
            conn._sock.on_done = on_done
            conn.listener = plain.listener
            return conn, address

        def do_close(self, conn: Any, *_: Any) -> None:
            """Its handler has returned."""
            conn.finish()

        def wrap_socket_and_handle(self, conn: Any, address: Any) -> Any:
            """With TLS: the plain socket is detached, which is not the end."""
            on_done = conn._sock.take_over()
            try:
                return super().wrap_socket_and_handle(conn, address)
            except NoHandshakeError as error:
                clients.log.info("worker=%d: no TLS with %s: %s", worker.slot, address, error)
                conn.close()
                return None
            finally:
                if on_done is not None:
                    on_done()

    def handle(conn: Any, address: Any) -> None:
        try:
            app(conn, address)
        except OSError as error:
            if not clients.has_gone(error, conn):
                raise
            clients.log.debug("worker=%d: %s has gone: %s", worker.slot, address, error)

    class Handler(pywsgi.WSGIHandler):
        def _handle_client_error(self, error: Exception) -> Any:
            """Its head cannot be read."""
            if not clients.has_gone(error, self.socket):
                return super()._handle_client_error(error)
            clients.log.debug("worker=%d: %s has gone: %s", worker.slot, self.client_address, error)
            return None  # it is over, without an answer

        def handle_one_response(self) -> None:
            """The head of the request has been read."""
            with answering(self.socket):
                greenlets.run(self.socket, super().handle_one_response)

        def start_response(self, status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
            if worker.leaves:
                headers = [*headers, ("Connection", "close")]  # it closes then, too
            return super().start_response(status, headers, exc_info)

    class WSGIServer(Accepting, pywsgi.WSGIServer):
        handler_class = Handler

        def update_environ(self) -> None:
            """Called once, when it begins to accept: SERVER_NAME and SERVER_PORT are the server's, and an option
            `environ` may have set them."""

            def names(bound: Bound) -> dict[str, Any]:
                made = probe(self, family=bound.family, address=bound.address, environ=self.environ_class(given))
                pywsgi.WSGIServer.update_environ(made)
                return changed(made, self)

            given = dict(self.environ)
            super().update_environ()
            self.known = views(self, worker.public, names)

        def handle(self, conn: Any, address: Any) -> None:
            pywsgi.WSGIServer.handle(self.known[conn.listener], conn, address)

    if context := worker.tls_context():
        options = {"ssl_context": context, **options}
    if options.get("spawn", "default") == "default":
        options = {**options, "spawn": pool.Pool()}  # which knows them
    server_of = Accepting if is_handler else functools.partial(WSGIServer, log=None)
    made = server_of(listener, handle if is_handler else app, **options)
    if context is not None:
        from gevent.ssl import SSLContext, SSLSocket

        from pyfanout.worker.tls import Sending

        class Secure(Sending, SSLSocket):
            def __init__(self, *arguments: Any, **keywords: Any) -> None:
                """gevent's own leaves it open if the client has reset the connection."""
                try:
                    super().__init__(*arguments, **keywords)
                except BaseException:
                    with contextlib.suppress(OSError, AttributeError):  # it was not even made
                        self.close()
                    raise

        # It may have been made before gevent patched ssl, as the master's was; gevent's own method does for both.
        def shake_hands(conn: Any, **how: Any) -> Any:
            timeout_s = worker.config.handshake_timeout
            in_time = gevent.Timeout(timeout_s, TimeoutError(f"no handshake within {timeout_s:g} s"))
            try:
                with listener.shaking_hands(conn.fileno(), lambda: 0), in_time:
                    secure = SSLContext.wrap_socket(options["ssl_context"], conn, **how)
                    secure.listener = conn.listener
                    return secure
            except OSError as error:  # ssl.SSLError is one
                raise NoHandshakeError(error) from error

        context.sslsocket_class = Secure
        made.wrap_socket = shake_hands
    if not is_handler:
        at_once = math.inf if made.pool is None or made.pool.size is None else made.pool.size
        made.application = counted(informed(app, worker, multithread=at_once > 1), worker)
        greenlets = Pool(lambda: at_once)
        worker.watch.add(greenlets.look)
    return made
