"""The end of a connection: the client sees it at once, and loses no part of the answer, whatever it still sends and
whichever process has a copy of the connection."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harness import Server, connect, is_over, kill, read_all, session_of

from .kit import FOLDER, SUBJECTS, start
from .test_tls_and_proxy import REQUEST, body, secure, tls

__all__ = ["tls"]

MakeServer = Callable[[], Server]

README = r"""
import pyfanout
ANSWER = b"HTTP/1.0 200 OK\\r\\nContent-Type: text/plain\\r\\n\\r\\nhello"
def handler(conn, addr):
    conn.recv(4096)
    conn.sendall(ANSWER)
"""

CURT: dict[str, tuple[str, dict[str, object]]] = {
    "handler": ("curt_handler", {}),
    "threads": ("curt_handler", {"threads": 2}),
    "coroutine": ("curt_coroutine", {}),
}
RESETS = ("uvloop", "uvicorn", "uvicorn-fastapi", "twisted")
"""uvloop closes its connections itself, twisted shuts their input down: the kernel answers late input with a reset, as
without pyfanout."""

LINGERING = [*CURT, *(name for name in SUBJECTS if name not in RESETS and "uvloop" not in name)]
READING = ("waitress", "waitress-flask", "tornado")
"""These read all of a request before it is answered."""

BODY = b"x" * 60_000
UPLOAD = b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(BODY)


@pytest.fixture
def launch(request: pytest.FixtureRequest, server: MakeServer) -> Callable[..., Server]:
    """Starts one of them."""
    name = request.param

    def begin(**options: object) -> Server:
        if name in CURT:
            app, own = CURT[name]
            return server().start(f"apps:{app}", cwd=FOLDER, **{**own, **options})
        return start(server(), SUBJECTS[name], **options)

    return begin


@pytest.mark.parametrize("launch", LINGERING, indirect=True)
def test_a_client_that_has_sent_more(launch: Callable[..., Server]) -> None:
    """Its input is unread at the end; the answer is whole. A client that does not close delays no worker."""
    one = launch(workers=1, drain_timeout=60)
    for _ in range(5):
        with connect(one.address) as client:
            client.sendall(UPLOAD + BODY)
            one.wait_idle()
            assert body(read_all(client))
    with connect(one.address) as client:
        client.sendall(REQUEST)
        assert client.recv(9)
        assert one.stop() == 0


@pytest.mark.parametrize("launch", [name for name in LINGERING if name not in READING], indirect=True)
def test_a_client_that_is_still_sending(launch: Callable[..., Server]) -> None:
    """Its input comes after the end."""
    one = launch(workers=1)
    for _ in range(5):
        with connect(one.address) as client:
            client.sendall(UPLOAD)
            first = client.recv(1)
            one.wait_idle()
            for at in range(0, len(BODY), 20_000):
                client.sendall(BODY[at : at + 20_000])
            assert body(first + read_all(client))


@pytest.mark.parametrize("kind", list(CURT))
def test_the_same_with_tls(server: MakeServer, tls: dict[str, object], tmp_path: Path, kind: str) -> None:
    app, options = CURT[kind]
    one = server().start(f"apps:{app}", cwd=FOLDER, workers=1, **options, **tls)
    for _ in range(5):
        with secure(one.address, tmp_path) as client:
            client.sendall(UPLOAD + BODY)
            one.wait_idle()
            assert body(read_all(client))


def test_the_example_in_readme(server: MakeServer, tmp_path: Path) -> None:
    """A head of 60 kB."""
    (tmp_path / "hello.py").write_text(README)
    one = server().start("hello:handler", cwd=tmp_path, workers=2)
    for _ in range(20):
        with connect(one.address) as client:
            client.sendall(b"GET / HTTP/1.1\r\nCookie: " + BODY + b"\r\n\r\n")
            assert b"200 OK" in read_all(client)


# ---- children --------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def children(one: Server, workers: list[int]) -> Iterator[None]:
    """Those of the workers are killed afterwards."""
    try:
        yield
    finally:
        left = set(session_of(one.pid)) - {one.pid, *workers}
        for pid in left:
            kill(pid)
        one.wait_until(lambda: all(map(is_over, left)), "they are gone")


FORKING = [*CURT, *(name for name in SUBJECTS if name != "gevent-handler" and "socketserver-forking" not in name)]


@pytest.mark.parametrize("launch", FORKING, indirect=True)
def test_the_end_is_seen_although_a_child_has_a_copy(launch: Callable[..., Server]) -> None:
    """And the child of a worker takes no client."""
    one = launch(workers=2, environ={"FORKS": "1"}, drain_timeout=60)
    workers = one.workers
    with children(one, workers):
        for _ in range(6):
            with connect(one.address) as client:
                client.sendall(REQUEST)
                assert body(read_all(client))["pid"] in workers
        for pid in workers:
            os.kill(pid, signal.SIGTERM)
        one.wait_workers(2, gone=workers)
        workers += one.workers


@pytest.mark.parametrize("app", ["forking_coroutine", "forking_asgi", "forking_asgi_on_asyncio", "forking_trio"])
def test_a_child_that_goes_on_with_the_loop(server: MakeServer, app: str) -> None:
    """The child has a copy of the loop's epoll set, which is its parent's, too."""
    options = {"factory": True} if app.endswith(("_on_asyncio", "_trio")) else {}
    one = server().start(f"apps:{app}", cwd=FOLDER, workers=2, drain_timeout=60, **options)
    workers = one.workers
    with children(one, workers):
        for _ in range(30):
            with connect(one.address) as client:
                client.sendall(REQUEST)
                assert body(read_all(client))["pid"] in workers
        assert one.stop() == 0


@pytest.mark.parametrize(
    ("asked", "code"), [("handler returns", 0), ("handler exits", 3), ("handler raises", 1), ("nursery returns", 0)]
)
def test_a_child_ends_with_its_copy_of_the_handler(server: MakeServer, asked: str, code: int) -> None:
    """Also if a task of the handler's has forked it. The loop, which has other tasks, would go on."""
    one = server()
    if asked == "handler raises":
        one.expect("the handler raised an exception in a child that it forked", "Traceback", "as asked")
    one.start("apps:ending_trio", cwd=FOLDER, workers=1, factory=True, drain_timeout=60)
    workers = one.workers
    with children(one, workers):
        assert read_all(connect(one.address, f"fork {asked}")) == b"%d" % code
        assert one.stop() == 0
