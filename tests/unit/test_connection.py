"""What a server accepts: it is closed once, and reports its end once, whatever the server does with it."""

from __future__ import annotations

import socket
from types import SimpleNamespace

import pytest

from pyfanout.worker.listener import Accepted


def arrived(reports: list[str]) -> tuple[Accepted, socket.socket]:
    ours, client = socket.socketpair()
    client.settimeout(5)
    arrival = SimpleNamespace(family=int(socket.AF_UNIX), nonblocking=False, fd=ours.detach(), listener=0)
    return Accepted.arrived(arrival, True, lambda: reports.append("ended")), client


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
def test_one_that_is_dropped_is_closed() -> None:
    """As one that a plain `accept` has returned: its server may have failed before it knew what to do with it."""
    reports: list[str] = []
    conn, client = arrived(reports)
    with client:
        del conn
        assert client.recv(1) == b""
        assert reports == ["ended"]


def test_one_that_is_closed_and_then_dropped() -> None:
    reports: list[str] = []
    conn, client = arrived(reports)
    with client:
        conn.close()
        del conn
        assert client.recv(1) == b""
        assert reports == ["ended"]


def test_options_of_tcp_on_a_unix_socket() -> None:
    """Servers set them on whatever comes; others still fail."""
    conn, client = arrived([])
    with client, conn:
        conn.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with pytest.raises(OSError, match="not available"):
            conn.setsockopt(socket.SOL_SOCKET, 0x7FFF, 1)
