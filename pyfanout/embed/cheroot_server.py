"""cheroot's server as it is in a worker. It imports cheroot, so `cheroot.py` imports it in the worker."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from cheroot import wsgi
from cheroot.server import HTTPConnection, HTTPRequest

from pyfanout.embed.counting import counted
from pyfanout.embed.views import view
from pyfanout.embed.wsgi import informed
from pyfanout.worker.idle import answering
from pyfanout.worker.threads import Pool

if TYPE_CHECKING:
    from pyfanout.kind import WSGIApp
    from pyfanout.worker.listener import Listener
    from pyfanout.worker.worker import WorkerProcess

_known_as: Callable[[Any], Any] = wsgi.Server.resolve_real_bind_addr


class Request(HTTPRequest):
    def respond(self) -> None:
        """The head has been read; for reading it cheroot has a timeout of its own."""
        with answering(self.conn.socket):
            self.server.pool.run(self.conn.socket, super().respond)

    def send_headers(self) -> None:
        """To an HTTP/1.0 client cheroot says nothing when it closes a connection that was to be kept."""
        if self.server.worker.leaves:
            self.close_connection = True
            kept = [pair for pair in self.outheaders if pair[0].lower() != b"connection"]
            self.outheaders = [*kept, (b"Connection", b"close")]
        super().send_headers()


class Connection(HTTPConnection):
    RequestHandlerClass = Request

    def __init__(self, server: Any, conn: Any, *arguments: Any) -> None:
        """cheroot looks at the address of the server itself, too, and at this connection's right after this.
        It knows no client of a UNIX socket, other than by a PROXY header."""
        super().__init__(server.known[conn.listener], conn, *arguments)
        server.bind_addr = self.server.bind_addr
        if conn.peer:
            self.remote_addr, self.remote_port = conn.peer[:2]

    def close(self) -> None:
        super().close()
        if not self.linger and not self.wfile.closed:  # else the socket would be open until it is collected
            with contextlib.suppress(OSError):
                self.wfile.close()

    def _close_kernel_socket(self) -> None:
        """cheroot's own method shuts the input down, too: the kernel would answer late input of the client with
        a reset."""
        if farewell := getattr(self.socket, "bid_farewell", None):
            farewell()


class Server(wsgi.Server):
    ConnectionClass = Connection

    def __init__(self, worker: WorkerProcess, listener: Listener, app: WSGIApp, options: dict[str, Any]) -> None:
        super().__init__(("127.0.0.1", 0), app, **options)
        self.worker = worker
        self.wsgi_app = counted(informed(app, worker, multithread=self.numthreads > 1), worker)
        self.pool = Pool(lambda: len(self.requests._threads))
        worker.watch.add(self.pool.look)
        self._listener = listener

    def bind(self, *_: Any) -> None:
        self.socket = self._listener
        self.bind_addr = _known_as(self._listener)
        self.known = [view(self, {"bind_addr": _known_as(bound)}) for bound in self.worker.public.listeners]
