"""Each server, the real one, behind the dispatcher: whom it answers, how it is balanced, how it lives and leaves."""

from __future__ import annotations

import collections
import contextlib
import itertools
import json
import os
import re
import resource
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import Effort, Server, children_of, connect, fds_of, is_over, kill, read_all

from .kit import POOLED, SUBJECTS, Client, Subject, ask, connections, load, start, strangers

MakeServer = Callable[[], Server]

OF_EACH_KIND = [
    name for name in SUBJECTS if name not in ("socketserver-handler", "http.server-handler", "waitress-flask")
]
PATIENCE_S = 1.0


@pytest.fixture(params=list(SUBJECTS))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def subject(name: str) -> Subject:
    return SUBJECTS[name]


def pids(one: Server) -> list[int]:
    """The workers; not what they fork."""
    return [pid for pid in children_of(one.pid) if not is_over(pid)]


# ---- serving ---------------------------------------------------------------------------------------------------------


def test_it_answers_a_thousand_in_turn_and_knows_who_asks(server: MakeServer, subject: Subject) -> None:
    binds = ["127.0.0.1:0", f"unix:@{os.getpid()}-beside"]
    one = start(server(), subject, bind=binds, workers=4, ping_interval=0)  # a ping would put a worker out of its turn
    one.favour()
    # Again, because a worker that the machine keeps waiting for 10 ms has its master wake the next one, too.
    assert any(turns(one, 40) == dict.fromkeys(range(4), 10) for _ in range(3))
    assert not strangers(one.address, knows_port=subject.knows_port)
    assert_no_descriptor_is_left(one, pids(one)[0])
    for address in one.addresses[1:]:
        with connect(address) as beside:
            beside.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            head, _, body = read_all(beside).partition(b"\r\n\r\n")
            assert b" 200 " in head, (head, body)
            assert json.loads(body)["client"] in (["", 0], ["localhost", 0], "", [], None)


def turns(one: Server, count: int) -> collections.Counter[int]:
    """How many of `count` clients, one after the other, each slot has answered."""
    found: collections.Counter[int] = collections.Counter()
    for _ in range(count):
        one.wait_idle()  # who is still busy with the last one is not in line
        found[ask(one.address)["slot"]] += 1
    return found


def assert_no_descriptor_is_left(one: Server, pid: int) -> None:
    """However many connections come and go."""

    def open_after(count: int) -> int:
        for _ in range(count):
            ask(one.address)
        one.wait_until(lambda: connections(one, pid) == 0, "all are closed")
        return len(fds_of(pid))

    first = open_after(4)
    one.wait_until(lambda: open_after(40) <= first + 1, "no more descriptors than before")


# ---- living ----------------------------------------------------------------------------------------------------------


def test_a_killed_worker_is_replaced(server: MakeServer, name: str, subject: Subject) -> None:
    one = start(server(), subject, workers=2)
    speaker = "socketserver" if name.startswith(("socketserver", "http.server")) else name.partition("-")[0]
    (line,) = one.wait_log("all workers are ready: ")
    assert re.search(rf" \(\w+ by {speaker}{'' if speaker in ('socketserver', 'wsgiref') else r' [0-9.]+'}\) on ", line)
    old = pids(one)
    with Client(one.address) as client:
        client.ask(close=True)
        kill(old[0])
    one.wait_until(lambda: len(set(pids(one)) - set(old)) == 1, "a replacement")
    one.wait_ready_workers(3)
    seen: set[int] = set()
    one.wait_until(lambda: seen.add(ask(one.address)["pid"]) or seen == set(pids(one)), "both answer")
    assert old[0] not in seen


@contextlib.contextmanager
def without_descriptors(pid: int) -> Iterator[None]:
    """Takes its free ones away from a process, and gives them back."""
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    free = next(fd for fd in itertools.count() if fd not in fds_of(pid))
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (free, before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)


@pytest.mark.parametrize("name", OF_EACH_KIND)
def test_one_that_has_no_descriptor_left_is_not_hung(server: MakeServer, subject: Subject) -> None:
    """Its clients wait; to answer a ping it needs none."""
    one = start(server(), subject, workers=1, threads=3, ping_interval=0.2, ping_timeout=PATIENCE_S)
    one.expect("ERROR worker=0: Too many open files; takes no connection until a descriptor is free")
    ask(one.address)
    (pid,) = pids(one)
    with Client(one.address) as client:
        with without_descriptors(pid):
            client.begin(close=True)
            time.sleep(2 * PATIENCE_S)  # nothing tells that it was not killed
        assert client.end(close=True)["pid"] == pid
    assert pids(one) == [pid]


@pytest.mark.parametrize("name", OF_EACH_KIND)
def test_one_that_has_no_descriptor_left_keeps_nobody_waiting(server: MakeServer, subject: Subject) -> None:
    """The other worker gets the connections that were passed to it, and new ones, until it can take again."""
    one = start(server(), subject, workers=2, policy="round-robin")
    one.expect("ERROR worker=.: Too many open files; takes no connection until a descriptor is free")
    short, other = pids(one)
    with without_descriptors(short):
        assert {ask(one.address)["pid"] for _ in range(14)} == {other}
    seen: set[int] = set()
    one.wait_until(lambda: seen.add(ask(one.address)["pid"]) or seen == {short, other}, "both answer")


