"""What is to be sent on a control socket, and could not be yet.

Never waits, never raises. What cannot be sent stays, in order; whoever owns it calls `flush` until nothing is left.
"""

from __future__ import annotations

import errno
import socket
import time

from pyfanout.link.messages import Message, send

AGAIN_NS = 100_000_000
"""Between two tries, if nothing else happens: no event tells when the system has memory again."""

_SHORTAGES = (errno.ENOBUFS, errno.ENOMEM)

NOT_NOW = (errno.EAGAIN, *_SHORTAGES)
"""With these a socket may be tried again."""


class Outbox:
    """Of one socket, which stays the caller's."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._unsent: list[Message] = []
        self.short_ns = 0
        """When the system last had no memory for a message: patience for an answer begins anew then. One that does not
        read has no such excuse, nor has one that has hung up."""

    def __bool__(self) -> bool:
        """Whether something is left to send."""
        return bool(self._unsent)

    def send(self, message: Message) -> None:
        self._unsent.append(message)
        self.flush()

    def flush(self) -> None:
        """As much as can be sent now."""
        try:
            while self._unsent:
                send(self._sock, self._unsent[0])
                del self._unsent[0]
        except OSError as error:
            if error.errno in _SHORTAGES:
                self.short_ns = time.monotonic_ns()
