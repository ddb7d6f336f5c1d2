"""tornado's HTTPServer as it is in a worker. It imports tornado, so `tornado.py` imports it in the worker."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING, Any

from tornado.httpserver import HTTPServer
from tornado.httputil import HTTPMessageDelegate
from tornado.iostream import SSLIOStream

from pyfanout.embed.counting import counted
from pyfanout.worker import clients

if TYPE_CHECKING:
    from pyfanout.worker.worker import WorkerProcess


class CountedRequest(HTTPMessageDelegate):
    """It counts when its head has been read: before that there is only a connection."""

    def __init__(self, delegate: HTTPMessageDelegate, worker: WorkerProcess) -> None:
        # Instead of methods that only call those: one is called for each part of a body. mypy knows methods of classes
        # only, hence the comments.
        self.headers_received = counted(delegate.headers_received, worker)  # type: ignore[method-assign]
        self.data_received = delegate.data_received  # type: ignore[method-assign]
        self.finish = delegate.finish  # type: ignore[method-assign]
        self.on_connection_close = delegate.on_connection_close  # type: ignore[method-assign]


class Server(HTTPServer):
    """Knows the latest request of each connection; `close_all_connections` cuts off one that goes on."""

    worker: WorkerProcess
    """Set before it accepts."""

    def _handle_connection(self, connection: socket.socket, address: Any) -> None:
        try:
            super()._handle_connection(connection, address)
        except OSError as error:  # ssl.SSLError is one: the client has gone before its handshake
            clients.log.info(
                "worker=%d: no TLS with %s: %s; the connection is closed", self.worker.slot, address, error
            )
            connection.close()

    def handle_stream(self, stream: Any, address: Any) -> None:
        if isinstance(stream, SSLIOStream) and stream._ssl_accepting:
            timeout_s = self.worker.config.handshake_timeout
            timer = asyncio.get_running_loop().call_later(timeout_s, self._end_handshake, stream, address)
            stream.wait_for_handshake().add_done_callback(lambda _: timer.cancel())
        super().handle_stream(stream, address)

    def _end_handshake(self, stream: SSLIOStream, address: Any) -> None:
        if stream._ssl_accepting and not stream.closed():
            timeout_s = self.worker.config.handshake_timeout
            slot = self.worker.slot
            clients.log.info(
                "worker=%d: no TLS with %s: no handshake within %g s (handshake_timeout); the connection is closed",
                slot,
                address,
                timeout_s,
            )
            stream.close()

    def start_request(self, server_conn: Any, request_conn: Any) -> Any:
        server_conn.latest = request_conn
        context = request_conn.context
        if context.address_family == socket.AF_UNIX and isinstance(context.address, tuple):
            # By a PROXY header; tornado knows no address of a UNIX socket's client.
            context.address_family = socket.AF_INET6 if ":" in context.address[0] else socket.AF_INET
            context.remote_ip = context._orig_remote_ip = context.address[0]
        delegate = super().start_request(server_conn, request_conn)
        return CountedRequest(delegate, self.worker) if self.worker.config.max_requests > 0 else delegate
