"""A Listener for connections that begin with a preamble: one that it returns has sent its PROXY header, and has done
its TLS handshake unless the server does that itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyfanout.worker.connection import Address
from pyfanout.worker.listener import EPOLLIN, Listener
from pyfanout.worker.preamble import Preambles

if TYPE_CHECKING:
    from pyfanout.worker.host import Host

DRAIN_S = 0.25
"""Seconds between two checks whether the worker drains, which shortens the time of a preamble."""


class PreambleListener(Listener):
    """Its descriptor is also readable when bytes have come on a connection that is in its preamble."""

    __slots__ = ("_preambles", "_timed")

    def __init__(self, worker: Host, channel_fd: int, preambles: Preambles, **options: Any) -> None:
        super().__init__(worker, channel_fd, **options)
        self._preambles = preambles
        self._timed = False
        """Whether a thread closes those that take too long: a server may stop accepting for a while."""
        self._epoll.register(preambles.fileno(), EPOLLIN)

    def accept(self) -> tuple[Any, Address]:
        with self._accepting:
            while True:
                if admitted := self._preambles.arrived():
                    break
                if self._preambles and not self._timed:
                    self._time_them()
                admitted = self._preambles.admit(*super().accept())
                if admitted is not None:
                    break
            conn, _ = admitted
            self.connections.had_preamble(conn.fileno(), conn.preamble_bytes)
            return admitted

    @property
    def in_preamble(self) -> int:
        return len(self._preambles)

    def _time_them(self) -> None:
        """One thread for all, as long as any wait."""
        try:
            self._worker.background.start(self._expire)
        except RuntimeError:  # no thread can be had now: until the next call
            self._preambles.expire()
        else:
            self._timed = True

    def _expire(self) -> None:
        while True:
            with self._accepting:
                if self._worker.draining:
                    self._preambles.hurry()
                due_s = self._preambles.expire()
                if due_s is None:
                    self._timed = False
                    return
            self._worker.background.sleep(min(due_s, DRAIN_S))

    def _real_close(self) -> None:
        with self._accepting:
            self._preambles.close()
        super()._real_close()
