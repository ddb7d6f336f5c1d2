"""preamble: a connection waits for its PROXY header, is read when bytes have come, and is reported once."""

from __future__ import annotations

import select
import socket

import pytest

from pyfanout.worker.connection import Connection
from pyfanout.worker.preamble import GRAIN_S, Preambles
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


def readable(preambles: Preambles) -> bool:
    return bool(select.select([preambles], [], [], 0)[0])


def test_a_header_that_is_there_does_not_wait(reader: Counted) -> None:
    preambles = Preambles(0, 60, reader)
    conn, client = pair()
    with conn, client:
        client.sendall(LINE + b"GET")
        assert preambles.admit(conn, "") == (conn, CLIENT)
        assert conn.peer == CLIENT
        assert len(preambles) == 0
        assert not readable(preambles)
    preambles.close()


def test_a_look_for_each_time_that_something_has_come(reader: Counted) -> None:
    preambles = Preambles(0, 60, reader)
    conn, client = pair()
    with conn, client:
        client.sendall(LINE[:1])
        assert preambles.admit(conn, "") is None
        for byte in LINE[1:-1]:
            assert preambles.arrived() is None
            assert not readable(preambles)
            client.sendall(bytes([byte]))
            assert readable(preambles)
        assert preambles.arrived() is None
        assert reader.looks <= len(LINE)
        client.sendall(LINE[-1:] + b"GET")
        assert preambles.arrived() == (conn, CLIENT)
        assert preambles.arrived() is None
        assert preambles.expire() is None
        assert conn.recv(9) == b"GET"
    preambles.close()


@pytest.mark.parametrize("last_words", [b"GET /", b""])
def test_one_without_a_header_is_closed(reader: Counted, last_words: bytes) -> None:
    preambles = Preambles(0, 60, reader)
    conn, client = pair()
    with client:
        assert preambles.admit(conn, "") is None
        client.sendall(last_words)
        client.shutdown(socket.SHUT_WR)
        assert preambles.arrived() is None
        assert conn.fileno() == -1
        assert len(preambles) == 0
    preambles.close()


def test_each_has_its_time(reader: Counted, monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 100.0
    monkeypatch.setattr("pyfanout.worker.preamble.monotonic", lambda: now_s)
    preambles = Preambles(0, 10, reader)
    first, second = pair(), pair()
    assert preambles.expire() is None
    preambles.admit(first[0], "")
    now_s = 105.0
    preambles.admit(second[0], "")
    assert preambles.expire() == 5
    now_s = 109.99
    assert preambles.expire() == GRAIN_S
    now_s = 110.0
    assert preambles.expire() == 5
    assert (first[0].fileno() < 0, second[0].fileno() < 0) == (True, False)
    preambles.close()
    assert second[0].fileno() < 0
    for _, client in (first, second):
        client.close()
