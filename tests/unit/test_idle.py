"""Looking at somebody else's connection leaves it as it is."""

from __future__ import annotations

import contextlib
import os
import socket
import time

import pytest
from harness import wait_until

from pyfanout.worker.idle import IDLE_S, end_input, is_at_rest, is_silent


def test_a_default_timeout_does_not_make_it_non_blocking() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        conn, _ = server.accept()
        with conn:
            socket.setdefaulttimeout(5)
            try:
                assert not is_silent(conn.fileno())
                assert os.get_blocking(conn.fileno())
                end_input(conn.fileno())
            finally:
                socket.setdefaulttimeout(None)
            assert os.get_blocking(conn.fileno())
            assert conn.recv(1) == b""
            conn.sendall(b"x")
            assert client.recv(1) == b"x"


def test_a_header_of_a_proxy_is_no_word_of_its_client() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        conn, _ = server.accept()
        with conn:
            client.sendall(b"header")
            conn.recv(6)
            wait_until(lambda: is_silent(conn.fileno()), "a second")
            assert is_at_rest(conn.fileno(), 6)
            assert not is_at_rest(conn.fileno()), "half of a request, it would be"


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_UNIX], ids=["tcp", "unix"])
def test_what_its_client_has_not_taken(family: socket.AddressFamily) -> None:
    """As long as something waits, it is not silent, however long that is."""
    if family == socket.AF_INET:
        with socket.create_server(("127.0.0.1", 0)) as server:
            client = socket.create_connection(server.getsockname())
            conn, _ = server.accept()
    else:
        conn, client = socket.socketpair()
    with conn, client:
        conn.setblocking(False)
        sent = 0
        with contextlib.suppress(BlockingIOError):
            while True:
                sent += conn.send(bytes(65536))
        time.sleep(1.5 * IDLE_S)
        assert not is_silent(conn.fileno())
        client.recv(sent, socket.MSG_WAITALL)
        wait_until(lambda: is_silent(conn.fileno()), "it is silent")
    assert is_silent(conn.fileno()), "it is closed"
