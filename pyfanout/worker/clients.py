"""The log lines about clients that break off, or speak neither TLS nor the PROXY protocol. They are few, because any
client on the network can cause one, as often as it likes.
"""

from __future__ import annotations

import logging
import socket
from _thread import allocate_lock  # by name: gevent replaces it in its module
from select import poll
from time import monotonic

MOST = 10
"""Lines in WINDOW_S. So many tell of a proxy or a certificate that is wrong; more say nothing new."""

WINDOW_S = 10.0

GONE = (BrokenPipeError, ConnectionAbortedError, ConnectionResetError)
"""What reading and writing raise when the client has gone. Their subclasses are of other connections, such as
http.client.RemoteDisconnected."""
_SSL_GONE = ("SSLEOFError", "SSLZeroReturnError")


class Few(logging.Filter):
    """Lets MOST lines through in WINDOW_S. The last of them says that there may be more; the first one afterwards says
    how many there were."""

    def __init__(self) -> None:
        super().__init__()
        self._lock = allocate_lock()
        self._since_s = -WINDOW_S
        self._count = 0

    def filter(self, record: logging.LogRecord) -> bool:
        with self._lock:
            now_s, more = monotonic(), 0
            if now_s - self._since_s >= WINDOW_S:
                self._since_s, more, self._count = now_s, max(self._count - MOST, 0), 0
            self._count += 1
            count = self._count
        if count > MOST:
            return False
        note = f" ({more} more such lines were not logged)" if more else ""
        if count == MOST:
            note += f" (more such lines within {WINDOW_S:g} s are counted, and not logged)"
        record.msg, record.args = record.getMessage() + note, None
        return True


log = logging.getLogger("pyfanout.worker.clients")
FEW = Few()
if not log.filters:
    log.addFilter(FEW)


def limit(logger: str, words: str) -> None:
    """Count the lines of a server's own logger that begin with `words` together with these."""
    named = logging.getLogger(logger)
    named.addFilter(lambda record: not str(record.msg).startswith(words) or FEW.filter(record))


def has_gone(error: BaseException, conn: socket.socket) -> bool:
    """Whether `error`, raised by a handler, only says that the client of this connection has gone. If the handler has
    closed it nothing can be said: the error may be of another connection, to a database."""
    if type(error) not in GONE and type(error).__name__ not in _SSL_GONE:
        return False
    try:
        ends = poll()
        ends.register(conn, 0)  # POLLHUP: both directions have ended
        return bool(ends.poll(0))
    except (OSError, ValueError):
        return False
