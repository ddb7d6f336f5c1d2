"""waitress's server as it is in a worker. It imports waitress, so `waitress.py` imports it in the worker."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

from waitress import channel, task, wasyncore
from waitress.adjustments import Adjustments
from waitress.server import TcpWSGIServer, UnixWSGIServer

from pyfanout.embed.counting import counted
from pyfanout.embed.views import views
from pyfanout.embed.wsgi import informed
from pyfanout.worker.threads import Pool

if TYPE_CHECKING:
    from pyfanout.worker.listener import Listener
    from pyfanout.worker.public import Bound
    from pyfanout.worker.worker import WorkerProcess


class Task(task.WSGITask):
    def build_response_header(self) -> bytes:
        if self.channel.server.worker.leaves:  # as if the client had asked for it: this ends HTTP/1.0 connections, too
            self.request.headers["CONNECTION"] = "close"
        return super().build_response_header()


class Channel(channel.HTTPChannel):
    task_class = Task

    def __init__(self, server: Any, conn: Any, addr: Any, adj: Any, map: Any = None) -> None:
        """Without an address: waitress calls a client of a UNIX socket so."""
        addr = addr if isinstance(addr, tuple) else ("localhost", None)
        super().__init__(server.known[conn.listener], conn, addr, adj, map=map)

    def service(self) -> None:
        self.server.pool.run(self.socket, super().service)


class Control(wasyncore.dispatcher):
    """Answers pings from the loop that serves."""

    def __init__(self, worker: WorkerProcess, loop: dict[int, Any]) -> None:
        self._worker = worker
        super().__init__(worker.link.sock, map=loop)

    def writable(self) -> bool:
        return False

    def handle_read(self) -> None:
        if not self._worker.receive():
            self.del_channel()
            self._worker.outlive_master()


def server_on(
    worker: WorkerProcess, listener: Listener, app: Any, loop: dict[int, Any], options: dict[str, Any]
) -> TcpWSGIServer:
    """As waitress's `create_server`, which ignores a socket that is none to gevent, and opens its default port."""
    kind = UnixWSGIServer if listener.family == socket.AF_UNIX else TcpWSGIServer
    server = kind(
        app,
        map=loop,
        _sock=listener,
        adj=Adjustments(sockets=[listener], **options),
        bind_socket=False,
        sockinfo=(listener.family, listener.type, listener.proto, listener.getsockname()),
    )
    server.application = counted(informed(server.application, worker, multithread=server.adj.threads > 1), worker)
    server.channel_class = Channel
    server.fix_addr = lambda addr: addr  # its own one on UNIX forgets what a PROXY header says
    server.worker = worker
    server.pool = Pool(lambda: len(server.task_dispatcher.threads))
    server.known = views(server, worker.public, _names)
    worker.watch.add(server.pool.look)
    return server


def _names(bound: Bound) -> dict[str, Any]:
    """What its own classes, one for TCP and one for UNIX, know of their socket."""
    host, port = "unix", bound.address
    if bound.family != socket.AF_UNIX:
        host, port = socket.getnameinfo(bound.address, socket.NI_NUMERICHOST | socket.NI_NUMERICSERV)
    return {"family": bound.family, "effective_host": host, "effective_port": port}
