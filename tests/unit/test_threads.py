"""threads: a pool is still while all its threads do the same and no byte moves; and how a moved byte is seen."""

from __future__ import annotations

import math
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import SimpleNamespace

import pytest

from pyfanout.worker import threads
from pyfanout.worker.connection import CountingConnection
from pyfanout.worker.idle import bytes_moved
from pyfanout.worker.threads import Pool, Steps, Watch

S = 1_000_000_000


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    now = [S]
    monkeypatch.setattr(threads, "time", SimpleNamespace(monotonic_ns=lambda: now[0]))
    return now


def test_it_is_still_while_a_look_finds_the_same(clock: list[int]) -> None:
    watch, found = Watch(), [None, None]
    for number in range(2):
        watch.add(lambda number=number: found[number])
    again = watch.again()

    def still_after(seconds: int) -> int:
        clock[0] += seconds * S
        return watch.still_ms()

    assert still_after(5) == 0, "a thread is free"
    found[0] = 1
    assert [still_after(1), still_after(2), still_after(3)] == [0, 2000, 5000]
    found[1] = 1
    assert still_after(1) == 6000, "the other pool does not matter"
    found[0] = 2
    assert [still_after(1), still_after(1)] == [1000, 2000], "that of the other one, now"
    found[:] = None, None
    assert still_after(1) == 0
    found[0] = 2
    assert still_after(9) == 0, "it is new"
    assert [again.still_ms(), still_after(1), again.still_ms()] == [0, 1000, 1000]


@contextmanager
def running(pool: Pool, *conns: object) -> Iterator[Callable[[], None]]:
    """A request of each; what is yielded lets the first one end, and begins another."""
    ends = [threading.Event() for _ in conns]
    begun = threading.Semaphore(0)

    def request(end: threading.Event) -> None:
        begun.release()
        end.wait()

    def begin(conn: object, end: threading.Event) -> threading.Thread:
        thread = threading.Thread(target=pool.run, args=(conn, request, end))
        thread.start()
        begun.acquire()
        return thread

    started = [begin(conn, end) for conn, end in zip(conns, ends, strict=True)]

    def next_one() -> None:
        ends[0].set()
        started[0].join()
        ends.append(threading.Event())
        started.append(begin(conns[0], ends[-1]))

    try:
        yield next_one
    finally:
        for end in ends:
            end.set()
        for thread in started:
            thread.join()


def test_a_pool_is_full_of_the_same_requests() -> None:
    pool = Pool(lambda: 2, lambda conn: conn)
    with running(pool, 1):
        assert pool.look() is None, "a thread is free"
    with running(pool, 1, 1) as next_one:
        before = pool.look()
        assert before is not None
        assert pool.look() == before
        next_one()
        assert pool.look() not in (before, None), "another request of the same client"
    assert pool.look() is None


def test_a_pool_without_a_bound_is_never_full() -> None:
    pool = Pool(lambda: math.inf)
    with running(pool, None, None):
        assert pool.look() is None


def test_a_pool_that_nobody_waits_for_does_not_matter() -> None:
    wanted = [False]
    pool = Pool(lambda: 1, str, is_wanted=lambda: wanted[0])
    with running(pool, 1):
        assert pool.look() is None
        wanted[0] = True
        assert pool.look() is not None


def test_a_request_that_fails_is_over() -> None:
    pool = Pool(lambda: 1, str)
    with pytest.raises(ZeroDivisionError):
        pool.run(1, lambda: 1 / 0)
    assert pool.look() is None


def test_a_thread_that_tells_its_loop_something_goes_on() -> None:
    steps = Steps()
    pool = Pool.beside_loop(lambda: 1, steps)
    looks = []

    def request() -> None:
        looks.append(pool.look())
        assert steps.counted(lambda: 7)() == 7
        looks.append(pool.look())

    pool.call(request)
    assert looks[0] != looks[1]


def pair(family: int) -> tuple[socket.socket, socket.socket]:
    if family == socket.AF_UNIX:
        ours, theirs = socket.socketpair()
        return CountingConnection(ours.family, ours.type, ours.proto, fileno=ours.detach()), theirs
    with socket.create_server(("127.0.0.1", 0)) as listener:
        theirs = socket.create_connection(listener.getsockname())
        return listener.accept()[0], theirs


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_UNIX])
def test_bytes_that_move(family: int) -> None:
    ours, theirs = pair(family)
    with ours, theirs:
        theirs.sendall(b"x")
        before = bytes_moved(ours)
        assert bytes_moved(ours) == before, "it came, and nobody has read it"
        ours.recv(1)
        read = bytes_moved(ours)
        assert read != before
        ours.sendall(b"y" * 10)
        theirs.recv(10)
        while bytes_moved(ours) == read:  # until it is acknowledged
            pass
        read = bytes_moved(ours)
        assert bytes_moved(ours) == read
        if family == socket.AF_UNIX:
            ours.sendall(b"z")
            assert bytes_moved(ours) != bytes_moved(ours), "the peer has not read all"
    assert bytes_moved(ours) == (0, 0)


def test_a_client_that_does_not_read() -> None:
    """Nothing moves, however much is sent."""
    ours, theirs = pair(socket.AF_INET)
    with ours, theirs:
        ours.setblocking(False)
        seen = None
        while seen != (seen := bytes_moved(ours)):  # until its buffers are full
            with suppress(BlockingIOError):
                while True:
                    ours.send(b"x" * 65536)
            threading.Event().wait(0.3)
        assert bytes_moved(ours) == seen
