"""What a server accepts: it is closed once, and its receipt with it, whatever the server does with it."""

from __future__ import annotations

import socket
from types import SimpleNamespace

import pytest
from pyfanout._core import ffi

from pyfanout.worker.listener import Accepted


def arrived(reports: list[str]) -> tuple[Accepted, socket.socket]:
    ours, client = socket.socketpair()
    client.settimeout(5)
    arrival = SimpleNamespace(
        family=int(socket.AF_UNIX),
        nonblocking=False,
        fd=ours.detach(),
        listener=0,
        host=ffi.new("char[]", b"/client"),
        host_bytes=7,
    )
    conn, address = Accepted.arrived(arrival, True, lambda: reports.append("ended"))
    assert address == "/client"
    return conn, client


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


def test_a_connection_that_is_finished_twice_has_freed_one_descriptor() -> None:
    reports: list[str] = []
    conn, client = arrived(reports)
    with client:
        assert conn.finish()
        assert not conn.finish()
        assert reports == ["ended"]


def test_a_connection_that_is_detached_reports_its_end_and_leaves_the_descriptor_open() -> None:
    reports: list[str] = []
    conn, client = arrived(reports)
    with client, socket.socket(fileno=conn.detach()) as left:
        assert reports == ["ended"]
        assert not conn.finish()
        left.sendall(b"open")
        assert client.recv(4) == b"open"


def test_a_duplicate_has_no_receipt() -> None:
    reports: list[str] = []
    conn, client = arrived(reports)
    with client, conn:
        conn.dup().close()
        assert reports == []
    assert reports == ["ended"]


def test_what_takes_the_descriptor_over_takes_the_receipt_over() -> None:
    reports: list[str] = []
    conn, client = arrived(reports)
    with client:
        receipt = conn.hand_over()
        socket.socket(fileno=conn.detach()).close()
        assert reports == []
        assert receipt.close()
        assert reports == ["ended"]


def test_a_receipt_that_is_given_back() -> None:
    reports: list[str] = []
    conn, client = arrived(reports)
    with client:
        conn.take_back(conn.hand_over())
        conn.close()
        assert reports == ["ended"]


def test_options_of_tcp_on_a_unix_socket() -> None:
    """Servers set them on whatever comes; others still fail."""
    conn, client = arrived([])
    with client, conn:
        conn.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with pytest.raises(OSError, match="not available"):
            conn.setsockopt(socket.SOL_SOCKET, 0x7FFF, 1)
