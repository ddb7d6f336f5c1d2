"""waitress: WSGI, on a pool of threads behind one loop that reads and writes for them. It speaks no TLS."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pyfanout.embed.counting import counted
from pyfanout.embed.threaded import ThreadedRunner
from pyfanout.embed.views import views
from pyfanout.embed.wsgi import informed
from pyfanout.worker.threads import Pool

if TYPE_CHECKING:
    from pyfanout.kind import WSGIApp
    from pyfanout.worker.listener import Listener
    from pyfanout.worker.public import Bound
    from pyfanout.worker.worker import Worker

DRAIN_S = 0.1
"""Seconds between two looks for channels that are done, while it stops."""


class Runner(ThreadedRunner):
    """`options` are waitress.serve's, such as `threads` (pyfanout's own if that is more than 1, else waitress's 4) or
    `trusted_proxy`, but for those of addresses."""

    needs = ("waitress",)
    extra = "wsgi"
    no_tls = "server: waitress speaks no TLS; cheroot does: --server cheroot"
    control = False  # at `connection_limit` it stops accepting
    shows_requests = True

    def __init__(self, app: WSGIApp, **options: Any) -> None:
        self._app = app
        self.server_options: dict[str, Any] = options
        self._server: Any = None
        self._stopping = False

    def run(self, worker: Worker, listener: Listener, started: Callable[[], None]) -> None:
        from waitress import channel, task, wasyncore
        from waitress.adjustments import Adjustments
        from waitress.server import TcpWSGIServer, UnixWSGIServer

        class Task(task.WSGITask):
            def build_response_header(self) -> bytes:
                if worker.leaves:  # as if the client had asked for it: this ends HTTP/1.0 connections, too
                    self.request.headers["CONNECTION"] = "close"
                return super().build_response_header()

        class Channel(channel.HTTPChannel):
            task_class = Task

            def __init__(self, _: Any, conn: Any, addr: Any, adj: Any, map: Any = None) -> None:
                """Without an address: waitress calls a client of a UNIX socket so."""
                addr = addr if isinstance(addr, tuple) else ("localhost", None)
                super().__init__(known[conn.listener], conn, addr, adj, map=map)

            def service(self) -> None:
                pool.run(self.socket, super().service)

        class Control(wasyncore.dispatcher):
            """Answers pings from the loop that serves."""

            def writable(self) -> bool:
                return False

            def handle_read(self) -> None:
                if not worker.receive():
                    self.del_channel()
                    worker.outlive_master()

        worker.adopt_logger("waitress")
        if worker.config.threads > 1:
            self.server_options.setdefault("threads", worker.config.threads)
        loop: dict[int, Any] = {}
        # As `create_server`, which ignores a socket that is none to gevent, and opens its default port.
        kind = UnixWSGIServer if listener.family == socket.AF_UNIX else TcpWSGIServer
        self._server = server = kind(
            self._app,
            map=loop,
            _sock=listener,
            adj=Adjustments(sockets=[listener], **self.server_options),
            bind_socket=False,
            sockinfo=(listener.family, listener.type, listener.proto, listener.getsockname()),
        )
        server.application = counted(informed(server.application, worker, multithread=server.adj.threads > 1), worker)
        server.channel_class = Channel
        server.fix_addr = lambda addr: addr  # its own one on UNIX forgets what a PROXY header says
        known = views(server, worker.public, _names)
        pool = Pool(lambda: len(server.task_dispatcher.threads))
        worker.watch.add(pool.look)
        Control(worker.link.sock, map=loop)
        server.adj.connection_limit += 1  # waitress counts the sockets of its loop; one is the control socket
        listener.limit(max(server.adj.connection_limit - len(loop), 1))
        started()
        while not (self._stopping and not server.active_channels):
            if self._stopping:
                server.adj.channel_timeout = 0
                server.maintenance(time.time() + 1)  # marks those without a request to be closed
            timeout_s = DRAIN_S if self._stopping else server.adj.asyncore_loop_timeout
            wasyncore.loop(timeout=timeout_s, use_poll=server.adj.asyncore_use_poll, map=loop, count=1)
        server.task_dispatcher.shutdown()

    def busy(self) -> bool:
        """One is coming, and not whole yet: `maintenance` would close it."""
        return any(channel.request is not None for channel in list(self._server.active_channels.values()))

    def stop(self) -> None:
        self._stopping = True
        self._server.pull_trigger()


def _names(bound: Bound) -> dict[str, Any]:
    """What its own classes, one for TCP and one for UNIX, know of their socket."""
    host, port = "unix", bound.address
    if bound.family != socket.AF_UNIX:
        host, port = socket.getnameinfo(bound.address, socket.NI_NUMERICHOST | socket.NI_NUMERICSERV)
    return {"family": bound.family, "effective_host": host, "effective_port": port}
