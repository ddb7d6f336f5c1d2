"""cheroot: WSGI, on a pool of threads; CherryPy's server. It speaks TLS."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pyfanout import greenlets
from pyfanout.embed.threaded import ThreadedRunner
from pyfanout.embed.views import view
from pyfanout.worker.serving import ServingWorker, inside

if TYPE_CHECKING:
    from pyfanout.kind import WSGIApp
    from pyfanout.worker.listener import Listener


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

    def run(self, face: ServingWorker, listener: Listener, started: Callable[[], None]) -> None:
        worker = inside(face)
        from pyfanout.embed.cheroot_server import Server

        self._listener = listener
        if worker.config.threads > 1:
            self.server_options.setdefault("numthreads", worker.config.threads)
        # For requests; cheroot's own is 5 s.
        self.server_options.setdefault("shutdown_timeout", worker.config.drain_timeout)
        self._server = server = Server(worker, listener, self._app, self.server_options)
        if context := worker.tls_context():
            server.ssl_adapter = _adapter(context)
        server.prepare()
        started()
        server.serve()

    def drains(self) -> None:
        self._server.keep_alive_conn_limit = 0

    def stop(self) -> None:
        self._listener.connections.end_silent()  # else it waits for threads that read from them, for its `timeout`
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
