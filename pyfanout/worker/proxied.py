"""A Listener behind proxies: what it accepts has said, in a PROXY header, whose connection it is."""

from __future__ import annotations

# Under gevent, which has patched them before this is imported, it is a greenlet that sleeps.
from _thread import start_new_thread
from time import sleep
from typing import TYPE_CHECKING, Any

from pyfanout.worker.connection import Address, Connection
from pyfanout.worker.headless import Headless
from pyfanout.worker.listener import EPOLLIN, Listener
from pyfanout.worker.proxy import Gate

if TYPE_CHECKING:
    from pyfanout.worker.worker import Worker


class ProxiedListener(Listener):
    """Its descriptor is readable, too, when more has come of a header that was not there yet."""

    __slots__ = ("_headless", "_timed")

    def __init__(self, worker: Worker, channel_fd: int, **options: Any) -> None:
        super().__init__(worker, channel_fd, **options)
        self._headless = Headless(worker.slot, Gate(worker.config.trusted), worker.config.handshake_timeout)
        self._timed = False
        """A thread sees to it that their time ends: a server may rest from accepting."""
        self._epoll.register(self._headless.fileno(), EPOLLIN)

    def accept(self) -> tuple[Connection, Address]:
        with self._accepting:
            while True:
                if known := self._headless.arrived():
                    return known
                if self._headless and not self._timed:
                    self._time_them()
                conn, address = super().accept()
                client = self._headless.admit(conn, address)
                if client is not None:
                    return conn, client

    def _time_them(self) -> None:
        """One thread for all, while there are any."""
        try:
            start_new_thread(self._expire, ())
        except RuntimeError:  # no thread can be had now: until the next call
            self._headless.expire()
        else:
            self._timed = True

    def _expire(self) -> None:
        while True:
            with self._accepting:
                due_s = self._headless.expire()
                if due_s is None:
                    self._timed = False
                    return
            sleep(due_s)

    def _real_close(self) -> None:
        with self._accepting:
            self._headless.close()
        super()._real_close()
