"""What is to be sent on a control socket, and could not be yet.

Never waits, but in `finish`; never raises. What cannot be sent now stays, in order; the owner calls `flush` until
nothing is left.
"""

from __future__ import annotations

import errno
import logging
import socket
import time
from _thread import allocate_lock  # by name: gevent replaces it

from pyfanout.link.messages import Message, send

log = logging.getLogger("pyfanout.link")

AGAIN_NS = 100_000_000
"""Between two tries, if nothing else happens: no event tells when the system has memory again."""

MOST = 64
"""Messages that may wait. A worker has one pong, and a few words about its life, to send; a master less."""

_SHORTAGES = (errno.ENOBUFS, errno.ENOMEM)

NOT_NOW = (errno.EAGAIN, *_SHORTAGES)
"""With these a socket may be tried again."""


class Outbox:
    """Of one socket, which stays the caller's. For any thread, and for signal handlers."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._unsent: list[Message] = []
        self._sends = allocate_lock()
        """Held by what is just sending. Nothing waits for it: what is added meanwhile is sent by its holder."""
        self.short_ns = 0
        """When the system last had no memory for a message: patience for an answer begins anew then. One that does not
        read has no such excuse, nor has one that has hung up."""

    def __bool__(self) -> bool:
        """Whether something is left to send."""
        return bool(self._unsent)

    def send(self, message: Message) -> None:
        """Now, or later, after what waits. What waits as the last is not added once more."""
        if len(self._unsent) >= MOST:
            log.error(
                "the process at the other end of a control socket does not read: %d messages wait, %r is dropped",
                MOST,
                message,
            )
        elif self._unsent[-1:] != [message]:
            self._unsent.append(message)
        self.flush()

    def flush(self) -> None:
        """As much as can be sent now. If the other side is gone, nothing is left: the socket's end tells that, too."""
        while self._unsent and self._sends.acquire(blocking=False):
            try:
                for message in self._unsent[:1]:  # none, if another thread has sent it just before
                    send(self._sock, message)
                    del self._unsent[0]
            except OSError as error:
                if error.errno not in NOT_NOW:
                    self._unsent.clear()
                if error.errno in _SHORTAGES:
                    self.short_ns = time.monotonic_ns()
                return
            finally:
                self._sends.release()

    def finish(self, timeout_s: float) -> None:
        """`flush` until nothing is left, for so long at most: before the process ends."""
        end_s = time.monotonic() + timeout_s
        while self._unsent and time.monotonic() < end_s:
            self.flush()
            time.sleep(AGAIN_NS / 1e9 / 10)
