"""Connections whose PROXY header has not come yet: where they wait, without a thread and without being looked at."""

from __future__ import annotations

import logging
from time import monotonic
from typing import NamedTuple

from pyfanout.worker.connection import Address, Connection
from pyfanout.worker.idle import IDLE_S, is_silent
from pyfanout.worker.listener import EPOLLET, EPOLLIN, epoll
from pyfanout.worker.proxy import Gate, ProxyError

log = logging.getLogger("pyfanout.worker")

GRAIN_S = 0.1
"""Seconds: so much later than `handshake_timeout` one may be closed, and so seldom its time is looked at."""


class _Waiting(NamedTuple):
    conn: Connection
    address: Address
    end_s: float


class Headless:
    """Those of one worker. One whose header is bad, or does not come in time, is closed, with one line in the log.

    Their sockets are in an epoll set, edge-triggered: half a header, which stays in its socket, would be readable for
    ever. `fileno` is readable when there is something for `arrived`. One caller at a time.
    """

    def __init__(self, slot: int, gate: Gate, timeout_s: float) -> None:
        self._slot = slot
        self._gate = gate
        self._timeout_s = timeout_s
        self._waiting: dict[int, _Waiting] = {}
        """By descriptor; the one that has waited longest is the first."""
        self._epoll = epoll()

    def __len__(self) -> int:
        """How many wait."""
        return len(self._waiting)

    def fileno(self) -> int:
        return self._epoll.fileno()

    def admit(self, conn: Connection, address: Address) -> Address | None:
        """The true client of a connection that has just come: its `peer` from then on. None: it waits, or is closed."""
        try:
            self._gate.check(conn, address)
            client = self._client_of(conn, address)
            if client is None:
                self._wait(conn, address)
        except OSError as error:
            self._refuse(conn, address, error)
            return None
        return client

    def arrived(self) -> tuple[Connection, Address] | None:
        """One that waited and whose header has come, with its true client. None: there is none now."""
        while events := self._epoll.poll(0, 1):  # one at a time: an edge is told once
            conn, address, _ = self._waiting[events[0][0]]
            try:
                client = self._client_of(conn, address)
            except OSError as error:
                self._refuse(conn, address, error)
                continue
            if client is not None:
                self._forget(conn)
                return conn, client
        return None

    def expire(self) -> float | None:
        """Closes those whose time is over. Seconds, GRAIN_S or more, until that is to be done again; None: nobody
        waits."""
        now_s = monotonic()
        while self._waiting:
            conn, address, end_s = next(iter(self._waiting.values()))
            if now_s < end_s:
                return max(end_s - now_s, GRAIN_S)
            self._refuse(conn, address, ProxyError(f"no PROXY header within {self._timeout_s:g} s"))
        return None

    def end_silent(self) -> None:
        """Closes those that have waited for IDLE_S, and whose client is silent: their worker drains."""
        if self._epoll.poll(0, 1):  # something has come, and is to be seen to first
            return
        before_s = monotonic() + self._timeout_s - IDLE_S
        for conn, address, end_s in list(self._waiting.values()):
            if end_s <= before_s and is_silent(conn.fileno()):
                self._refuse(conn, address, ProxyError("no PROXY header, and this worker leaves"))

    def close(self) -> None:
        """And all of them."""
        for conn, _, _ in self._waiting.values():
            conn.finish()
        self._waiting.clear()
        self._epoll.close()

    def _client_of(self, conn: Connection, address: Address) -> Address | None:
        header = self._gate.take(conn)
        if header is None:
            return None
        conn.peer = address if header.address is None else header.address
        return conn.peer

    def _wait(self, conn: Connection, address: Address) -> None:
        self._epoll.register(conn, EPOLLIN | EPOLLET)  # what has come by now is told as well
        self._waiting[conn.fileno()] = _Waiting(conn, address, monotonic() + self._timeout_s)

    def _refuse(self, conn: Connection, address: Address, error: OSError) -> None:
        log.warning("worker=%d: %s is closed: %s", self._slot, address, error)
        self._forget(conn)
        conn.finish()

    def _forget(self, conn: Connection) -> None:
        if self._waiting.pop(conn.fileno(), None):
            self._epoll.unregister(conn)
