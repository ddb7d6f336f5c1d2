"""The children of a forking server, which serve its connections, when their worker stops."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harness import Server, connect, freeze, is_asleep, is_over, kill, read_all, session_of

Begin = Callable[..., Server]

APP = """
    import os, signal, socketserver, threading, time

    def note(what):
        os.write(2, f"app: {what} in {os.getpid()}\\n".encode())

    def rest():
        while True:
            time.sleep(1000)

    class Handler(socketserver.StreamRequestHandler):
        def handle(self):
            word = self.rfile.readline().strip()
            if word == b"deaf":
                signal.signal(signal.SIGQUIT, signal.SIG_IGN)
            elif word == b"elsewhere":
                threading.Thread(target=rest, daemon=True).start()
                signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGQUIT])
            elif word == b"broad":
                self.catch_all()
            elif word == b"forks" and os.fork() == 0:
                os.close(self.connection.fileno())
                note("own process")
                rest()
            try:
                self.hold()
            finally:
                note("cleaned up")

        def hold(self):
            note("serving")
            self.rfile.readline()
            self.wfile.write(b"whole\\n")

        def catch_all(self):
            while True:
                try:
                    self.hold()
                except BaseException:
                    note("caught")

    class Forking(socketserver.ForkingTCPServer):
        RequestHandlerClass = Handler

    class NeverWaits(Forking):
        block_on_close = False

    class Rears(Forking):
        "It has a process of its own, besides."

        def server_activate(self):
            super().server_activate()
            self.service_actions = self.rear
            self.reared = False

        def rear(self):
            super().service_actions()
            if not self.reared:
                self.reared = True
                if os.fork() == 0:
                    note("own process")
                    rest()

    def interrupt():
        "When it has just forked, it is told to stop."
        if os.environ.get("INTERRUPT") and os.path.exists(os.environ["INTERRUPT"]):
            os.unlink(os.environ["INTERRUPT"])
            os.kill(os.getpid(), signal.SIGQUIT)

    os.register_at_fork(after_in_parent=interrupt)
