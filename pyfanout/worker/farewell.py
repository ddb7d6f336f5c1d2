"""The end of a connection: the client is told at once, and the worker reads its late input for a while. Else the kernel
would reset the connection, and the client would lose the part of the answer that it has not read yet.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

# By name: gevent removes these from their modules, or replaces them.
from select import POLLIN, poll
from socket import MSG_DONTWAIT, SHUT_WR, socket
from time import monotonic, sleep
from typing import TYPE_CHECKING

from pyfanout.core import Linger
from pyfanout.limits import OpenFiles

if TYPE_CHECKING:
    import asyncio

    from pyfanout.worker.background import Background

LINGER_S = 2.0
"""Seconds that a client may go on sending after the end."""

LEAVING_S = 1.0
"""The same when the worker exits."""

HURRY_S = 0.2
"""The same in a fast stop."""

MOST = 64
"""Connections at once in a worker, of which a quarter may have no unread input: with a sweep every 100 ms that is 160 a
second. To hold one costs 3 to 4 us, so this is 0.06 % of a worker's time; beyond that they are closed at once."""

FIRST_S = 0.1
"""Seconds until the first sweep: by then most clients have closed. A thread that was started anew each 5 ms was
measured."""

SHARE = 16
"""At most one in this many descriptors."""


class Farewell:
    """The held connections of one worker. It needs neither a thread nor a sweep while it holds none."""

    def __init__(self, background: Background) -> None:
        self._background = background
        self._linger = Linger(max(min(MOST, OpenFiles().soft // SHARE), 1))
        self.part = self._linger.part
        """Takes over the descriptor of a connection that is over: nothing more will be sent, although other processes
        may have copies. Bits: FREED, a descriptor is free now; SWEEP, `begin` must be called. A C function without a
        Python frame, because it is called for each connection."""
        self.drop = self._linger.drop
        """Close all held connections, because no descriptor is free. Returns how many there were."""
        self.copied, self.disown = self._linger.copied, self._linger.disown
        self.later: Callable[[float, Callable[[], None]], object] | None = None
        """Calls a function after that many seconds, from any thread: for a worker with an event loop, which needs no
        thread then. None: a thread sweeps while a connection is held. May raise RuntimeError."""
        self._sweep_s = 0.0
        """When that thread sweeps next."""

    def on(self, loop: asyncio.AbstractEventLoop) -> None:
        """The worker has a loop."""
        self.later = lambda seconds, call: loop.call_soon_threadsafe(loop.call_later, seconds, call)

    def settle(self, *, at_once: bool) -> None:
        """The worker exits: sweep until no connection is held, for LEAVING_S at most. `at_once`: for HURRY_S."""
        patience_s = HURRY_S if at_once else LEAVING_S
        end_s = monotonic() + patience_s
        while self._linger.sweep(int(patience_s * 1e9)) and monotonic() < end_s:
            sleep(0.01)
        self.drop()

    def begin(self) -> None:
        """A connection is held now."""
        try:
            if self.later is None:
                self._sweep_s = monotonic() + FIRST_S
                self._background.start(self._sweep_on)
            else:
                self.later(FIRST_S, self._sweep)
        except RuntimeError:  # no thread can be had, or the loop is closed
            self._linger.sweep(0)

    def _sweep(self) -> None:
        """On the loop."""
        if (due_s := self._linger.sweep(_LINGER_NS)) and self.later is not None:
            self.later(due_s, self._sweep)

    def _sweep_on(self) -> None:
        self._background.sleep(self._sweep_s - monotonic())
        while due_s := self._linger.sweep(_LINGER_NS):
            self._sweep_s = monotonic() + due_s
            self._background.sleep(due_s)


def linger(conn: socket) -> None:
    """The same for one connection, in a process that serves nothing else: until the client has closed it, or for
    LINGER_S."""
    end_s = monotonic() + LINGER_S
    news = poll()
    news.register(conn, POLLIN)
    with contextlib.suppress(OSError):  # the client has closed
        socket.shutdown(conn, SHUT_WR)
        while (left_s := end_s - monotonic()) > 0 and news.poll(left_s * 1000):
            if not socket.recv(conn, 65536, MSG_DONTWAIT):  # past TLS: it is dropped
                break


_LINGER_NS = int(LINGER_S * 1e9)
