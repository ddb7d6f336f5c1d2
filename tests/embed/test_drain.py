"""A drain is over soon after its last request, whoever else stays connected: clients that are silent before, in the
middle of or after their PROXY header or TLS handshake, or between two requests, and those that send garbage."""

from __future__ import annotations

import contextlib
import signal
import socket
import ssl
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import Server, close_all, connect, is_over, read_all

from .kit import Subject, start
from .test_servers import connections, pids
from .test_tls_and_proxy import V1, secure, tls

__all__ = ["tls"]

MakeServer = Callable[[], Server]

HANDLERS = {
    "coroutine": Subject("apps:tls_coroutine", keeps_alive=False),
}
VARIANTS = ("plain", "tls", "proxy", "tls+proxy")
SOON_S = 20.0
"""Far less than `drain_timeout` and `handshake_timeout` here."""

SLOW = b"GET /slow HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
ASK = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


class Clients:
    """Those that stay, and one whose request goes on."""

    def __init__(self, address: str, folder: Path, variant: str, keeps_alive: bool) -> None:
        self._address, self._folder = address, folder
        self._header = V1 if "proxy" in variant else b""
        self._safe = "tls" in variant
        self.stay: list[socket.socket] = [connect(address)]
        if self._header:
            self.stay += [self._sending(self._header[:9]), self._sending(self._header)]
        if self._safe:
            self.stay += [self._sending(self._header + hello()[:40]), self._greeted()]
        if keeps_alive:
            kept = self._greeted()
            kept.sendall(ASK)
            read_answer(kept)
            self.stay.append(kept)
        self.busy = self._greeted()
        self.busy.sendall(SLOW)
        self.rude = [self._sending(b"\x80 garbage\r\n\r\n"), self._sending(self._header + b"\x80 garbage\r\n\r\n")]
        connect(address).close()

    def _sending(self, data: bytes) -> socket.socket:
        sock = connect(self._address)
        sock.sendall(data)
        return sock

    def _greeted(self) -> socket.socket:
        """Its PROXY header and its TLS handshake are done."""
        return secure(self._address, self._folder, before=self._header) if self._safe else self._sending(self._header)

    def close(self) -> None:
        close_all([*self.stay, *self.rude, self.busy])


def hello() -> bytes:
    """The first message of a TLS handshake."""
    said = ssl.MemoryBIO()
    shaking = ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), said, server_hostname="localhost")
    with contextlib.suppress(ssl.SSLWantReadError):
        shaking.do_handshake()
    return said.read()


def read_answer(sock: socket.socket) -> None:
    """All of it: the body is JSON."""
    answer = b""
    while not answer.endswith(b"}"):
        more = sock.recv(65536)
        assert more, answer
        answer += more


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", list(HANDLERS))
def test_silent_clients_hold_neither_a_reload_nor_a_stop(
    server: MakeServer, tls: dict[str, object], tmp_path: Path, name: str, variant: str
) -> None:
    subject = HANDLERS[name]
    options: dict[str, object] = {"workers": 1, "drain_timeout": 60, "handshake_timeout": 60}
    if "tls" in variant:
        options |= tls
    if "proxy" in variant:
        options["proxy_protocol"] = True
    one = start(server(), subject, **options)
    one.expect("is closed: ", "no TLS with", "no connection with")
    (first,) = pids(one)
    clients = Clients(one.address, tmp_path, variant, subject.keeps_alive)
    one.wait_until(lambda: connections(one, first) >= len(clients.stay) + 1, "all are there")
    one.send(signal.SIGHUP)
    assert b" 200 " in read_all(clients.busy)
    one.wait_until(lambda: is_over(first), "the old worker has left", SOON_S)
    (second,) = pids(one)
    others = Clients(one.address, tmp_path, variant, subject.keeps_alive)
    one.wait_until(lambda: connections(one, second) >= len(others.stay) + 1, "all are there")
    one.send(signal.SIGTERM)
    assert b" 200 " in read_all(others.busy)
    assert one.wait_exit(SOON_S) == 0
    assert "in its hands" not in one.log
    clients.close()
    others.close()