"""


@pytest.fixture
def begin(server: Callable[[], Server], tmp_path: Path) -> Begin:
    def begin(app: str = "Forking", **options: object) -> Server:
        (tmp_path / "app.py").write_text(textwrap.dedent(APP))
        return server().start(f"app:{app}", cwd=tmp_path, **{"workers": 1, "drain_timeout": 60, **options})  # type: ignore[arg-type]

    return begin


@contextlib.contextmanager
def served(one: Server, *words: str) -> Iterator[tuple[list[int], list[socket.socket]]]:
    """A client for each word, and the children that serve them. None is idle: the client was the last to send."""
    before = len(printed_by(one, "serving"))
    with contextlib.ExitStack() as stack:
        clients = []
        for word in words:
            clients.append(stack.enter_context(connect(one.address, word)))
            one.wait_log("app: serving", before + len(clients))
        yield printed_by(one, "serving")[before:], clients


def cut_off(one: Server, pids: list[int], clients: list[socket.socket], count: int) -> None:
    """No child is left, no client has an answer, and the log has their number."""
    one.wait_until(lambda: all(map(is_over, pids)), "the children have ended")
    assert [read_all(client) for client in clients] == [b""] * len(clients)
    plural = "" if count == 1 else "s"
    one.wait_log(rf"worker=0 stops, with {count} connection{plural} in progress")


def printed_by(one: Server, what: str) -> list[int]:
    """The processes that have printed it."""
    return [int(pid) for pid in re.findall(rf"app: {what} in (\d+)$", one.log, re.M)]


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGQUIT, signal.SIGTERM])
def test_none_outlives_a_stop(begin: Begin, signum: signal.Signals) -> None:
    """A fast one, and the end of `drain_timeout`. Each child cleans up, also if SIGQUIT does not interrupt its wait,
    because another thread gets it."""
    one = begin(drain_timeout=0.3)
    with served(one, "hold", "elsewhere") as (pids, clients):
        assert one.stop(signum) == 0
        assert session_of(one.pid) == []
        cut_off(one, pids, clients, 2)
    assert sorted(printed_by(one, "cleaned up")) == sorted(pids)
    assert "Traceback" not in one.log


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_one_that_does_not_react_is_killed(begin: Begin, signum: signal.Signals) -> None:
    """It ignores SIGQUIT, catches everything, or is stopped. Nor is its worker killed: it has the time for that."""
    one = begin(drain_timeout=0.3)
    with served(one, "hold", "deaf", "broad", "hold") as (pids, clients):
        freeze(pids[3])
        assert one.stop(signum) == 0
        one.wait_nobody()
        cut_off(one, pids, clients, 4)
    assert printed_by(one, "cleaned up") == pids[:1]
    assert "killed by SIGKILL" not in one.log


def test_none_outlives_its_worker(begin: Begin) -> None:
    """Which is told to stop alone, or whose time to drain in a reload is over."""
    one = begin(drain_timeout=0.3)
    for stop in (lambda: kill(one.workers[0], signal.SIGQUIT), lambda: one.send(signal.SIGHUP)):
        before = one.workers
        with served(one, "hold", "deaf") as (pids, clients):
            stop()
            one.wait_workers(1, gone=before)
            cut_off(one, pids, clients, 2)
    assert one.stop() == 0


@pytest.mark.parametrize("drains", [False, True])
def test_none_outlives_the_time_without_a_master(begin: Begin, drains: bool) -> None:
    """Of a worker that may have begun to drain before."""
    one = begin(drain_timeout=3)
    one.expect("the master has exited and 3 s are over")
    with served(one, "hold", "deaf") as (pids, clients):
        if drains:
            one.send(signal.SIGTERM)
            one.wait_log("READY->DRAINING|stopping")
        kill(one.pid)
        assert one.wait_exit() == -signal.SIGKILL
        one.wait_nobody()
        cut_off(one, pids, clients, 2)


@pytest.mark.parametrize("app", ["Forking", "NeverWaits"])
def test_a_drain_waits_for_them(begin: Begin, app: str) -> None:
    """Also of a server that itself would not."""
    one = begin(app)
    with served(one, "hold") as (_, clients):
        one.send(signal.SIGTERM)
        one.wait_log("READY->DRAINING|stopping")
        clients[0].sendall(b"\n")
        assert read_all(clients[0]) == b"whole\n"
    assert one.wait_exit() == 0
    assert session_of(one.pid) == []
    assert "in progress" not in one.log


@pytest.mark.parametrize("app", ["Forking", "NeverWaits"])
def test_the_end_of_a_drain_ends_them(begin: Begin, app: str) -> None:
    one = begin(app, drain_timeout=0.3)
    with served(one, "deaf") as (pids, clients):
        assert one.stop() == 0
        assert session_of(one.pid) == []
        cut_off(one, pids, clients, 1)


def test_a_stop_in_the_middle_of_a_fork(begin: Begin, tmp_path: Path) -> None:
    """The worker does not know the child's pid yet."""
    go = tmp_path / "interrupt"
    one = begin(environ={"INTERRUPT": str(go)})
    with served(one, "hold") as (pids, clients):
        before = one.workers
        one.wait_until(lambda: is_asleep(before[0]), "that fork is over for the worker, too")
        go.touch()
        with connect(one.address, "hold") as last:
            (after,) = one.wait_workers(1, gone=before)
            cut_off(one, pids, [*clients, last], 2)
        one.wait_until(lambda: sorted(session_of(one.pid)) == sorted([one.pid, after]), "nobody else is left")


def test_the_processes_of_the_application_are_left_alone(begin: Begin) -> None:
    """Of its worker's process, and of a child's. They have the default actions of signals."""
    one = begin("Rears")
    with served(one, "forks") as (pids, clients):
        one.wait_log("app: own process", 2)
        assert one.stop(signal.SIGINT) == 0
        cut_off(one, pids, clients, 1)
    own = printed_by(one, "own process")
    assert sorted(session_of(one.pid)) == sorted(own)
    for pid in own:
        kill(pid, signal.SIGTERM)
    one.wait_nobody()


def test_they_serve_on_if_their_worker_is_killed(begin: Begin) -> None:
    """As those of any forking server; SIGQUIT ends one."""
    one = begin()
    one.expect("killed by SIGKILL")
    before = one.workers
    with served(one, "hold", "hold") as (pids, clients):
        kill(before[0])
        one.wait_workers(1, gone=before)
        clients[0].sendall(b"\n")
        assert read_all(clients[0]) == b"whole\n"
        os.kill(pids[1], signal.SIGQUIT)
        assert read_all(clients[1]) == b""
        one.wait_until(lambda: all(map(is_over, pids)), "both have ended")
