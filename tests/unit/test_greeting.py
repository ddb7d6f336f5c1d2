"""greeting: a connection waits for its PROXY header, is read when bytes have come, and is reported once."""

from __future__ import annotations

import select
import socket

import pytest

from pyfanout.worker.connection import Connection
from pyfanout.worker.greeting import GRAIN_S, Greeter
from pyfanout.worker.proxy import Header, ProxyHeaderReader

LINE = b"PROXY TCP4 192.0.2.7 198.51.100.1 4711 443\r\n"
CLIENT = ("192.0.2.7", 4711)


class Counted(ProxyHeaderReader):
    looks = 0

    def take(self, sock: socket.socket) -> Header | None:  # type: ignore[override]
        self.looks += 1
        return super().take(sock)


@pytest.fixture
def reader() -> Counted:
    return Counted([])


def pair() -> tuple[Connection, socket.socket]:
    ours, theirs = socket.socketpair()
    return Connection(fileno=ours.detach()), theirs


def readable(greeter: Greeter) -> bool:
    return bool(select.select([greeter], [], [], 0)[0])


def test_a_header_that_is_there_does_not_wait(reader: Counted) -> None:
    greeter = Greeter(0, 60, reader)
    conn, client = pair()
    with conn, client:
        client.sendall(LINE + b"GET")
        assert greeter.admit(conn, "") == (conn, CLIENT)
        assert conn.peer == CLIENT
        assert len(greeter) == 0
        assert not readable(greeter)
    greeter.close()


def test_a_look_for_each_time_that_something_has_come(reader: Counted) -> None:
    greeter = Greeter(0, 60, reader)
    conn, client = pair()
    with conn, client:
        client.sendall(LINE[:1])
        assert greeter.admit(conn, "") is None
        for byte in LINE[1:-1]:
            assert greeter.arrived() is None
            assert not readable(greeter)
            client.sendall(bytes([byte]))
            assert readable(greeter)
        assert greeter.arrived() is None
        assert reader.looks <= len(LINE)
        client.sendall(LINE[-1:] + b"GET")
        assert greeter.arrived() == (conn, CLIENT)
        assert greeter.arrived() is None
        assert greeter.expire() is None
        assert conn.recv(9) == b"GET"
    greeter.close()


@pytest.mark.parametrize("last_words", [b"GET /", b""])
def test_one_without_a_header_is_closed(reader: Counted, last_words: bytes) -> None:
    greeter = Greeter(0, 60, reader)
    conn, client = pair()
    with client:
        assert greeter.admit(conn, "") is None
        client.sendall(last_words)
        client.shutdown(socket.SHUT_WR)
        assert greeter.arrived() is None
        assert conn.fileno() == -1
        assert len(greeter) == 0
    greeter.close()


def test_each_has_its_time(reader: Counted, monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 100.0
    monkeypatch.setattr("pyfanout.worker.greeting.monotonic", lambda: now_s)
    greeter = Greeter(0, 10, reader)
    first, second = pair(), pair()
    assert greeter.expire() is None
    greeter.admit(first[0], "")
    now_s = 105.0
    greeter.admit(second[0], "")
    assert greeter.expire() == 5
    now_s = 109.99
    assert greeter.expire() == GRAIN_S
    now_s = 110.0
    assert greeter.expire() == 5
    assert (first[0].fileno() < 0, second[0].fileno() < 0) == (True, False)
    greeter.close()
    assert second[0].fileno() < 0
    for _, client in (first, second):
        client.close()
