"""A Listener behind proxies: what it accepts has said, in a PROXY header, whose connection it is."""

from __future__ import annotations

import logging

# By name: gevent puts in others, which its event loop may not call.
from _thread import start_new_thread
from time import sleep
from typing import TYPE_CHECKING, Any

from pyfanout.worker.connection import Address, Connection
from pyfanout.worker.listener import EPOLLET, EPOLLIN, Listener, epoll
from pyfanout.worker.proxy import Gate, ProxyError

if TYPE_CHECKING:
    from pyfanout.worker.worker import Worker

log = logging.getLogger("pyfanout.worker")


class ProxiedListener(Listener):
    """Those whose header has not come yet wait here, in the set that is this listener's descriptor: it is readable when
    more of it comes."""

    __slots__ = ("_gate", "_headless", "_headless_epoll", "_timeout_s")

    def __init__(self, worker: Worker, channel_fd: int, **options: Any) -> None:
        super().__init__(worker, channel_fd, **options)
        self._gate = Gate(worker.config.trusted)
        self._timeout_s = worker.config.handshake_timeout
        self._headless: dict[int, tuple[Connection, Address]] = {}
        # A set of its own, edge-triggered: half a header would be readable for ever.
        self._headless_epoll = epoll()
        self._epoll.register(self._headless_epoll.fileno(), EPOLLIN)

    def accept(self) -> tuple[Connection, Address]:
        with self._accepting:
            while events := self._headless_epoll.poll(0, 1):  # one at a time: an edge that is read is not told again
                fd = events[0][0]
                if fd in self._headless and (known := self._look(*self._headless[fd])):
                    return known
            while True:
                conn, address = super().accept()
                if known := self._look(conn, address):
                    return known

    def _look(self, conn: Connection, address: Address) -> tuple[Connection, Address] | None:
        """The connection and its true client, if its header is there; else it waits, or is closed."""
        fd = conn.fileno()
        try:
            if fd not in self._headless:
                self._gate.check(conn, address)
            header = self._gate.take(conn)
        except OSError as error:
            self._refuse(conn, address, error)
            return None
        if header is not None:
            self._forget(fd)
            conn.peer = address if header.address is None else header.address
            return conn, conn.peer
        if fd not in self._headless:
            self._headless[fd] = conn, address
            self._headless_epoll.register(fd, EPOLLIN | EPOLLET)
            # Few wait at all, for a proxy sends its header at once: a thread for each is no matter.
            start_new_thread(self._expire, (fd, conn))
        return None

    def _expire(self, fd: int, conn: Connection) -> None:
        sleep(self._timeout_s)
        with self._accepting:
            if self._headless.get(fd, (None,))[0] is conn:
                self._refuse(conn, self._headless[fd][1], ProxyError(f"no PROXY header within {self._timeout_s:g} s"))

    def _refuse(self, conn: Connection, address: Address, error: OSError) -> None:
        log.warning("worker=%d: %s is closed: %s", self._worker.slot, address, error)
        self._forget(conn.fileno())
        conn.finish()

    def _forget(self, fd: int) -> None:
        if self._headless.pop(fd, None):
            self._headless_epoll.unregister(fd)

    def _real_close(self) -> None:
        for conn, _ in self._headless.values():
            conn.finish()
        self._headless.clear()
        self._headless_epoll.close()
        super()._real_close()
