"""When bytes last moved on UNIX connections, and which way: of TCP connections the kernel knows both (TCP_INFO).

Two edge-triggered epoll sets have each connection. One is told of all that happens on it; the other one only when the
client has taken bytes. An event in the first set alone means that the client has sent. No thread waits for these sets:
a draining worker looks at them now and then.
"""

from __future__ import annotations

import contextlib
import termios
from select import EPOLLET, EPOLLIN, EPOLLOUT
from time import monotonic

from pyfanout.worker.epoll import epoll
from pyfanout.worker.idle import waits


class UnixWatch:
    """Of the connections of one listener. From any thread, with a lock of the caller's."""

    def __init__(self) -> None:
        """Raises OSError."""
        self._all, self._taken = epoll(), epoll()
        self._last: dict[int, tuple[float, bool]] = {}
        """When something last moved, and whether the client sent it."""

    def __contains__(self, fd: int) -> bool:
        return fd in self._last

    def add(self, fd: int) -> None:
        """Watch a connection that was just accepted; without memory for that, it is not watched."""
        self.begin(fd)
        try:
            self._all.register(fd, EPOLLIN | EPOLLOUT | EPOLLET)
            self._taken.register(fd, EPOLLOUT | EPOLLET)
        except OSError:
            self.discard(fd)
            return
        self.look()  # each set reports a new one once
        self.begin(fd)

    def begin(self, fd: int) -> None:
        """What came so far, a PROXY header or a TLS handshake, was no request of its client."""
        self._last[fd] = monotonic(), waits(fd, termios.FIONREAD)

    def discard(self, fd: int) -> None:
        """Before it is closed: a child may have a copy, and its number becomes another's."""
        if self._last.pop(fd, None) is not None:
            for each in (self._all, self._taken):
                with contextlib.suppress(OSError, ValueError):
                    each.unregister(fd)

    def look(self) -> None:
        """What has happened since the last look. Of both directions in one interval, the client took last."""
        now_s = monotonic()
        taken = {fd for fd, _ in self._taken.poll(0, len(self._last) + 2)}
        for fd in {fd for fd, _ in self._all.poll(0, len(self._last) + 2)} | taken:
            if fd in self._last:
                self._last[fd] = now_s, fd not in taken

    def silent_s(self, fd: int) -> float:
        """Seconds without a byte; 0 as long as the client has not taken all that was sent."""
        return 0.0 if waits(fd, termios.TIOCOUTQ) else monotonic() - self._last[fd][0]

    def client_spoke_last(self, fd: int) -> bool:
        return self._last[fd][1]

    def close(self) -> None:
        self._all.close()
        self._taken.close()
