"""The live connections of a listener: those that its server has accepted, and that are neither closed nor detached.

Knows of each, from outside, whether it is between two requests: so a draining worker can end it, though its server has
not told.
"""

from __future__ import annotations

import contextlib
import functools
import math
import socket

# By name: gevent takes it out of its module. Its greenlets are one thread, with one lock.
from _thread import RLock
from collections.abc import Callable, Iterator
from time import monotonic
from typing import TYPE_CHECKING, Any

from pyfanout.worker import child
from pyfanout.worker.idle import IDLE_S, LOOK_S, bytes_read, end_input, has_unread, is_answered, is_at_rest, is_silent
from pyfanout.worker.receipt import Receipt
from pyfanout.worker.unix_watch import UnixWatch

if TYPE_CHECKING:
    from pyfanout.worker.host import Host


def _is_old(since_s: float) -> bool:
    """Enough to be idle."""
    return monotonic() - since_s >= IDLE_S


class LiveConnections:
    """Those of one listener, by descriptor. From any thread."""

    def __init__(self, worker: Host) -> None:
        self._worker = worker
        self._done = worker.ends.done_cell()
        self._lock = RLock()  # a connection may be collected, and report its end, in the middle of anything
        self._since_s: dict[int, float] = {}
        """Since when, of UNIX ones: by `time.monotonic`."""
        self._unix: UnixWatch | None = None
        """Made for the first UNIX connection."""
        self._preamble_bytes: dict[int, int] = {}
        """How many bytes came before the client's own first one: a PROXY header, a TLS handshake."""
        self._unserved: dict[int, Callable[[], bool]] = {}
        """See `idle_while`."""

    # ---- which there are -----------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._since_s)

    def begin(self, arrival: Any) -> Receipt:
        """The server is about to have this fan_connection; returns its receipt."""
        fd: int = arrival.fd
        self._since_s[fd] = -math.inf
        if arrival.family == socket.AF_UNIX:
            self._since_s[fd] = monotonic()
            self._watch_unix(fd)
        return Receipt(functools.partial(self._end, fd))

    def _watch_unix(self, fd: int) -> None:
        with self._lock, contextlib.suppress(OSError):  # no descriptor is free
            if self._unix is None:
                self._unix = UnixWatch()
            self._unix.add(fd)

    def _end(self, fd: int) -> None:
        with self._lock:
            self._since_s.pop(fd, None)
            if self._unix is not None:
                self._unix.discard(fd)
            self._preamble_bytes.pop(fd, None)
            self._unserved.pop(fd, None)
            if not self._worker.most:
                self._done[0] += 1
                return
        self._worker.ended()

    def disown(self, *, silence: bool) -> None:
        """In a child that the worker forked. `silence`: what the child sends on them goes nowhere."""
        if self._unix is not None:  # its sets are the worker's, too, which still needs what is in them
            self._unix.close()
            self._unix = None
        if silence:
            child.silence(self._since_s)

    # ---- whether they are between two requests -------------------------------------------------------------------

    @property
    def settled(self) -> bool:
        """Whether each is between two requests, as far as one can tell from outside: nothing came or went for a
        second."""
        known = self._since_s.copy().items()  # in one go: a list of pairs lets one be collected, and take itself out
        with self._lock:
            if self._unix is not None:
                self._unix.look()
            return all(_is_old(since_s) and self._is_silent(fd) and not has_unread(fd) for fd, since_s in known)

    def _is_silent(self, fd: int) -> bool:
        if self._unix is not None and fd in self._unix:
            return self._unix.silent_s(fd) >= IDLE_S
        return is_silent(fd)

    def _is_at_rest(self, fd: int) -> bool:
        if self._unix is not None and fd in self._unix:
            busy = self._unix.client_spoke_last(fd) or is_answered(fd) or has_unread(fd)
            return self._is_silent(fd) and not busy
        return is_at_rest(fd, self._preamble_bytes.get(fd, 0))

    def had_preamble(self, fd: int, preamble_bytes: int) -> None:
        """The client's own bytes begin after so many."""
        self._preamble_bytes[fd] = preamble_bytes
        if self._unix is not None and fd in self._unix:
            self._unix.begin(fd)

    def idle_while(self, fd: int, unserved: Callable[[], bool]) -> None:
        """While `unserved()` there is no request on that connection, whichever side sent last: its TLS handshake goes
        on, or its server has closed it and waits for its client's close_notify."""
        if fd in self._since_s:
            self._unserved[fd] = unserved

    @contextlib.contextmanager
    def shaking_hands(self, fd: int, unread: Callable[[], int] | None = None) -> Iterator[None]:
        """While the block runs, the TLS handshake of that connection goes on. `unread`: how many bytes had been
        received beyond it when it was complete, if that is known; then no byte before those counts as one of a
        request."""

        def unserved() -> bool:
            return True

        self.idle_while(fd, unserved)
        try:
            yield
            if unread is not None:
                self.had_preamble(fd, bytes_read(fd) - unread())
        finally:
            if self._unserved.get(fd) is unserved:  # else the connection is over, and another one has its number
                del self._unserved[fd]

    @property
    def unserved(self) -> bool:
        """Whether one without a request is open, see `idle_while`."""
        return any(unserved() for unserved in list(self._unserved.values()))

    # ---- ending them ---------------------------------------------------------------------------------------------

    def end_silent(self) -> None:
        """End the input of those that are silent after the worker sent last: their readers read the end, as if the
        client had closed its side. What the server still sends reaches the client."""
        self.end_unserved()
        with self._lock:  # none of them is closed meanwhile, and its number given to another
            if self._unix is not None:
                self._unix.look()
            for fd, since_s in self._since_s.copy().items():
                if _is_old(since_s) and self._is_at_rest(fd):
                    end_input(fd)

    def end_unserved(self) -> None:
        """The same, but only for those without a request, see `idle_while`."""
        with self._lock:
            for fd, unserved in self._unserved.copy().items():
                if _is_old(self._since_s[fd]) and self._is_silent(fd) and unserved():
                    end_input(fd)

    def end_all(self) -> None:
        """The same for all."""
        with self._lock:
            for fd in list(self._since_s):  # one may be collected meanwhile, and take itself out
                end_input(fd)

    def make_room(self) -> None:
        """The server stops. If there is a limit of connections, clients wait for room, and are still to be answered: so
        idle connections are ended as long as the worker holds all that it may."""
        if self._worker.most and not self._worker.forked:
            with contextlib.suppress(RuntimeError):  # no thread can be had
                self._worker.background.start(self._make_room)

    def _make_room(self) -> None:
        """Until the worker drains: then its server does that."""
        while not self._worker.draining:
            if len(self) >= self._worker.most:
                self.end_silent()
            self._worker.background.sleep(LOOK_S)
