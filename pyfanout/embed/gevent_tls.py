"""The TLS handshake of a connection that gevent serves."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import gevent
from gevent.ssl import SSLContext, SSLSocket

from pyfanout.embed.gevent_server import NoHandshakeError
from pyfanout.worker.tls import Sending

if TYPE_CHECKING:
    import ssl

    from pyfanout.worker.listener import Listener
    from pyfanout.worker.worker import WorkerProcess


class SecureSocket(Sending, SSLSocket):
    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        """gevent's own leaves it open if the client has reset the connection."""
        try:
            super().__init__(*arguments, **keywords)
        except BaseException:
            with contextlib.suppress(OSError, AttributeError):  # it was not even made
                self.close()
            raise


class Handshake:
    """A server's `wrap_socket`, with a limit of time."""

    def __init__(self, worker: WorkerProcess, listener: Listener, context: ssl.SSLContext) -> None:
        context.sslsocket_class = SecureSocket
        self._timeout_s = worker.config.handshake_timeout
        self._listener = listener
        self._context = context

    def __call__(self, conn: Any, **how: Any) -> Any:
        """The context may have been made before gevent patched ssl, as the master's was; gevent's own method does for
        both."""
        in_time = gevent.Timeout(self._timeout_s, TimeoutError(f"no handshake within {self._timeout_s:g} s"))
        try:
            with self._listener.connections.shaking_hands(conn.fileno(), lambda: 0), in_time:
                secure = SSLContext.wrap_socket(self._context, conn, **how)
                secure.listener = conn.listener
                return secure
        except OSError as error:  # ssl.SSLError is one
            raise NoHandshakeError(error) from error
