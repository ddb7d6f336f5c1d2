"""A Listener for servers whose clients must be greeted: a connection that it returns has sent its PROXY header, and has
done its TLS handshake unless the server does that itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyfanout.worker.connection import Address
from pyfanout.worker.greeting import Greeter
from pyfanout.worker.listener import EPOLLIN, Listener

if TYPE_CHECKING:
    from pyfanout.worker.worker import Worker

DRAIN_S = 0.25
"""Seconds between two checks whether the worker drains, which shortens the time of a greeting."""


class GreetedListener(Listener):
    """Its descriptor is also readable when bytes have come on a connection that is being greeted."""

    __slots__ = ("_greeter", "_timed")

    def __init__(self, worker: Worker, channel_fd: int, greeter: Greeter, **options: Any) -> None:
        super().__init__(worker, channel_fd, **options)
        self._greeter = greeter
        self._timed = False
        """Whether a thread closes those that take too long: a server may stop accepting for a while."""
        self._epoll.register(greeter.fileno(), EPOLLIN)

    def accept(self) -> tuple[Any, Address]:
        with self._accepting:
            while True:
                if greeted := self._greeter.arrived():
                    break
                if self._greeter and not self._timed:
                    self._time_them()
                greeted = self._greeter.admit(*super().accept())
                if greeted is not None:
                    break
            conn, _ = greeted
            self._has_greeted(conn.fileno(), conn.greeting_bytes)
            return greeted

    @property
    def greeting(self) -> int:
        return len(self._greeter)

    def _time_them(self) -> None:
        """One thread for all, as long as any wait."""
        try:
            self._worker.background.start(self._expire)
        except RuntimeError:  # no thread can be had now: until the next call
            self._greeter.expire()
        else:
            self._timed = True

    def _expire(self) -> None:
        while True:
            with self._accepting:
                if self._worker.draining:
                    self._greeter.hurry()
                due_s = self._greeter.expire()
                if due_s is None:
                    self._timed = False
                    return
            self._worker.background.sleep(min(due_s, DRAIN_S))

    def _real_close(self) -> None:
        with self._accepting:
            self._greeter.close()
        super()._real_close()
