"""TLS for connections: the context, and the handshake unless a loop does it. The master never does handshakes.

An asyncio worker leaves the handshake to its loop.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import ssl
from collections.abc import Generator, Iterator
from select import EPOLLIN, EPOLLOUT
from typing import TYPE_CHECKING, Any

from pyfanout.errors import ConfigError
from pyfanout.worker import connection
from pyfanout.worker.connection import Address, Connection, Counting
from pyfanout.worker.idle import bytes_read
from pyfanout.worker.receipt import CLOSED, Receipt

if TYPE_CHECKING:
    from pyfanout.config import Config


def prepare(config: Config) -> None:
    """Before workers are forked. Raises ConfigError, one line, if `context_of` would; does not keep the private key."""
    if config.certfile is None:
        context_of(config)
    else:
        _empty(config.certfile, config.keyfile)
        _load(_new(), config.certfile, config.keyfile)


def context_of(config: Config) -> ssl.SSLContext | None:
    """The context that the options ask for; None: no TLS. Each worker reads its certificate, so that a reload has a new
    one; but an `ssl` that is a context was made before, and stays. Raises ConfigError, one line."""
    given = config.ssl() if callable(config.ssl) else config.ssl
    if given is not None:
        if not isinstance(given, ssl.SSLContext):
            raise ConfigError(f"ssl: the function returned {type(given).__name__}, not an ssl.SSLContext")
        context = given
    elif config.certfile is None:
        return None
    else:
        context = _empty(config.certfile, config.keyfile)
        _load(context, config.certfile, config.keyfile)
    context.sslsocket_class = SecureConnection
    return context


def _new() -> ssl.SSLContext:
    return ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)


@functools.cache
def _empty(_certfile: str, _keyfile: str | None) -> ssl.SSLContext:
    """A context for these files, without their contents. The keys of its session tickets are made with it, and Python
    cannot set them. So it is made once, before the fork, and each worker, whatever its certificate, resumes the
    sessions that others have begun."""
    return _new()


def _load(context: ssl.SSLContext, certfile: str, keyfile: str | None) -> None:
    try:
        context.load_cert_chain(certfile, keyfile, password=_no_password)
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        files = certfile if keyfile is None else f"{certfile}, {keyfile}"
        reason = str(error)
        for file in (certfile, keyfile or certfile):  # ssl does not say which of the two it is
            try:
                open(file, "rb").close()
            except OSError as unread:
                files, reason = file, unread.strerror or str(unread)
                break
        raise ConfigError(f"certfile: {files} cannot be used: {reason}") from error


def _no_password() -> str:
    """A key that wants one would ask on the terminal, in each worker."""
    raise ValueError("the key has a password; write it without, or give `ssl` a context")


class Sending:
    """For classes of TLS sockets: that the client has gone is the same error as without TLS, one that servers know.
    Python 3.11 raises SSLEOFError, whatever the kernel says; newer ones do not (cpython#115627)."""

    def send(self, *arguments: Any, **keywords: Any) -> Any:
        with _plain_error():
            return super().send(*arguments, **keywords)  # type: ignore[misc]  # that of the socket

    def write(self, *arguments: Any) -> Any:
        with _plain_error():
            return super().write(*arguments)  # type: ignore[misc]  # the same


@contextlib.contextmanager
def _plain_error() -> Iterator[None]:
    try:
        yield
    except ssl.SSLEOFError as error:
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE)) from error


class SecureConnection(Sending, Counting, ssl.SSLSocket):
    """A TLS connection that closes its receipt when it is closed or detached; see `connection.Connection`."""

    _receipt = CLOSED
    peer: Address | None = None
    """As in a `Connection`, like the next."""
    preamble_bytes = 0
    listener = 0

    @classmethod
    def _create(cls, sock: Any, *arguments: Any, **keywords: Any) -> SecureConnection:
        """What `wrap_socket` calls. It detaches the plain socket, which is not its end."""
        receipt = sock.hand_over() if isinstance(sock, Connection) else CLOSED
        try:
            self: SecureConnection = super()._create(sock, *arguments, **keywords)  # type: ignore[misc]
        except BaseException:
            receipt.close()
            raise
        self._receipt = receipt
        if receipt.is_open:
            self.peer, self.preamble_bytes, self.listener = sock.peer, sock.preamble_bytes, sock.listener
        return self

    def getpeername(self) -> Any:
        return super().getpeername() if self.peer is None else self.peer

    def hand_over(self) -> Receipt:
        """As in a `Connection`."""
        return self._receipt.move()

    def take_back(self, receipt: Receipt) -> None:
        """As in a `Connection`."""
        self._receipt = receipt

    def _real_close(self) -> None:
        if not self._receipt.close():
            super()._real_close()  # type: ignore[misc]
            return
        self._sslobj = None
        connection.part(super().detach())

    def detach(self) -> int:
        self._receipt.close()
        return super().detach()

    def __del__(self) -> None:
        """Its server has forgotten to close it, or the client has reset it before there was a handshake: then
        `ssl.SSLSocket._create` fails without closing it (Python 3.11 to 3.14)."""
        if self.fileno() >= 0:
            self._real_close()
        super().__del__()  # type: ignore[misc]  # of C

    def bid_farewell(self) -> None:
        """Say that nothing more will come (close_notify), without waiting for an answer."""
        with contextlib.suppress(OSError, ValueError):  # it is closed, or does not take that now
            self.settimeout(0)
            self.unwrap()

    def drop(self) -> bool:
        """As in a `Connection`: without a close_notify."""
        if self.fileno() < 0:
            return False
        self._closed = True
        self._real_close()
        return True

    def finish(self) -> bool:
        """As in a `Connection`, after a close_notify."""
        if self.fileno() >= 0:
            self.bid_farewell()
        return self.drop()


def shake_hands(conn: Connection, context: ssl.SSLContext) -> Generator[int, None, SecureConnection]:
    """The secure connection in the place of `conn`, blocking if `conn` was. Does not wait: yields the epoll event that
    it waits for. Raises OSError (ssl.SSLError is one) after it has closed the connection; closing the generator closes
    it, too."""
    timeout = conn.gettimeout()
    conn.settimeout(0)
    secure: Any = context.wrap_socket(conn, server_side=True, do_handshake_on_connect=False)
    try:
        while True:
            try:
                secure.do_handshake()
                break
            except ssl.SSLWantReadError:
                wanted = EPOLLIN
            except ssl.SSLWantWriteError:
                wanted = EPOLLOUT
            yield wanted
        secure.preamble_bytes = bytes_read(secure.fileno())  # it reads not a byte too much
        secure.settimeout(timeout)
    except BaseException:
        secure._closed = True
        secure._real_close()
        raise
    return secure  # type: ignore[no-any-return]
