"""The live connections of a listener: which there are, and which of them are between two requests."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from harness import wait_until

from pyfanout.worker.live import LiveConnections


class FakeWorker:
    """What the room asks of a worker."""

    def __init__(self, most: int = 0) -> None:
        self.most = most
        self.forked = self.draining = False
        self.counter = [0]
        self.ends = SimpleNamespace(done_cell=lambda: self.counter)
        self.reported = 0
        self.begun: list[Any] = []
        self.background = SimpleNamespace(start=self.begun.append, sleep=self._sleep)

    def ended(self) -> None:
        self.reported += 1

    def _sleep(self, _: float) -> None:
        self.draining = True


def arrival_of(sock: socket.socket) -> Any:
    return SimpleNamespace(fd=sock.fileno(), family=int(sock.family))


@pytest.fixture(params=[socket.AF_INET, socket.AF_UNIX], ids=["tcp", "unix"])
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[socket.socket, socket.socket]]:
    if request.param == socket.AF_INET:
        with socket.create_server(("127.0.0.1", 0)) as server:
            client = socket.create_connection(server.getsockname())
            conn, _ = server.accept()
    else:
        conn, client = socket.socketpair()
    client.settimeout(5)
    conn.settimeout(5)
    with conn, client:
        yield conn, client


Pair = tuple[socket.socket, socket.socket]


def room(worker: FakeWorker) -> LiveConnections:
    return LiveConnections(worker)  # type: ignore[arg-type]  # a fake


def test_one_is_live_until_its_receipt_is_closed(pair: Pair) -> None:
    worker = FakeWorker()
    live = room(worker)
    receipt = live.begin(arrival_of(pair[0]))
    assert len(live) == 1
    receipt.close()
    receipt.close()
    assert len(live) == 0
    assert (worker.counter, worker.reported) == ([1], 0)


def test_with_a_limit_its_end_is_reported_to_the_master(pair: Pair) -> None:
    worker = FakeWorker(most=1)
    room(worker).begin(arrival_of(pair[0])).close()
    assert (worker.counter, worker.reported) == ([0], 1)


def test_it_is_settled_when_both_sides_were_silent_for_a_second(pair: Pair) -> None:
    live = room(FakeWorker())
    assert live.settled, "there is none"
    receipt = live.begin(arrival_of(pair[0]))
    pair[1].sendall(b"request")
    assert not live.settled
    pair[0].recv(7)
    wait_until(lambda: live.settled, "a second of silence")
    receipt.close()


def test_one_that_is_silent_after_an_answer_is_ended(pair: Pair) -> None:
    conn, client = pair
    live = room(FakeWorker())
    receipt = live.begin(arrival_of(conn))
    client.sendall(b"request")
    conn.recv(7)
    wait_until(lambda: live.settled, "a second of silence")
    live.end_silent()  # the client sent last: a request may have paused
    conn.setblocking(False)
    with pytest.raises(BlockingIOError):
        conn.recv(1)
    conn.settimeout(5)
    conn.sendall(b"answer")
    client.recv(6)
    wait_until(lambda: live.settled, "a second of silence")
    live.end_silent()
    assert conn.recv(1) == b""
    receipt.close()


def test_one_in_a_handshake_has_no_request(pair: Pair) -> None:
    conn, client = pair
    live = room(FakeWorker())
    receipt = live.begin(arrival_of(conn))
    with live.shaking_hands(conn.fileno()):
        client.sendall(b"hello")
        conn.recv(5)
        assert live.unserved
        wait_until(lambda: live.settled, "a second of silence")
        live.end_unserved()
        assert conn.recv(1) == b""
    assert not live.unserved
    receipt.close()


def test_a_number_that_another_connection_has_by_now(pair: Pair) -> None:
    """A handshake that is over removes its own mark only."""
    conn, _ = pair
    live = room(FakeWorker())
    receipt = live.begin(arrival_of(conn))
    with live.shaking_hands(conn.fileno()):
        receipt.close()
        second = live.begin(arrival_of(conn))
        live.idle_while(conn.fileno(), lambda: True)
    assert live.unserved
    second.close()
    assert not live.unserved
    live.idle_while(conn.fileno(), lambda: True)
    assert not live.unserved, "it is not live"


def test_all_are_ended(pair: Pair) -> None:
    conn, client = pair
    live = room(FakeWorker())
    receipt = live.begin(arrival_of(conn))
    client.sendall(b"x")
    live.end_all()
    assert conn.recv(2) == b"x"
    assert conn.recv(1) == b""
    receipt.close()


def test_room_is_made_only_where_there_is_a_limit(pair: Pair) -> None:
    conn, _ = pair
    unlimited = FakeWorker()
    room(unlimited).make_room()
    assert unlimited.begun == []
    limited = FakeWorker(most=1)
    live = room(limited)
    receipt = live.begin(arrival_of(conn))
    conn.sendall(b"answer")
    pair[1].recv(6)
    wait_until(lambda: live.settled, "a second of silence")
    live.make_room()
    (make,) = limited.begun
    make()
    assert conn.recv(1) == b""
    receipt.close()
