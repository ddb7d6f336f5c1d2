"""A drain is over soon after its last request, whatever other clients stay connected: clients that are silent before,
during or after their PROXY header or TLS handshake, or between two requests, and those that send garbage."""

from __future__ import annotations

import contextlib
import signal
import socket
import ssl
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import Server, close_all, connect, is_over, read_all

from pyfanout.worker.idle import IDLE_S, LOOK_S

from .kit import FOLDER, SUBJECTS, Subject, start
from .test_servers import connections, pids
from .test_tls_and_proxy import V1, secure, tls

__all__ = ["tls"]

MakeServer = Callable[[], Server]

SERVERS = {
    "handler": Subject("apps:tls_handler", keeps_alive=False),
    "coroutine": Subject("apps:tls_coroutine", keeps_alive=False),
    **{name: subject for name, subject in SUBJECTS.items() if name not in ("waitress-flask", "uvicorn-fastapi")},
}
NO_TLS = ("waitress", "twisted")
SOON_S = 20.0
"""Far less than `drain_timeout` and `handshake_timeout` here."""

PADDING_BYTES = 8_000_000

SLOW = b"GET /slow HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
ASK = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


def variants(name: str) -> list[str]:
    safe = name not in NO_TLS
    proxied = "uvloop" not in name and name != "uvicorn"
    return ["plain", *["tls"] * safe, *["proxy"] * proxied, *["tls+proxy"] * (safe and proxied)]


class Clients:
    """Clients that stay, and one whose request goes on."""

    def __init__(self, address: str, folder: Path, variant: str, keeps_alive: bool) -> None:
        self._address, self._folder = address, folder
        self._header = V1 if "proxy" in variant else b""
        self._safe = "tls" in variant
        self.stay: list[socket.socket] = [connect(address)]
        if self._header:
            self.stay += [self._sending(self._header[:9]), self._sending(self._header)]
        if self._safe:
            self.stay += [self._sending(self._header + hello()[:40]), self._admitted()]
        if keeps_alive:
            kept = self._admitted()
            kept.sendall(ASK)
            read_answer(kept)
            self.stay.append(kept)
        self.busy = self._admitted()
        self.busy.sendall(SLOW)
        self.rude = [self._sending(b"\x80 garbage\r\n\r\n"), self._sending(self._header + b"\x80 garbage\r\n\r\n")]
        connect(address).close()

    def _sending(self, data: bytes) -> socket.socket:
        sock = connect(self._address)
        sock.sendall(data)
        return sock

    def _admitted(self) -> socket.socket:
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


@pytest.mark.parametrize("name", list(SERVERS))
def test_silent_clients_hold_neither_a_reload_nor_a_stop(
    server: MakeServer, tls: dict[str, object], tmp_path: Path, name: str
) -> None:
    """With and without TLS and PROXY headers, all at once."""
    subject = SERVERS[name]
    ones: dict[str, Server] = {}
    for variant in variants(name):
        options: dict[str, object] = {"workers": 1, "threads": 12, "drain_timeout": 60, "handshake_timeout": 60}
        options["min_uptime"] = 0  # the old worker goes at once
        options |= tls if "tls" in variant else {}
        options |= {"proxy_protocol": True} if "proxy" in variant else {}
        ones[variant] = start(server(), subject, wait=False, **options)
        ones[variant].expect(
            "is closed: ", "no TLS with", "could not be set up", "Traceback", "ssl", "SSL", "handshake"
        )
    with contextlib.ExitStack() as staying:

        def come(variant: str, one: Server) -> tuple[int, Clients]:
            (pid,) = pids(one)
            clients = Clients(one.address, tmp_path, variant, subject.keeps_alive)
            staying.callback(clients.close)
            one.wait_until(lambda: connections(one, pid) >= len(clients.stay) + 1, f"{variant}: all are there")
            return pid, clients

        for one in ones.values():
            one.wait_ready()
        first = {variant: come(variant, one) for variant, one in ones.items()}
        for one in ones.values():
            one.send(signal.SIGHUP)
        for variant, (pid, clients) in first.items():
            assert b" 200 " in read_all(clients.busy), variant
            ones[variant].wait_until(lambda pid=pid: is_over(pid), f"{variant}: the old worker has left", SOON_S)
        second = {variant: come(variant, one) for variant, one in ones.items()}
        for one in ones.values():
            one.send(signal.SIGTERM)
        for variant, (_, clients) in second.items():
            assert b" 200 " in read_all(clients.busy), variant
        for variant, one in ones.items():
            assert one.wait_exit(SOON_S) == 0, variant
            assert "in progress" not in one.log, (variant, one.log)


