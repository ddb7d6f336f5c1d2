"""headless: a connection waits for its PROXY header, is looked at when something has come, and is told of once."""

from __future__ import annotations

import select
import socket

import pytest

from pyfanout.worker.connection import Connection
from pyfanout.worker.headless import GRAIN_S, Headless
from pyfanout.worker.proxy import Gate, Header

LINE = b"PROXY TCP4 192.0.2.7 198.51.100.1 4711 443\r\n"
CLIENT = ("192.0.2.7", 4711)


class Counted(Gate):
    looks = 0

    def take(self, sock: socket.socket) -> Header | None:  # type: ignore[override]
        self.looks += 1
        return super().take(sock)


@pytest.fixture
def gate() -> Counted:
    return Counted([])


def pair() -> tuple[Connection, socket.socket]:
    ours, theirs = socket.socketpair()
    return Connection(fileno=ours.detach()), theirs


def readable(headless: Headless) -> bool:
    return bool(select.select([headless], [], [], 0)[0])


def test_a_header_that_is_there_does_not_wait(gate: Counted) -> None:
    headless = Headless(0, gate, 60)
    conn, client = pair()
    with conn, client:
        client.sendall(LINE + b"GET")
        assert headless.admit(conn, "") == conn.peer == CLIENT
        assert len(headless) == 0
        assert not readable(headless)
    headless.close()


def test_a_look_for_each_time_that_something_has_come(gate: Counted) -> None:
    headless = Headless(0, gate, 60)
    conn, client = pair()
    with conn, client:
        client.sendall(LINE[:1])
        assert headless.admit(conn, "") is None
        for byte in LINE[1:-1]:
            assert headless.arrived() is None
            assert not readable(headless)
            client.sendall(bytes([byte]))
            assert readable(headless)
        assert headless.arrived() is None
        assert gate.looks <= len(LINE)
        client.sendall(LINE[-1:] + b"GET")
        assert headless.arrived() == (conn, CLIENT)
        assert headless.arrived() is None
        assert headless.expire() is None
        assert conn.recv(9) == b"GET"
    headless.close()


@pytest.mark.parametrize("last_words", [b"GET /", b""])
def test_one_without_a_header_is_closed(gate: Counted, last_words: bytes) -> None:
    headless = Headless(0, gate, 60)
    conn, client = pair()
    with client:
        assert headless.admit(conn, "") is None
        client.sendall(last_words)
        client.shutdown(socket.SHUT_WR)
        assert headless.arrived() is None
        assert conn.fileno() == -1
        assert len(headless) == 0
    headless.close()


def test_each_has_its_time(gate: Counted, monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 100.0
    monkeypatch.setattr("pyfanout.worker.headless.monotonic", lambda: now_s)
    headless = Headless(0, gate, 10)
    first, second = pair(), pair()
    assert headless.expire() is None
    headless.admit(first[0], "")
    now_s = 105.0
    headless.admit(second[0], "")
    assert headless.expire() == 5
    now_s = 109.99
    assert headless.expire() == GRAIN_S
    now_s = 110.0
    assert headless.expire() == 5
    assert (first[0].fileno() < 0, second[0].fileno() < 0) == (True, False)
    headless.close()
    assert second[0].fileno() < 0
    for _, client in (first, second):
        client.close()
