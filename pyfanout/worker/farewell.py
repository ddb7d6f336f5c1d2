"""The end of a connection: the client is told at once, and what it still sends is read for a while. Else the kernel
would reset it, and it would lose the answer that it has not read yet.
"""

from __future__ import annotations

import contextlib
import resource

# By name: gevent takes these out of their modules, or puts in others.
from _thread import start_new_thread
from collections.abc import Callable
from select import POLLIN, poll
from socket import MSG_DONTWAIT, SHUT_WR, socket
from time import monotonic, sleep
from typing import TYPE_CHECKING

from pyfanout import sigmask
from pyfanout.core import Linger

if TYPE_CHECKING:
    import asyncio

LINGER_S = 2.0
"""Seconds that a client may go on sending after the end."""

LEAVING_S = 1.0
"""The same when the worker leaves."""

MOST = 64
"""Connections at once in a worker, of which a quarter may be some with nothing unread: with a look every 100 ms 160 a
second. To hold one costs 3 to 4 us, so that is 0.06 % of a worker's time; beyond that they are closed at once."""

FIRST_S = 0.1
"""Seconds until the first look: by then most clients have closed. A thread that began anew each 5 ms was measured."""

SHARE = 16
"""And no more than one in so many descriptors."""


class Farewell:
    """Of one worker. It needs neither a thread nor a look while nobody lingers."""

    def __init__(self) -> None:
        self._linger = Linger(max(min(MOST, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // SHARE), 1))
        self.part = self._linger.part
        """Takes over the descriptor of a connection that is over: nothing more will be sent, whoever else has a copy.
        Bits: FREED, a descriptor is free now; SWEEP, `begin` must be called. No frame of Python: it is called for
        each."""
        self.drop = self._linger.drop
        """Close all that linger, since there are no descriptors. How many there were."""
        self.copied, self.disown = self._linger.copied, self._linger.disown
        self.later: Callable[[float, Callable[[], None]], object] | None = None
        """Calls a function after so many seconds, from any thread: for a worker with an event loop, which shall have no
        thread for this. None: there is a thread while somebody lingers. May raise RuntimeError."""

    def on(self, loop: asyncio.AbstractEventLoop) -> None:
        """The worker has a loop."""
        self.later = lambda seconds, call: loop.call_soon_threadsafe(loop.call_later, seconds, call)

    def settle(self) -> None:
        """The worker leaves: until none is left, for LEAVING_S at most."""
        end_s = monotonic() + LEAVING_S
        while self._linger.sweep(int(LEAVING_S * 1e9)) and monotonic() < end_s:
            sleep(0.01)
        self.drop()

    def begin(self) -> None:
        """Somebody lingers."""
        try:
            if self.later is None:
                start_new_thread(self._sweep_on, ())
            else:
                self.later(FIRST_S, self._sweep)
        except RuntimeError:  # no thread can be had, or the loop is closed
            self._linger.sweep(0)

    def _sweep(self) -> None:
        """On the loop."""
        if (due_s := self._linger.sweep(_LINGER_NS)) and self.later is not None:
            self.later(due_s, self._sweep)

    def _sweep_on(self) -> None:
        sigmask.block_all()
        sleep(FIRST_S)
        while due_s := self._linger.sweep(_LINGER_NS):
            sleep(due_s)


def linger(conn: socket) -> None:
    """The same for one connection, in a process that has nothing else to do: until the client has closed it, or for
    LINGER_S."""
    end_s = monotonic() + LINGER_S
    news = poll()
    news.register(conn, POLLIN)
    with contextlib.suppress(OSError):  # the client is gone
        socket.shutdown(conn, SHUT_WR)
        while (left_s := end_s - monotonic()) > 0 and news.poll(left_s * 1000):
            if not socket.recv(conn, 65536, MSG_DONTWAIT):  # past TLS: nobody reads it
                break


_LINGER_NS = int(LINGER_S * 1e9)
