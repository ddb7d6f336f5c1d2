"""What comes before an application's first byte: a PROXY header, a TLS handshake. No thread waits for it: a connection
whose preamble is not complete at once waits in an epoll set, and goes on when more bytes have come.
"""

from __future__ import annotations

import contextlib
import math
import select
from collections.abc import Generator
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeAlias

from pyfanout.worker import clients
from pyfanout.worker.connection import Address, Connection
from pyfanout.worker.idle import IDLE_S
from pyfanout.worker.listener import EPOLLET, EPOLLIN, epoll
from pyfanout.worker.proxy import ProxyError, ProxyHeaderReader

if TYPE_CHECKING:
    import ssl

    from pyfanout.worker.host import Host


GRAIN_S = 0.1
"""Seconds. A connection is closed at most this much after `handshake_timeout`; its time is checked no more often."""

MOST = 512
"""Connections that wait at once; for one more the oldest is closed. With TLS each takes 50 kB. So many honest clients
are in a handshake at once if 2,500 come in a second and take 0.2 s."""

Admitted: TypeAlias = "tuple[Any, Address]"
"""The connection, which is a `tls.SecureConnection` after a handshake, and its true client."""

_Steps: TypeAlias = "Generator[int, None, Admitted]"
"""Yields the epoll event for which the connection waits."""


@dataclass(slots=True)
class _Waiting:
    conn: Connection
    """The plain one. With TLS the secure one has its descriptor."""
    address: Address
    steps: _Steps
    fd: int
    since_s: float
    wanted: int = EPOLLIN


