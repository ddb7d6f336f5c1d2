"""`max_requests` counts requests where the server shows them, and connections elsewhere."""

from __future__ import annotations

import http.client
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harness import Server, connect, read_all

from .kit import FOLDER, SUBJECTS, Client, start
from .test_tls_and_proxy import secure, tls

__all__ = ["tls"]

MakeServer = Callable[[], Server]

SHOWING: dict[str, str | None] = {
    "http.server": "",
    "http.server-threading": "",
    "wsgiref": "",
    "waitress": "waitress",
    "cheroot": "cheroot.wsgi",
    "gevent": None,
    "uvicorn": "uvicorn.lifespan.on uvicorn.protocols.http.auto uvicorn.protocols.websockets.auto",
    "uvicorn-asyncio": "uvicorn.lifespan.on uvicorn.protocols.http.h11_impl uvicorn.protocols.websockets.wsproto_impl",
    "hypercorn": "hypercorn.asyncio.run",
    "aiohttp": "aiohttp.web",
    "tornado": "tornado.httpserver tornado.web",
    "twisted": None,
}
"""One of each kind that shows its requests, and what its master imports for the workers, of which there are many. Not
of gevent, which patches them, and of twisted, whose reactor would be the master's. wsgiref keeps no connection."""

SPENT = "worker=0 has served {} {} and asks to be replaced"
OFTEN = {"workers": 1, "max_requests": 20, "max_requests_jitter": 0, "min_uptime": 0}


def ask_again(client: Client) -> int:
    """The generation that answers; on a new connection if the worker has closed the old one, which was silent."""
    try:
        return int(client.ask()[0]["generation"])
    except (http.client.RemoteDisconnected, ConnectionError):
        client.__exit__()
        return int(client.ask()[0]["generation"])


@pytest.mark.parametrize("name", SHOWING)
def test_three_hundred_on_a_connection_that_is_kept(server: MakeServer, name: str) -> None:
    """Each worker asks for its successor at its 20th request, not before, and is replaced by it. All are answered."""
    imports = SHOWING[name]
    preload = {} if imports is None else {"preload": True, "environ": {"IMPORTS": imports}}
    one = start(server(), SUBJECTS[name], **OFTEN, **preload)
    spent = SPENT.format(20, "requests")
    with Client(one.address) as client:
        for generation in range(1, 16):
            for asked in range(generation > 1, 20):
                assert one.log.count(spent) == generation - 1, (generation, asked)
                assert client.ask()[0]["generation"] == generation
            assert one.log.count(spent) == generation
            # Without a connection that is kept, the old worker might take one more before it hears that it drains.
            one.wait_log(
                rf"gen={generation} pid=\d+ {'READY->DRAINING' if SUBJECTS[name].keeps_alive else 'has exited'}"
            )
            answering = generation
            while answering == generation:  # it is told so in the next answer, or the one after
                answering = ask_again(client)
            assert answering == generation + 1


