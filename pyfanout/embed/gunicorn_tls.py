"""What gunicorn's workers make TLS sockets with."""

from __future__ import annotations

import ssl
from typing import Any

from pyfanout.worker.tls import SecureConnection


def set_socket_class(cfg: Any, secure: type[SecureConnection]) -> None:
    """gunicorn's TLS sockets are of this class."""
    make = cfg.ssl_context

    def make_with_class(conf: Any, default: Any) -> Any:
        context = make(conf, default)
        context.sslsocket_class = secure
        return context

    cfg.set("ssl_context", make_with_class)


def limited(handshake_timeout_s: float) -> type[SecureConnection]:
    class Secure(SecureConnection):
        def do_handshake(self, block: bool = False) -> None:
            before_s = self.gettimeout()
            self.settimeout(handshake_timeout_s)  # for the whole handshake
            try:
                super().do_handshake(block)
            except TimeoutError:  # gunicorn does not log this error: a client that closes causes it
                raise ssl.SSLError(ssl.SSL_ERROR_EOF, f"no handshake within {handshake_timeout_s:g} s") from None
            self.settimeout(before_s)

    return Secure


class Secured:
    """In the place of a context: what gunicorn wraps has done its handshake."""

    @staticmethod
    def wrap_socket(conn: SecureConnection, **_: Any) -> SecureConnection:
        return conn
