"""gevent's servers as they are in a worker: StreamServer for a handler, pywsgi's for WSGI, on a `Listener`.

It imports gevent, so `gevent.py` imports it in the worker.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from gevent import pool, pywsgi, server, socket

from pyfanout.embed.counting import counted
from pyfanout.embed.views import changed, probe, views
from pyfanout.embed.wsgi import informed
from pyfanout.worker import clients, connection
from pyfanout.worker.connection import Counting
from pyfanout.worker.idle import answering
from pyfanout.worker.receipt import CLOSED
from pyfanout.worker.threads import Pool

if TYPE_CHECKING:
    from pyfanout.worker.listener import Listener
    from pyfanout.worker.public import Bound
    from pyfanout.worker.worker import WorkerProcess


class NoHandshakeError(Exception):
    """A client has failed to do its TLS handshake, or was too slow."""


class RawSocket(socket.socket._gevent_sock_class):
    """Closes its receipt, whether a gevent socket closes it or, as in pywsgi, code that reaches into that."""

    __slots__ = ("receipt",)

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.receipt = CLOSED

    def close(self) -> None:
        if self.receipt.close():
            connection.part(int(super().detach()))
        else:
            super().close()

    def detach(self) -> int:
        self.receipt.close()
        return int(super().detach())


class Connection(Counting, socket.socket):
    __slots__ = ("_moves", "listener")
    _gevent_sock_class = RawSocket

    def finish(self) -> None:
        """Close it, also if the application has kept a `makefile` object, such as `wsgi.input`."""
        self._closed = True
        self._real_close()


class Accepting(server.StreamServer):
    """What both servers have in common: they accept from the listener, and close each connection once."""

    worker: WorkerProcess
    listener: Listener

    def do_read(self) -> Any:
        try:
            plain, address = self.listener.accept()
        except BlockingIOError:
            return None
        receipt = plain.hand_over()
        conn = Connection(plain.family, plain.type, plain.proto, fileno=plain.detach())
        conn._sock.receipt = receipt
        conn.listener = plain.listener
        return conn, address

    def do_close(self, conn: Any, *_: Any) -> None:
        """Its handler has returned."""
        conn.finish()

    def wrap_socket_and_handle(self, conn: Any, address: Any) -> Any:
        """With TLS: the plain socket is detached, which is not the end."""
        receipt = conn._sock.receipt.move()
        try:
            return super().wrap_socket_and_handle(conn, address)
        except NoHandshakeError as error:
            clients.log.info(
                "worker=%d: no TLS with %s: %s; the connection is closed", self.worker.slot, address, error
            )
            conn.close()
            return None
        finally:
            receipt.close()


class StreamServer(Accepting):
    """`options` are those of gevent's own."""

    def __init__(self, worker: WorkerProcess, listener: Listener, app: Any, **options: Any) -> None:
        self.worker, self.listener = worker, listener
        self._app = app
        super().__init__(listener, **_with_pool(options))

    def handle(self, conn: Any, address: Any) -> None:
        try:
            self._app(conn, address)
        except OSError as error:
            if not clients.has_gone(error, conn):
                raise
            clients.log.debug("worker=%d: the client %s has disconnected: %s", self.worker.slot, address, error)


class WSGIHandler(pywsgi.WSGIHandler):
    def _handle_client_error(self, error: Exception) -> Any:
        """Its head cannot be read."""
        if not clients.has_gone(error, self.socket):
            return super()._handle_client_error(error)
        clients.log.debug(
            "worker=%d: the client %s has disconnected: %s", self.server.worker.slot, self.client_address, error
        )
        return None  # it is over, without an answer

    def handle_one_response(self) -> None:
        """The head of the request has been read."""
        with answering(self.socket):
            self.server.greenlets.run(self.socket, super().handle_one_response)

    def start_response(self, status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
        if self.server.worker.leaves:
            headers = [*headers, ("Connection", "close")]  # it closes then, too
        return super().start_response(status, headers, exc_info)


class WSGIServer(Accepting, pywsgi.WSGIServer):
    """`options` are those of gevent's own; without an option `log` it logs no requests."""

    handler_class = WSGIHandler

    def __init__(self, worker: WorkerProcess, listener: Listener, app: Any, **options: Any) -> None:
        self.worker, self.listener = worker, listener
        super().__init__(listener, **{"log": None, **_with_pool(options)})
        at_once = math.inf if self.pool is None or self.pool.size is None else self.pool.size
        self.application = counted(informed(app, worker, multithread=at_once > 1), worker)
        self.greenlets = Pool(lambda: at_once)
        worker.watch.add(self.greenlets.look)

    def update_environ(self) -> None:
        """Called once, when it begins to accept: SERVER_NAME and SERVER_PORT are the server's, and an option `environ`
        may have set them."""

        def names(bound: Bound) -> dict[str, Any]:
            made = probe(self, family=bound.family, address=bound.address, environ=self.environ_class(given))
            pywsgi.WSGIServer.update_environ(made)
            return changed(made, self)

        given = dict(self.environ)
        super().update_environ()
        self.known = views(self, self.worker.public, names)

    def handle(self, conn: Any, address: Any) -> None:
        pywsgi.WSGIServer.handle(self.known[conn.listener], conn, address)


def _with_pool(options: dict[str, Any]) -> dict[str, Any]:
    """The server has a pool of greenlets, unless an option says otherwise: the pool knows those that run."""
    return {**options, "spawn": pool.Pool()} if options.get("spawn", "default") == "default" else options