@pytest.mark.parametrize("name", list(SERVERS))
def test_a_request_has_all_of_the_time(server: MakeServer, tmp_path: Path, name: str) -> None:
    """A server's own graceful stop comes a little before the end of `drain_timeout`, here after one of 60 s: it cuts no
    request off."""
    go = tmp_path / "go"
    environ = {"GO": str(go), "GRACE": "59"}
    one = start(server(), SERVERS[name], workers=1, threads=2, drain_timeout=60, environ=environ)
    with connect(one.address) as client:
        client.sendall(SLOW)
        one.wait_until(lambda: connections(one, one.workers[0]) == 1, "it is there")
        one.send(signal.SIGTERM)
        time.sleep(2.5)
        go.touch()
        assert b" 200 " in read_all(client)
    assert one.wait_exit(SOON_S) == 0


ON_UNIX = ("handler", "coroutine", "cheroot", "uvicorn", "uvicorn-asyncio", "hypercorn", "aiohttp", "tornado", "trio")
ON_UNIX += ("waitress", "wsgiref", "gevent", "twisted")

RAW_ON_UNIX = (
    "socketserver",
    "socketserver-handler",
    "gevent-handler",
    "anyio",
    "http.server-threading",
    "http.server",
)
PATIENT = ("handler", "cheroot", "trio", *RAW_ON_UNIX)
"""Servers that wait for the rest of a request whose client has paused. The others close such, also over TCP."""


@pytest.mark.parametrize(
    ("name", "pauses"), [*((name, False) for name in (*ON_UNIX, *RAW_ON_UNIX)), *((name, True) for name in PATIENT)]
)
def test_a_request_over_a_unix_socket_is_read_to_its_end(
    server: MakeServer, tmp_path: Path, name: str, pauses: bool
) -> None:
    """Of a UNIX connection the kernel does not say when bytes have moved. The first line was sent before the drain
    begins, the rest comes a little at a time, or after more than a second."""
    one = start(server(), SERVERS[name], workers=1, threads=2, drain_timeout=60, bind=f"unix:{tmp_path}/sock")
    with connect(one.address) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n")
        one.wait_idle()
        one.send(signal.SIGTERM)
        if pauses:
            time.sleep(2 * IDLE_S + LOOK_S)
        else:
            for number in range(10):
                client.sendall(b"X-%d: x\r\n" % number)
                time.sleep(0.2 * IDLE_S)
        client.sendall(b"\r\n")
        assert b" 200 " in read_all(client)
    assert one.wait_exit(SOON_S) == 0


@pytest.mark.parametrize(
    ("family", "name"), [*(("tcp", name) for name in SERVERS), *(("unix", name) for name in ON_UNIX)]
)
def test_a_download_may_pause(server: MakeServer, tmp_path: Path, family: str, name: str) -> None:
    """For longer than a client that is idle may be silent. All of it arrives, and then the worker leaves soon."""
    bind = "127.0.0.1:0" if family == "tcp" else f"unix:{tmp_path}/sock"
    options: dict[str, object] = {"workers": 1, "threads": 2, "drain_timeout": 60, "bind": bind}
    one = start(server(), SERVERS[name], environ={"PADDING": str(PADDING_BYTES)}, **options)
    if family == "tcp":
        host, _, port = one.address.rpartition(":")
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)  # the worker cannot be done with it at once
        client.settimeout(20)
        client.connect((host, int(port)))
    else:
        client = connect(one.address)
    client.sendall(ASK)
    answer = client.recv(1000)
    one.send(signal.SIGTERM)
    time.sleep(2 * IDLE_S + 3 * LOOK_S)
    answer += read_all(client)
    assert len(answer.partition(b"\r\n\r\n")[2]) > PADDING_BYTES
    assert one.wait_exit(SOON_S) == 0
    assert "in progress" not in one.log, one.log


# ---- what does not end by itself -------------------------------------------------------------------------------------


@pytest.mark.parametrize("app", ["events", "events_on_asyncio", "aiohttp_events"])
def test_endless_streams_are_told(server: MakeServer, app: str) -> None:
    """The server tells them: each ends, and so does the stop. A client that waits for one to end is answered."""
    full = {} if app == "aiohttp_events" else {"max_connections": 1}  # whose callbacks run when all are there
    one = server().start(f"apps:{app}", cwd=FOLDER, workers=1, factory=True, drain_timeout=60, **full)
    one.expect("ASGI callable returned without completing response")  # as sse-starlette ends it under plain uvicorn
    with connect(one.address) as stream, connect(one.address) as queued:
        stream.sendall(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        said = stream.recv(65536)
        while b"tick" not in said:
            said += stream.recv(65536)
        queued.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        one.wait_idle_master()
        one.send(signal.SIGTERM)
        read_all(stream)
        assert b" 200 " in read_all(queued)
    assert one.wait_exit(SOON_S) == 0
    assert "in progress" not in one.log