@pytest.mark.parametrize("name", OF_EACH_KIND)
def test_one_that_has_no_memory_to_take_a_connection(server: MakeServer, subject: Subject) -> None:
    """It is there in a moment."""
    one = server()
    one.expect("ERROR worker=0: Cannot allocate memory; it cannot take a connection, and tries again")
    start(one, subject, workers=1, environ={"REFUSE": "ENOMEM"}, ping_interval=0)
    workers = pids(one)
    assert ask(one.address)["pid"] in workers
    one.wait_log("it cannot take a connection, and tries again")
    assert pids(one) == workers


def test_reloads_under_load(server: MakeServer, subject: Subject) -> None:
    """Connections of one request, then, if it keeps them, of twenty."""
    one = start(server(), subject, workers=2, min_uptime=0)
    for count, keep_alive in enumerate((False, True) if subject.keeps_alive else (False,), 1):
        with load(one.address, keep_alive=keep_alive) as answers:
            one.send(signal.SIGHUP)
            one.wait_log("reloaded: 2 workers are new", count, deadline_s=40)
            one.wait_until(lambda new=count + 1: any(each["generation"] == new for each in answers), "new answers")
    one.stop()


# ---- leaving ---------------------------------------------------------------------------------------------------------


def test_a_stop_lets_a_request_finish_and_ends_an_idle_connection(
    server: MakeServer, subject: Subject, tmp_path: Path
) -> None:
    go = tmp_path / "go"
    # Longer than anybody here waits.
    one = start(server(), subject, workers=1, threads=3, drain_timeout=60, environ={"GO": str(go)})
    with Client(one.address) as idle, Client(one.address) as busy:
        if subject.keeps_alive:
            idle.ask()
            assert idle.socket is not None, "it keeps the connection"
        answers: list[Any] = []
        thread = threading.Thread(target=lambda: answers.append(busy.ask("/slow")))
        thread.start()
        (pid,) = pids(one)
        one.wait_until(lambda: connections(one, pid) >= 1 + (idle.socket is not None), "both are there")
        one.send(signal.SIGTERM)
        go.touch()
        thread.join()
        assert answers, "the answer came whole"
        if idle.socket is not None:
            assert idle.socket.recv(99) == b"", "closed, not reset"
    assert one.wait_exit(deadline_s=15) == 0
    assert "is over" not in one.log
    assert "in progress" not in one.log


def test_sigterm_to_all_processes_at_once(server: MakeServer, subject: Subject, tmp_path: Path) -> None:
    """As systemd, dumb-init and supervisord do it: to a worker that drains already, and again. A request goes on."""
    go = tmp_path / "go"
    one = start(server(), subject, workers=2, threads=3, drain_timeout=60, environ={"GO": str(go)})
    answers: list[Any] = []
    with Client(one.address) as client:
        thread = threading.Thread(target=lambda: answers.append(client.ask("/slow")))
        thread.start()
        workers = pids(one)
        one.wait_until(lambda: sum(connections(one, pid) for pid in workers) == 1, "it is there")
        one.send(signal.SIGTERM)
        for _ in range(10):
            for pid in workers:
                kill(pid, signal.SIGTERM)
            time.sleep(0.01)  # distances of 0 to 0.1 s; nothing tells that nothing happened
        go.touch()
        thread.join()
    assert answers, "the answer came whole"
    assert one.wait_exit(deadline_s=15) == 0
    assert "in progress" not in one.log


def test_a_worker_that_drains_does_not_spin(server: MakeServer, subject: Subject, tmp_path: Path) -> None:
    go = tmp_path / "go"
    one = start(server(), subject, workers=1, threads=3, environ={"GO": str(go)})
    (pid,) = pids(one)
    assert_it_drains_calmly(one, pid, go)
    one.wait_log(f"pid={pid} READY->DRAINING")


def assert_it_drains_calmly(one: Server, pid: int, go: Path) -> None:
    """While a request goes on, until there is `go`, nothing is to do but to wait for it."""
    with Client(one.address) as client:
        answers: list[Any] = []
        thread = threading.Thread(target=lambda: answers.append(client.ask("/slow")))
        thread.start()
        one.wait_until(lambda: connections(one, pid) == 1, "it is there")
        efforts = [Effort.of(pid)]  # it cannot leave before it is told
        kill(pid, signal.SIGTERM)
        go.touch()
        while not answers and (now := effort_of(pid)):
            efforts.append(now)
            time.sleep(0.02)
        thread.join()
    assert efforts[-1].cpu_ticks - efforts[0].cpu_ticks <= 20, efforts[::10]


def effort_of(pid: int) -> Effort | None:
    try:
        return Effort.of(pid)
    except (FileNotFoundError, IndexError):  # it has left
        return None


def test_pooled_ones_are_known() -> None:
    assert set(POOLED) < set(SUBJECTS)
