"""What clients connect to: the listening sockets, which are the master's, as a worker and its servers know them."""

from __future__ import annotations

import socket
from collections.abc import Iterable
from typing import Any, NamedTuple


class Bound(NamedTuple):
    """A listening socket of the master's."""

    family: int
    proto: int
    address: Any

    def getsockname(self) -> Any:
        """For a server that looks at its listening socket."""
        return self.address


class Public(NamedTuple):
    """What clients connect to."""

    listeners: tuple[Bound, ...]
    """In the order of their numbers, see `Connection.listener`."""
    number: int
    """Of the one that a server takes for its own, if it can have only one: the first, a TCP one if there is any."""

    @classmethod
    def of(cls, socks: Iterable[socket.socket]) -> Public:
        bound = tuple(Bound(sock.family, sock.proto, sock.getsockname()) for sock in socks)
        number = next((number for number, each in enumerate(bound) if each.family != socket.AF_UNIX), 0)
        return cls(bound, number)

    @property
    def first(self) -> Bound:
        return self.listeners[self.number]
