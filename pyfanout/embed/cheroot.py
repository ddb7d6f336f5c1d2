"""cheroot: WSGI, on a pool of threads; CherryPy's server. It speaks TLS."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pyfanout import greenlets
from pyfanout.embed.counting import counted
from pyfanout.embed.threaded import ThreadedRunner
from pyfanout.embed.views import view
from pyfanout.embed.wsgi import informed
from pyfanout.worker.idle import answering
from pyfanout.worker.threads import Pool

if TYPE_CHECKING:
    from pyfanout.kind import WSGIApp
    from pyfanout.worker.listener import Listener
    from pyfanout.worker.worker import Worker


class Runner(ThreadedRunner):
    """`options` are cheroot.wsgi.Server's, such as `numthreads` (pyfanout's `threads` if that is more than 1, else
    cheroot's 10), `timeout` or `server_name`."""

    needs = ("cheroot",)
    shows_requests = True
    unpatched = (*greenlets.THREADS, "queue")

    def __init__(self, app: WSGIApp, **options: Any) -> None:
        self._app = app
        self.server_options: dict[str, Any] = options
        self._server: Any = None
        self._listener: Any = None

    def run(self, worker: Worker, listener: Listener, started: Callable[[], None]) -> None:
        from cheroot import wsgi
        from cheroot.server import HTTPConnection, HTTPRequest

        self._listener = listener
        known_as: Callable[[Any], Any] = wsgi.Server.resolve_real_bind_addr

        class Server(wsgi.Server):
            def bind(self, *_: Any) -> None:
                self.socket = listener
                self.bind_addr = known_as(listener)

        class Request(HTTPRequest):
            def respond(self) -> None:
                """The head has been read; for reading it cheroot has a timeout of its own."""
                with answering(self.conn.socket):
                    pool.run(self.conn.socket, super().respond)

            def send_headers(self) -> None:
                """To an HTTP/1.0 client cheroot says nothing when it closes a connection that was to be kept."""
                if worker.leaves:
                    self.close_connection = True
                    kept = [pair for pair in self.outheaders if pair[0].lower() != b"connection"]
                    self.outheaders = [*kept, (b"Connection", b"close")]
                super().send_headers()

        class Connection(HTTPConnection):
            RequestHandlerClass = Request

            def __init__(self, server: Any, conn: Any, *arguments: Any) -> None:
                """cheroot looks at the address of the server itself, too, and at this connection's right after this.
                It knows no client of a UNIX socket, other than by a PROXY header."""
                super().__init__(known[conn.listener], conn, *arguments)
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

        if worker.config.threads > 1:
            self.server_options.setdefault("numthreads", worker.config.threads)
        # For requests; cheroot's own is 5 s.
        self.server_options.setdefault("shutdown_timeout", worker.config.drain_timeout)
        self._server = server = Server(("127.0.0.1", 0), self._app, **self.server_options)
        server.wsgi_app = counted(informed(self._app, worker, multithread=server.numthreads > 1), worker)
        server.ConnectionClass = Connection
        pool = Pool(lambda: len(server.requests._threads))
        worker.watch.add(pool.look)
        if context := worker.tls_context():
            server.ssl_adapter = _adapter(context)
        server.prepare()
        known = [view(server, {"bind_addr": known_as(bound)}) for bound in worker.public.listeners]
        started()
        server.serve()

    def drains(self) -> None:
        self._server.keep_alive_conn_limit = 0

    def stop(self) -> None:
        self._listener.end_silent()  # else it waits for threads that read from them, for its `timeout`
        # Else it connects to its own address, to wake an accept that does not sleep here.
        view(self._server, {"bind_addr": ""}).stop()


def _adapter(context: Any) -> Any:
    """cheroot's own adapter makes its context from files, and does the handshake in the loop that accepts."""
    from cheroot.ssl.builtin import BuiltinSSLAdapter

    class Adapter(BuiltinSSLAdapter):
        def __init__(self) -> None:
            self.context = context
            self._server_env: dict[str, Any] = {}

        def wrap(self, sock: Any) -> Any:
            return sock, self.get_environ(sock)  # type: ignore[no-untyped-call]  # the listener has done the handshake

    return Adapter()
