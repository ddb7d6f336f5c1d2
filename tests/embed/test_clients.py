"""Clients that break off, or speak another protocol: the log has few lines of them, and none of its tracebacks."""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import Server, connect, read_all

from .kit import SUBJECTS, start
from .test_tls_and_proxy import PLAIN, PROXIED, REQUEST, V1, WITH_TLS, body, certificate, secure

MakeServer = Callable[[], Server]

CLIENTS = 25
MOST = 10
"""Lines in 10 s; see pyfanout.worker.clients."""

HEAD = b"GET / HTTP/1.1\r\nHo"

BODY_IS_THE_APPLICATIONS = ("aiohttp",)
"""It logs itself that the application has failed to read it."""

ADDRESS_IS_THE_KERNELS = ("anyio",)
"""The test's application asks for the client's address, which is not known any more."""


def launch(server: MakeServer, name: str, **options: object) -> Server:
    if name in PLAIN:
        app, own = PLAIN[name]
        return server().start(f"apps:{app}", cwd=Path(__file__).parent, workers=1, **{**own, **options})
    return start(server(), SUBJECTS[name], workers=1, **options)


def break_off(address: str, data: bytes) -> None:
    """With a reset."""
    with connect(address) as sock:
        sock.sendall(data)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def read_ten(sock: socket.socket) -> None:
    """Of a long answer, and break it off with a reset."""
    with sock:
        sock.sendall(REQUEST)
        assert sock.recv(10)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def told(one: Server) -> list[str]:
    """waitress tells of each request that waits."""
    return [line for line in one.log.splitlines() if " DEBUG " not in line and "Task queue depth" not in line]


@pytest.mark.parametrize("name", [*PLAIN, *SUBJECTS])
def test_clients_that_break_off(server: MakeServer, name: str) -> None:
    """In their head, after it, and in their body."""
    one = launch(server, name)
    before = told(one)
    phases = [HEAD]
    if not name.startswith(ADDRESS_IS_THE_KERNELS):
        phases.append(REQUEST)
        if not name.startswith(BODY_IS_THE_APPLICATIONS):
            phases.append(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\nabc")
    for data in phases:
        for _ in range(CLIENTS):
            break_off(one.address, data)
    with connect(one.address) as sock:
        sock.sendall(REQUEST)
        assert body(read_all(sock))
    assert told(one) == before


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("name", [*PLAIN, *SUBJECTS])
def test_clients_that_break_off_a_download(server: MakeServer, tmp_path: Path, name: str, tls: bool) -> None:
    if tls and name not in (*PLAIN, *WITH_TLS):
        pytest.skip("it speaks none, or in another way")
    certificate(tmp_path, "localhost")
    files = {"certfile": tmp_path / "server.pem", "keyfile": tmp_path / "server.key"} if tls else {}
    one = launch(server, name, environ={"PADDING": "4000000"}, **files)
    before = told(one)
    for _ in range(5):  # one is enough for a line
        read_ten(secure(one.address, tmp_path) if tls else connect(one.address))
    with secure(one.address, tmp_path) if tls else connect(one.address) as sock:
        sock.sendall(REQUEST)
        assert body(read_all(sock))
    assert told(one) == before


@pytest.mark.parametrize("name", [name for name in (*PLAIN, *SUBJECTS) if name in (*PLAIN, *WITH_TLS)])
def test_clients_that_speak_no_tls(server: MakeServer, tmp_path: Path, name: str) -> None:
    certificate(tmp_path, "localhost")
    one = launch(server, name, certfile=tmp_path / "server.pem", keyfile=tmp_path / "server.key")
    before = told(one)
    for data in (REQUEST, b"\x16\x03\x01", b""):
        for _ in range(CLIENTS):
            break_off(one.address, data)
    with secure(one.address, tmp_path) as sock:
        sock.sendall(REQUEST)
        assert body(read_all(sock))
    new = told(one)[len(before) :]
    assert len(new) <= MOST, "\n".join(new)


@pytest.mark.parametrize("name", [name for name in (*PLAIN, *SUBJECTS) if name in (*PLAIN, *WITH_TLS)])
def test_clients_that_wait_for_an_answer_without_tls(server: MakeServer, tmp_path: Path, name: str) -> None:
    """They are there while the handshake fails. tornado has a line of its own for each of them."""
    certificate(tmp_path, "localhost")
    one = launch(server, name, certfile=tmp_path / "server.pem", keyfile=tmp_path / "server.key")
    before = told(one)
    for _ in range(CLIENTS):
        with connect(one.address) as sock, contextlib.suppress(ConnectionResetError):
            sock.sendall(REQUEST)
            read_all(sock)
    with secure(one.address, tmp_path) as sock:
        sock.sendall(REQUEST)
        assert body(read_all(sock))
    new = told(one)[len(before) :]
    assert len(new) <= MOST, "\n".join(new)


@pytest.mark.parametrize("name", [*PLAIN, *PROXIED])
def test_clients_without_a_proxy_header(server: MakeServer, name: str) -> None:
    one = launch(server, name, proxy_protocol=True)
    one.expect("is closed")
    before = told(one)
    for data in (REQUEST, b"PROX", b""):
        for _ in range(CLIENTS):
            break_off(one.address, data)
    with connect(one.address) as sock:
        sock.sendall(V1 + REQUEST)
        assert body(read_all(sock))
    assert len(told(one)) - len(before) <= MOST