class Preambles:
    """The connections of one worker that are in their preamble. One whose preamble fails, or takes longer than its
    time, is closed, with one line in the log.

    Their epoll set is edge-triggered: half a header, which stays in its socket, would be readable for ever. `fileno` is
    readable when `arrived` may have a connection. One caller at a time, except for `begin`.
    """

    def __init__(
        self, slot: int, timeout_s: float, reader: ProxyHeaderReader | None, context: ssl.SSLContext | None = None
    ) -> None:
        """`reader`: there is a PROXY header. `context`: there is a TLS handshake."""
        self._slot = slot
        self._timeout_s = timeout_s
        self._reader = reader
        self._context = context
        self._waiting: dict[int, _Waiting] = {}
        """By descriptor; the one that has waited longest is the first."""
        self._epoll = epoll()
        self._hurried_s = math.inf
        """When `hurry` was called."""

    @classmethod
    def of(cls, worker: Host, *, tls: bool | ssl.SSLContext) -> Preambles | None:
        """As the options say; None: connections have no preamble. `tls`: handshakes are part of it, with this context
        or that of the options; else the server does them. Raises ConfigError."""
        config = worker.config
        context = worker.tls_context() if tls is True else tls or None
        reader = ProxyHeaderReader(config.trusted) if config.proxy_protocol else None
        return cls(worker.slot, config.handshake_timeout, reader, context) if reader or context else None

    def __len__(self) -> int:
        """How many connections wait."""
        return len(self._waiting)

    def fileno(self) -> int:
        return self._epoll.fileno()

    def admit(self, conn: Connection, address: Address) -> Admitted | None:
        """Read the preamble of a connection that has just come; its `peer` is the true client afterwards. None: it
        waits, or is closed."""
        result = self.begin(conn, address)
        if isinstance(result, _Waiting):
            self.wait(result)
            return None
        return result

    def begin(self, conn: Connection, address: Address, patience_s: float = 0) -> Admitted | _Waiting | None:
        """The same, but if it is not complete after `patience_s` the caller has to call `wait`. From any thread."""
        one = _Waiting(conn, address, self._steps(conn, address), conn.fileno(), monotonic())
        poll = None
        while (result := self._go_on(one)) is one and (left_s := one.since_s + patience_s - monotonic()) > 0:
            poll = poll or select.poll()
            poll.register(one.fd, one.wanted)  # the bits are the same
            if not poll.poll(left_s * 1000):
                break
        return result

    def wait(self, one: _Waiting) -> None:
        """Keep a connection that `begin` has returned incomplete."""
        try:
            self._epoll.register(one.fd, one.wanted | EPOLLET)  # bytes that have come by now count, too
        except OSError as error:
            self._refuse(one, error)
            return
        self._waiting[one.fd] = one
        if len(self._waiting) > MOST:
            self._refuse(next(iter(self._waiting.values())), TimeoutError(f"{MOST} clients that came later wait"))

    def arrived(self) -> Admitted | None:
        """A connection that waited and has done its preamble. None: there is none."""
        while events := self._epoll.poll(0, 1):  # one at a time: an edge is reported once
            one = self._waiting[events[0][0]]
            wanted = one.wanted
            result = self._go_on(one)
            if isinstance(result, tuple):
                self._forget(one)
                return result
            if result is one and one.wanted != wanted:
                self._epoll.modify(one.fd, one.wanted | EPOLLET)
        return None

    def hurry(self) -> None:
        """The worker drains: from now on a preamble has no more than IDLE_S, because there is no request yet. May be
        called again."""
        self._hurried_s = min(self._hurried_s, monotonic())

    def expire(self) -> float | None:
        """Closes connections whose time is over. Seconds, GRAIN_S or more, until the next call; None: none waits."""
        now_s = monotonic()
        while self._waiting:
            one = next(iter(self._waiting.values()))
            end_s = min(one.since_s + self._timeout_s, max(one.since_s, self._hurried_s) + IDLE_S)
            if now_s < end_s:
                return max(end_s - now_s, GRAIN_S)
            self._refuse(one, None)
        return None

    def refuse_all(self, error: Exception) -> None:
        """Close all that wait: no thread can wait for them."""
        for one in list(self._waiting.values()):
            self._refuse(one, error)

    def close(self) -> None:
        """And all connections that wait."""
        for one in self._waiting.values():
            _end(one)
        self._waiting.clear()
        self._epoll.close()

    def _steps(self, conn: Connection, address: Address) -> _Steps:
        if self._reader is not None:
            self._reader.check(conn, address)
            while (header := self._reader.take(conn)) is None:
                yield EPOLLIN
            if header.address is not None:
                address = header.address
            conn.peer = address
        if self._context is None:
            return conn, address
        from pyfanout.worker.tls import shake_hands  # noqa: PLC0415 - ssl takes 10 ms to import

        return (yield from shake_hands(conn, self._context)), address

    def _go_on(self, one: _Waiting) -> Admitted | _Waiting | None:
        """As far as it can without waiting: the result, `one` if more bytes must come, or None: it is closed."""
        try:
            one.wanted = next(one.steps)
        except StopIteration as over:
            admitted: Admitted = over.value
            return admitted
        except OSError as error:  # ssl.SSLError and ProxyError are some
            self._refuse(one, error)
            return None
        return one

    def _refuse(self, one: _Waiting, error: Exception | None) -> None:
        """`error` None: its time is over."""
        when = f"within {self._timeout_s:g} s" if self._hurried_s == math.inf else "yet, and this worker drains"
        if one.conn.fileno() >= 0:
            error = error or ProxyError(f"no PROXY header {when}")
            clients.log.warning("worker=%d: the connection from %s is closed: %s", self._slot, one.address, error)
        else:
            error = error or TimeoutError(f"no handshake {when}")
            clients.log.info("worker=%d: no TLS with %s: %s; the connection is closed", self._slot, one.address, error)
        self._forget(one)
        _end(one)

    def _forget(self, one: _Waiting) -> None:
        if self._waiting.get(one.fd) is one:  # if it is closed, another may have its number by now
            del self._waiting[one.fd]
            with contextlib.suppress(OSError):  # a handshake that has failed has closed it
                self._epoll.unregister(one.fd)


def _end(one: _Waiting) -> None:
    one.steps.close()  # which closes a secure one
    one.conn.finish()
