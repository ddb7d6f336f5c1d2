"""A server that is seen from several listeners: one state, several addresses."""

from __future__ import annotations

import socket
from typing import Any

from pyfanout.embed.views import changed, probe, view, views
from pyfanout.worker.public import Bound, Public


class Server:
    name = "of the class"

    def __init__(self) -> None:
        self.address: Any = "first"
        self.count = 0

    def bind(self) -> None:
        self.name = f"named {self.address}"

    def serve(self) -> tuple[Any, int]:
        self.count += 1
        return self.address, self.count


def test_a_view_has_its_own_address_and_the_servers_state() -> None:
    server = Server()
    other = view(server, {"address": "second"})
    assert isinstance(other, Server)
    assert [other.serve(), server.serve(), other.serve()] == [("second", 1), ("first", 2), ("second", 3)]
    other.address, other.fresh = "third", 1
    assert (other.address, server.address, server.fresh) == ("third", "first", 1)  # type: ignore[attr-defined]


def test_a_probe_tells_what_a_method_sets() -> None:
    server = Server()
    made = probe(server, address="second")
    made.bind()
    made.serve()
    assert changed(made, server) == {"address": "second", "name": "named second", "count": 1}
    assert (server.name, server.count) == ("of the class", 0)


def test_the_server_itself_is_the_one_on_tcp() -> None:
    with socket.socket(socket.AF_UNIX) as unix, socket.socket() as first, socket.socket() as second:
        unix.bind("")  # a name of the kernel's choice
        for each in (first, second):
            each.bind(("127.0.0.1", 0))
        public = Public.of([unix, first, second])
        assert public.first.getsockname() == first.getsockname()
        server = Server()
        known = views(server, public, lambda bound: {"address": bound.address})
        assert known[1] is server
        assert [known[0].address, known[2].address] == [unix.getsockname(), second.getsockname()]


def test_only_unix_ones() -> None:
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind("")
        assert Public.of([unix]).first == Bound(socket.AF_UNIX, 0, unix.getsockname())