HEAD = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
UPLOAD = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n"
OLD = b"GET / HTTP/1.0\r\n\r\n"
UPGRADE = (
    b"GET /ws HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)
MESSAGE = b"\x81\x82\0\0\0\0hi"
UPGRADING = ("uvicorn", "uvicorn-asyncio", "hypercorn", "aiohttp", "tornado")


def read_until(client: socket.socket, *ends: bytes) -> bytes:
    """Up to one of them, for each in turn."""
    got = b""
    for end in ends:
        while end not in got:
            more = client.recv(4096)
            assert more, got
            got += more
        got = got.partition(end)[2]
    return got


def events(name: str, opened: Callable[[], socket.socket]) -> Iterator[int]:
    """What clients do, and how many requests that is."""
    for _ in range(3):  # without a request
        opened().close()
    yield 0
    with opened() as client:
        client.sendall(b"nonsense\r\n\r\n")
        read_all(client)
    yield 0
    with opened() as client:  # pipelined
        client.sendall(HEAD * 3)
        read_until(client, *[b'"client"'] * (3 if SUBJECTS[name].keeps_alive else 1))
    yield 3 if SUBJECTS[name].keeps_alive else 1
    with opened() as client:
        client.sendall(OLD)
        read_until(client, b'"client"')
    yield 1
    if SUBJECTS[name].keeps_alive:
        with opened() as client:
            client.sendall(UPLOAD)
            read_until(client, b" 100 ")
            client.sendall(b"late")
            read_until(client, b"late")
        yield 1
    if name in UPGRADING:
        with opened() as client:
            client.sendall(UPGRADE)
            read_until(client, b" 101 ", b"\r\n\r\n")
            for _ in range(3):
                client.sendall(MESSAGE)
                read_until(client, b" hi")
        yield 1


TRANSPORTS = ["tcp", "tls", "unix"]
PLAIN = ("waitress", "twisted")
"""They speak no TLS here."""


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("name", SHOWING)
def test_what_is_a_request(
    server: MakeServer, name: str, transport: str, tls: dict[str, object], tmp_path: Path
) -> None:
    if (transport == "tls" and name in PLAIN) or (transport == "unix" and name == "twisted"):
        pytest.skip("not spoken")
    limit = 3 if name == "wsgiref" else 6 + (name in UPGRADING)
    options = {**OFTEN, "max_requests": limit, **(tls if transport == "tls" else {})}
    if transport == "unix":
        options["bind"] = ["127.0.0.1:0", f"unix:{tmp_path}/s"]
    one = start(server(), SUBJECTS[name], **options)
    one.expect("nonsense", "Invalid HTTP request")

    def opened() -> socket.socket:
        return secure(one.address, tmp_path) if transport == "tls" else connect(one.addresses[-1])

    counted = 0
    for number in events(name, opened):
        counted += number
        assert "asks to be replaced" not in one.log, counted
    with opened() as client:
        client.sendall(HEAD)
        read_until(client, b'"client"')
    assert counted + 1 == limit
    one.wait_log(SPENT.format(limit, "requests"))


@pytest.mark.parametrize("app", ["ForkingWeb", "gevent_handler", "trio", "anyio", "tls_handler", "tls_coroutine"])
def test_elsewhere_it_is_connections(server: MakeServer, app: str) -> None:
    """Requests are read in a child, or by the application."""
    factory = {"factory": True} if app in ("gevent_handler", "trio", "anyio") else {}
    one = server().start(f"apps:{app}", cwd=FOLDER, **{**OFTEN, "max_requests": 3}, **factory)
    for _ in range(2):
        connect(one.address).close()
    with connect(one.address) as client:
        client.sendall(HEAD)
        read_until(client, b'"client"')
    one.wait_log(SPENT.format(3, "connections"))


def test_each_stream_of_http_2_is_one(server: MakeServer) -> None:
    import h2.connection
    import h2.events

    one = start(server(), SUBJECTS["hypercorn"], **{**OFTEN, "max_requests": 6})
    http2 = h2.connection.H2Connection()
    http2.initiate_connection()
    request = [(":method", "GET"), (":path", "/"), (":scheme", "http"), (":authority", "localhost")]
    ended = 0
    with connect(one.address) as client:
        for number in (3, 3):
            assert "asks to be replaced" not in one.log
            for _ in range(number):
                http2.send_headers(http2.get_next_available_stream_id(), request, end_stream=True)
            client.sendall(http2.data_to_send())
            while ended < number:
                ended += sum(isinstance(e, h2.events.StreamEnded) for e in http2.receive_data(client.recv(65536)))
                client.sendall(http2.data_to_send())
            ended = 0
    one.wait_log(SPENT.format(6, "requests"))


@pytest.mark.parametrize("name", ["http.server-threading", "waitress", "uvicorn"])
def test_many_clients_at_once(server: MakeServer, name: str) -> None:
    """On connections that are kept: none is left without an answer, and each worker counts for itself."""
    one = start(server(), SUBJECTS[name], workers=2, max_requests=50, max_requests_jitter=10)
    over = threading.Event()
    wrong: list[BaseException] = []
    answers: Counter[int] = Counter()

    def ask_on() -> None:
        try:
            with Client(one.address) as client:
                while not over.is_set():
                    answers[client.ask()[0]["generation"]] += 1
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=ask_on) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        one.wait_log("gen=2 pid=.* READY->DRAINING", 2, deadline_s=60)
        one.wait_until(lambda: bool(wrong or answers[3]), "the third generation answers")
    finally:
        over.set()
        for thread in threads:
            thread.join()
    assert not wrong
    assert answers[1] >= 100
    assert set(answers) >= {1, 2, 3}
