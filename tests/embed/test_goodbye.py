"""The answers of a draining worker: each says once that its connection ends, and then it ends, without a reset."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
from harness import Server, connect

from .kit import SUBJECTS, start
from .test_gunicorn import Gunicorn
from .test_servers import connections

MakeServer = Callable[..., Server]

HTTP = {
    name: subject
    for name, subject in SUBJECTS.items()
    if not name.startswith("socketserver") and name not in ("gevent-handler", "trio", "anyio")
}
VERSIONS = {
    "1.1": b"GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "1.1, twice": b"GET %s HTTP/1.1\r\nHost: localhost\r\nConnection: keep-alive\r\n\r\n",
    "1.0": b"GET %s HTTP/1.0\r\nHost: localhost\r\nConnection: keep-alive\r\n\r\n",
    "1.0, plain": b"GET %s HTTP/1.0\r\nHost: localhost\r\n\r\n",
}


class Client(threading.Thread):
    """A raw one: what it asks on a connection that it would keep, and what it reads until the end."""

    def __init__(self, address: str, request: bytes, *, first: bool) -> None:
        super().__init__(daemon=True)
        self.head = b""
        self.end: bytes | OSError | None = None
        self._request = request
        self._sock = connect(address)
        self._buffer = b""
        if first:
            self._sock.sendall(request % b"/")
            self._read_answer()
        self._sock.sendall(request % b"/slow")
        self.start()

    def _read_answer(self) -> bytes:
        """Its body is JSON."""
        answer = b""
        while not answer.endswith((b"}", b"}\r\n0\r\n\r\n")) and (more := self._sock.recv(65536)):
            answer += more
        return answer.partition(b"\r\n\r\n")[0]

    def run(self) -> None:
        try:
            self.head = self._read_answer()
            self.end = self._sock.recv(1)
        except OSError as error:
            self.end = error
        finally:
            self._sock.close()

    def said(self) -> list[bytes]:
        """The values of its answer's `Connection`."""
        lines = [line.partition(b":") for line in self.head.lower().split(b"\r\n")]
        return [value.strip() for name, _, value in lines if name == b"connection"]


def assert_goodbye(one: Server, name: str, *, keeps_alive: bool = True) -> None:
    """To requests that are under way when the drain begins: the head of each answer is made after that."""
    clients = {
        version: Client(one.address, request, first=keeps_alive and "1.1" in version)
        for version, request in VERSIONS.items()
    }
    one.wait_until(lambda: sum(connections(one, pid) for pid in one.workers) >= len(clients), "all are there")
    assert one.stop() == 0, name
    for version, client in clients.items():
        client.join()
        assert b" 200 " in client.head, (name, version, client.head, client.end)
        said = client.said()
        silent = not said and (version == "1.0, plain" or not keeps_alive)  # as before HTTP had such a header
        assert said == [b"close"] or silent, (name, version, client.head)
        assert client.end == b"", (name, version, client.end)


@pytest.mark.parametrize("name", list(HTTP))
def test_each_answer_says_once_that_the_connection_ends(server: MakeServer, name: str) -> None:
    options: dict[str, object] = {"workers": 1, "threads": 4, "drain_timeout": 60, "environ": {"IN_A_DRAIN": "1"}}
    one = start(server(), HTTP[name], wait=False, **options)
    one.wait_ready(60)
    assert_goodbye(one, name, keeps_alive=HTTP[name].keeps_alive)


@pytest.mark.parametrize("kind", ["GThread", "ASGI"])
def test_each_answer_under_gunicorn(server: MakeServer, kind: str) -> None:
    one = server(Gunicorn)
    one.serve(kind, "--threads", "4", workers=1, IN_A_DRAIN="1").ready(1)
    assert_goodbye(one, kind)
