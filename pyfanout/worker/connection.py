"""A connection that has arrived: a socket with a receipt, which knows its client's address. Closed exactly once."""

from __future__ import annotations

import _socket
import os
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

from pyfanout.core import FREED, SWEEP, unpack
from pyfanout.worker.receipt import CLOSED, Receipt

if TYPE_CHECKING:
    from pyfanout.worker.farewell import Farewell

Address: TypeAlias = "tuple[str, int] | tuple[str, int, int, int] | str | bytes"
"""As `socket.accept` gives it: AF_INET (host, port), AF_INET6 (host, port, flowinfo, scope_id), AF_UNIX a path (empty
for most clients), or bytes for an abstract name."""

_AF_INET, _AF_INET6, _AF_UNIX = socket.AF_INET, socket.AF_INET6, socket.AF_UNIX
_STREAM, _TCP = socket.SOCK_STREAM, socket.IPPROTO_TCP
_NONBLOCKING = _STREAM | socket.SOCK_NONBLOCK
_init = _socket.socket.__init__
_new = _socket.socket.__new__
_close = _socket.socket.close
_detach = _socket.socket.detach


def _close_at_once(fd: int) -> int:
    os.close(fd)
    return FREED  # and no SWEEP


_part: Callable[[int], int] = _close_at_once
_begin: Callable[[], object] = bool


def part_by(farewell: Farewell) -> None:
    """From now on the connections of this process are closed by `farewell`."""
    global _part, _begin
    _part, _begin = farewell.part, farewell.begin


def part(fd: int) -> None:
    """Close as `Connection` does, for a descriptor that another class of sockets has detached."""
    if _part(fd) & SWEEP:
        _begin()


class Connection(socket.socket):
    """A connected socket that reports its end, once, when it is closed or detached.

    It is its own receipt, and makes a `Receipt` when it hands that over: with one for each connection a blocking worker
    was slower, see docs/internals.md.

    A blocking one has no timeout, whatever `socket.setdefaulttimeout` says, unless the handler sets one.
    """

    __slots__ = ("_report", "listener", "peer", "preamble_bytes")
    peer: Address | None
    """The client's address according to a proxy, if the proxy has sent one."""
    preamble_bytes: int
    """Length of the proxy's header and of the client's part of the TLS handshake: bytes that came, but are no
    request."""
    listener: int
    """The number of the listening socket that it has come by, in the order in which the log has their addresses."""
    counting: type[Connection]
    """The same class, with `Counting`."""
    _io_refs: int
    _closed: bool

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        """As `socket.socket`; `dup` calls it. A duplicate reports nothing."""
        super().__init__(*arguments, **keywords)
        self._report: Callable[[], object] | None = None
        self.peer = None
        self.preamble_bytes = 0
        self.listener = 0

    @classmethod
    def arrived(cls, arrival: Any, blocking: bool, report: Callable[[], object]) -> tuple[Connection, Address]:
        """Take over the descriptor of a fan_connection, whose end `report` reports; returns its address, too. Family,
        type and protocol are known: no system call asks."""
        family, nonblocking = arrival.family, arrival.nonblocking
        if blocking and family == _AF_UNIX:
            cls = cls.counting  # noqa: PLW0642
        self = _new(cls)
        # What socket.socket.__init__ does, without looking up three enum members.
        _init(self, family, _NONBLOCKING if nonblocking else _STREAM, 0 if family == _AF_UNIX else _TCP, arrival.fd)
        self._io_refs = 0
        self._closed = False
        self._report = report
        self.peer = None
        self.preamble_bytes = 0
        self.listener = arrival.listener
        if nonblocking == blocking:  # accepted for the other kind of worker, and recalled
            self.setblocking(blocking)
        elif blocking and self.gettimeout() is not None:
            self.settimeout(None)
        host = unpack(arrival.host, arrival.host_bytes)
        if family == _AF_INET:
            return self, (host.decode(), arrival.port)
        if family == _AF_INET6:
            return self, (host.decode(), arrival.port, arrival.flowinfo, arrival.scope_id)
        return self, host if host[:1] == b"\0" else os.fsdecode(host)

    def getpeername(self) -> Any:
        """The client's address; the true one if a proxy has sent it."""
        return super().getpeername() if self.peer is None else self.peer

    def _real_close(self) -> None:
        self._end()

    def _end(self) -> bool:
        """Whether a descriptor is free now."""
        report, self._report = self._report, None
        if report is None:
            if self.fileno() < 0:  # it is closed or detached
                return False
            _close(self)  # a duplicate, or another object has the receipt
            return True
        report()  # first, see `Receipt`
        result = _part(_detach(self))
        if result & SWEEP:
            _begin()
        return result & FREED != 0

    def detach(self) -> int:
        self.hand_over().close()
        return super().detach()

    def hand_over(self) -> Receipt:
        """Returns its receipt, for a socket of another class, or a process, that is about to take its descriptor."""
        report, self._report = self._report, None
        return CLOSED if report is None else Receipt(report)

    def take_back(self, receipt: Receipt) -> None:
        """What `hand_over` has returned: it has its receipt again."""
        self._report = receipt.move().close if receipt.is_open else None

    def finish(self) -> bool:
        """Close it if it still is open, also if a `makefile` object was left. Returns whether that has freed a
        descriptor."""
        self._closed = True
        return self._end()

    drop = finish


class Counting:
    """A socket that counts its calls. Of a UNIX socket the kernel does not know how many bytes have moved, and the
    worker has to know whether a thread that serves one makes progress."""

    __slots__ = ()

    @property
    def moves(self) -> int:
        """How often something was sent or received."""
        return getattr(self, "_moves", 0)

    def _count(self) -> None:
        self._moves = self.moves + 1  # type: ignore[misc]  # a slot of each class that has this one

    def send(self, *arguments: Any, **keywords: Any) -> int:
        self._count()
        return super().send(*arguments, **keywords)  # type: ignore[misc, no-any-return]

    def sendall(self, *arguments: Any, **keywords: Any) -> None:
        self._count()
        super().sendall(*arguments, **keywords)  # type: ignore[misc]

    def recv(self, *arguments: Any, **keywords: Any) -> bytes:
        data: bytes = super().recv(*arguments, **keywords)  # type: ignore[misc]
        self._count()
        return data

    def recv_into(self, *arguments: Any, **keywords: Any) -> int:
        count: int = super().recv_into(*arguments, **keywords)  # type: ignore[misc]
        self._count()
        return count


class CountingConnection(Counting, Connection):
    __slots__ = ("_moves",)


Connection.counting = CountingConnection
