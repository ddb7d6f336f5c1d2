"""One end of a control socket: what is sent, what is read, and whether an answer to a ping is owed."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

from pyfanout.link import messages
from pyfanout.link.messages import DecodeError, Message, Ping, Pong
from pyfanout.link.outbox import NOT_NOW, Outbox

MESSAGES = 16
"""Read in one go: then it is the turn of others, even if the other side writes all the time."""


class Link:
    """Owns the socket. Nothing here waits; sending and reading raise nothing but DecodeError."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.outbox = Outbox(sock)
        self.send = self.outbox.send
        self._number = 0
        """Of the last ping."""
        self._pinged_ns: int | None = None
        """When that was sent, if its pong has not come."""

    def fileno(self) -> int:
        return self.sock.fileno()

    def receive(self) -> Iterator[Message | None]:
        """What is there, at most MESSAGES. None, as the last: the other side has closed its end. Raises DecodeError."""
        for _ in range(MESSAGES):
            try:
                message = messages.receive(self.sock)
            except OSError as error:
                if error.errno in NOT_NOW:  # there is none; or no memory for it now, and epoll tells of it again
                    return
                message = None
            yield message
            if message is None:
                return

    def last_words(self) -> Iterator[Message]:
        """What the other side has sent before it died. A child that it has left behind may go on to write, but not to
        an end that is shut down: so this comes to an end."""
        with contextlib.suppress(OSError):  # a sandbox
            self.sock.shutdown(socket.SHUT_RD)
        with contextlib.suppress(DecodeError, OSError):
            while message := messages.receive(self.sock):
                yield message

    def close(self) -> None:
        self.sock.close()

    # ---- pings --------------------------------------------------------------------------------------------------

    @property
    def owes_pong(self) -> bool:
        return self._pinged_ns is not None

    @property
    def owed_since_ns(self) -> int:
        """Since when a pong is owed, if it is. A time in which the system had no memory for the ping does not count."""
        return max(self._pinged_ns or 0, self.outbox.short_ns)

    def ping(self, now_ns: int) -> None:
        """Unless a pong is owed."""
        if self._pinged_ns is None:
            self._number, self._pinged_ns = (self._number + 1) % 2**32, now_ns
            self.send(Ping(self._number))

    def is_answered_by(self, pong: Pong) -> bool:
        """Whether it is the pong that is owed. A second one for the same ping, or one for an older, is none."""
        if self._pinged_ns is None or pong.number != self._number:
            return False
        self._pinged_ns = None
        return True
