"""Outbox: what the master, or a dispatcher, says to one worker on its control socket, and says again until it is sent.

Never waits, never raises. What cannot be sent stays, in order; whoever owns it calls `flush` until nothing is left.
"""

from __future__ import annotations

import errno
import socket
import time

from pyfanout.link.messages import Message, tell

AGAIN_NS = 100_000_000
"""Between two tries, if nothing else happens: no event tells when the system has memory again."""

_SHORTAGES = (errno.ENOBUFS, errno.ENOMEM)


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

    def say(self, message: Message) -> None:
        self._unsent.append(message)
        self.flush()

    def flush(self) -> None:
        """As much as can be sent now."""
        try:
            while self._unsent:
                tell(self._sock, self._unsent[0])
                del self._unsent[0]
        except OSError as error:
            if error.errno in _SHORTAGES:
                self.short_ns = time.monotonic_ns()
