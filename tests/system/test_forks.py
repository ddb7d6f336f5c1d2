"""A blocking handler that forks: no thread of pyfanout's is there at that moment, and all are there again afterwards.

From Python 3.12 on os.fork warns in a process with several threads, and `Server` does not pass a log with a warning.
"""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import Server, connect, is_over, read_all, read_line, wait_until

MakeServer = Callable[[], Server]

APP = """
import multiprocessing, os, signal, subprocess, time
import pyfanout

def threads():
    return len(os.listdir("/proc/self/task"))

counted = []
# It is called after those that a worker registers, because it is there before them: the application is preloaded.
os.register_at_fork(before=lambda: counted.append(threads()))

def by_fork():
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)

def by_multiprocessing():
    child = multiprocessing.get_context("fork").Process(target=os.getpid)
    child.start()
    child.join()

def by_subprocess():
    subprocess.run(["true"], preexec_fn=os.getpid)

def handler(conn, addr):
    before = threads()
    word = conn.recv(100).decode().strip()
    if word == "threads":
        conn.sendall(b"%d\\n" % before)
        return
    counted.clear()
    for _ in range(5):
        globals()[word]()
    end = time.monotonic() + 10
    while threads() < before and time.monotonic() < end:
        time.sleep(0.001)
    conn.sendall(b"%s %s\\n" % (str(max(counted)).encode(), b"back" if threads() >= before else b"lost"))
    if conn.recv(1) == b"d":
        while not pyfanout.current_worker().draining:
            time.sleep(0.001)
        conn.sendall(b"drains\\n")

def hooked(worker):
    os.register_at_fork(after_in_parent=lambda: None)
"""
"""A client that keeps its connection after the answer, or that sends no PROXY header, makes a thread necessary."""

WAYS = ["by_fork", "by_multiprocessing", "by_subprocess"]
HEADER = "PROXY TCP4 127.0.0.9 127.0.0.1 9 9\r\n"


@pytest.fixture(params=["plain", "proxied"])
def one(server: MakeServer, tmp_path: Path, request: pytest.FixtureRequest) -> Server:
    (tmp_path / "app.py").write_text(APP)
    options = {"proxy_protocol": True} if request.param == "proxied" else {}
    return server().start("app:handler", cwd=tmp_path, workers=1, preload=True, **options)


@pytest.fixture
def header(request: pytest.FixtureRequest) -> str:
    return HEADER if "proxied" in request.node.name else ""


def lingering(one: Server, header: str) -> tuple[list[socket.socket], int]:
    """Clients for which the worker has its threads, and how many a handler finds then."""
    stay = [connect(one.address)] if header else []
    wanted = 4 if header else 3

    def found() -> int:
        client = connect(one.address, f"{header}threads")
        stay.append(client)
        return int(read_line(client))

    wait_until(lambda: found() >= wanted, f"{wanted} threads")
    return stay, wanted


def test_none_is_there_when_a_handler_forks(one: Server, header: str) -> None:
    for way in WAYS:
        stay, _ = lingering(one, header)
        with connect(one.address, f"{header}{way}") as client:
            assert read_line(client) == b"1 back\n", way
            client.sendall(b".")
            assert read_all(client) == b""
        for each in stay:
            each.close()


def test_the_master_is_heard_after_a_fork(one: Server, header: str) -> None:
    """In the handler that has forked, and while it goes on: it is told to leave."""
    with connect(one.address, f"{header}by_fork") as client:
        assert read_line(client) == b"1 back\n"
        client.sendall(b"d")
        one.send(signal.SIGHUP)
        assert read_line(client) == b"drains\n"
    one.wait_log("reload")


def test_it_leaves_without_a_master_after_a_fork(server: MakeServer, tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(APP)
    one = server().start("app:handler", cwd=tmp_path, workers=1, preload=True, drain_timeout=0.2)
    (worker,) = one.workers
    with connect(one.address, "by_fork") as client:
        assert read_line(client) == b"1 back\n"
        one.expect("the master is gone and 0.2 s are over")
        one.send(signal.SIGKILL)
        assert one.wait_exit() == -signal.SIGKILL
        one.wait_until(lambda: is_over(worker), "it has given up")
