"""Descriptors and processes: as many as before after connections and deaths; a worker holds its own only."""

from __future__ import annotations

import contextlib
import os
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import (
    Server,
    ask,
    children_of,
    collect,
    connect,
    crowd,
    fds_of,
    hold,
    kill,
    kind_of_fd,
    release,
    unix_socket_types,
)

MakeServer = Callable[[], Server]


def open_kinds(pid: int) -> Counter[str]:
    """What a process holds beside stdin, stdout, stderr, by kind."""
    types = unix_socket_types()
    return Counter(kind_of_fd(link, types) for fd, link in fds_of(pid).items() if fd > 2)


STACKS = "/memfd:stacks (deleted)"  # where it says what it was doing when a signal kills it

EVENTFD = "anon_inode:[eventfd]"  # wakes its background thread

OWN = {
    # channel and control socket; the pair that wakes the control thread
    "blocking": Counter({"seqpacket": 2, "stream": 2, EVENTFD: 1, STACKS: 1}),
    "threads": Counter({"seqpacket": 2, "stream": 2, EVENTFD: 1, STACKS: 1}),
    # channel and control socket; the loop's own pair and selector
    "asyncio": Counter({"seqpacket": 2, "stream": 2, "epoll": 1, EVENTFD: 1, STACKS: 1}),
}


@pytest.mark.parametrize("policy", ["round-robin", "source-hash"])
def test_a_worker_holds_exactly_its_own(
    server: MakeServer, kind: str, handler: str, options: dict, policy: str, tmp_path: Path
) -> None:
    """No listener, no end of a sibling's, nothing of the master's; the same in a replacement."""
    one = server().start(
        f"apps:{handler}",
        bind=["127.0.0.1:0", f"unix:{tmp_path}/s", f"unix:@pyfanout-leaks-{os.getpid()}"],
        workers=3,
        policy=policy,
        pidfile=tmp_path / "pid",
        **options,
    )
    for address in one.addresses:
        ask(address)
    one.wait_idle()
    listeners = {link for link in fds_of(one.pid).values() if is_listener(link)}
    assert len(listeners) == 2  # the UNIX ones; that a worker has no TCP socket at all is checked by its kinds
    for pid in one.workers:
        one.wait_until(lambda pid=pid: open_kinds(pid) == OWN[kind], f"worker {pid} has nothing else")
    check_that_channels_are_not_shared(one, shared=1 if handler == "act" and policy != "source-hash" else 0)
    victims = one.workers[:2]
    for pid in victims:
        kill(pid)
    one.wait_workers(3, gone=victims)
    one.wait_ready_workers(5)
    one.wait_idle()
    for pid in one.workers:
        one.wait_until(lambda pid=pid: open_kinds(pid) == OWN[kind], f"worker {pid} has nothing else")
    check_that_channels_are_not_shared(one, shared=1 if handler == "act" and policy != "source-hash" else 0)


def is_listener(link: str) -> bool:
    return unix_socket_types().get(link, "").endswith("-listening")


def check_that_channels_are_not_shared(one: Server, shared: int) -> None:
    """Of sockets that several workers have, there is the pool's channel and nothing else."""
    holders: Counter[str] = Counter()
    for pid in one.workers:
        holders.update({link for fd, link in fds_of(pid).items() if fd > 2 and link.startswith("socket:")})
    assert sum(count > 1 for count in holders.values()) == shared


FORKS = """
import os, signal, socketserver

def fork():
    if (pid := os.fork()) == 0:
        signal.pause()
    return b"HTTP/1.0 200 OK\\r\\n\\r\\n%d" % pid

def handler(conn, addr):
    conn.recv(999)
    conn.sendall(fork())

async def coroutine(reader, writer):
    await reader.read(999)
    writer.write(fork())

def wsgi(environ, start_response):
    start_response("200 OK", [])
    return [fork().rpartition(b"\\n")[2]]

async def asgi(scope, receive, send):
    assert scope["type"] == "http"
    body = fork().rpartition(b"\\n")[2]
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})

class Handler(socketserver.StreamRequestHandler):
    def handle(self):
        self.request.sendall(b"\\n%d" % os.getpid())
        self.request.shutdown(1)
        signal.pause()

class Forking(socketserver.ForkingTCPServer):
    RequestHandlerClass = Handler
"""


@pytest.mark.parametrize(
    ("app", "own"),
    [
        ("handler", {}),
        ("coroutine", {}),
        ("wsgi", {"server": "waitress"}),
        ("wsgi", {"server": "gevent"}),
        ("asgi", {"as": "asgi"}),
        ("Forking", {}),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else value,
)
def test_of_the_master_s_a_worker_has_its_ends_and_its_children_have_nothing(
    server: MakeServer, app: str, own: dict[str, object], tmp_path: Path
) -> None:
    """The master's other sockets, pipes and files, whoever serves."""
    (tmp_path / "app.py").write_text(FORKS)
    one = server().start(
        f"app:{app}",
        cwd=tmp_path,
        bind=["127.0.0.1:0", f"unix:{tmp_path}/s"],
        workers=2,
        pidfile=tmp_path / "pid",
        **own,
    )
    masters = {link for fd, link in fds_of(one.pid).items() if fd > 2 and not link.startswith("anon_inode:")}
    assert any("/.pid." in link for link in masters)  # the name that the pidfile had at first
    with connect(one.address) as client:
        client.sendall(b"GET / HTTP/1.0\r\n\r\n")
        forked = int(b"".join(iter(lambda: client.recv(999), b"")).rpartition(b"\n")[2])
    try:
        for pid in one.workers:
            # Its channel; what it may write when it dies, if the master runs another worker's, has the same name.
            assert sorted(kind_of_fd(link, unix_socket_types()) for link in masters & open_files(pid)) == [
                STACKS,
                "seqpacket",
            ]
            assert "anon_inode:[pidfd]" not in fds_of(pid).values()
        one.wait_until(lambda: not masters & open_files(forked) - {STACKS}, "it has closed its copies")
        assert "anon_inode:[pidfd]" not in fds_of(forked).values()
        assert not any(link.startswith("socket:") and is_listener(link) for link in fds_of(forked).values())
    finally:
        kill(forked)


def open_files(pid: int) -> set[str]:
    return {link for fd, link in fds_of(pid).items() if fd > 2}


def test_a_worker_holds_what_its_connections_are(server: MakeServer, kind: str, handler: str, options: dict) -> None:
    one = server().start(f"apps:{handler}", workers=1, **options)
    held = [hold(one.address) for _ in range(options.get("threads", 1))]
    expected = OWN[kind] + Counter({"inet": len(held)})
    one.wait_until(lambda: open_kinds(one.workers[0]) == expected, "it holds its connections")
    assert [release(sock) for sock in held] == [b"released\n"] * len(held)
    one.wait_until(lambda: open_kinds(one.workers[0]) == OWN[kind], "its connections are closed")


def test_nothing_is_left_after_connections_and_kills(
    server: MakeServer, kind: str, handler: str, options: dict
) -> None:
    """1,000 connections, 100 kills (of all kinds): as many descriptors and processes as before."""
    one = server().start(handler, script={}, min_uptime=0, workers=4, **options)
    ask(one.address)
    one.wait_idle()
    one.wait_idle_master()
    master, kinds = open_kinds(one.pid), OWN[kind]
    kills = 100 // 3 + 1  # times the three kinds of worker
    for batch in range(kills):
        socks = crowd(one.address, 1000 // kills, "identity")
        victims = one.workers[: 1 if batch % 4 else 2]
        for pid in victims:
            kill(pid, signal.SIGKILL if batch % 2 else signal.SIGTERM)
        collect(socks)
        one.wait_until(lambda victims=victims: not set(victims) & set(children_of(one.pid)), "they are reaped")
        one.wait_workers(4)
    workers = one.wait_workers(4)
    for pid in workers:
        one.wait_until(lambda pid=pid: open_kinds(pid) == kinds, f"worker {pid} has what it had")
    with contextlib.suppress(AssertionError):
        one.wait_until(lambda: open_kinds(one.pid) == master, "the master has what it had")
    assert open_kinds(one.pid) == master
    assert not one.zombies
    assert children_of(one.pid) == workers


def test_a_program_that_a_worker_runs_inherits_nothing(server: MakeServer, tmp_path: Path) -> None:
    """All descriptors are close-on-exec: a connection, a channel in a long-lived child would never end."""
    (tmp_path / "app.py").write_text(
        "import os, subprocess, sys\n"
        "def handler(conn, addr):\n"
        "    code = 'import os; print(sorted(os.listdir(\"/proc/self/fd\"), key=int)[:-1])'\n"
        "    command = [sys.executable, '-S', '-c', code]\n"
        "    conn.sendall(subprocess.run(command, close_fds=False, capture_output=True, check=True).stdout)\n"
    )
    one = server().start("app:handler", cwd=tmp_path, workers=2)
    assert collect([connect(one.address)]) == [b"['0', '1', '2']\n"]


def test_the_master_holds_no_connection(server: MakeServer, handler: str, options: dict) -> None:
    """A copy kept anywhere would keep the client from seeing the end."""
    one = server().start(f"apps:{handler}", workers=2, **options)
    before = open_kinds(one.pid)
    held = [hold(one.address) for _ in range(2)]
    one.wait_until(lambda: open_kinds(one.pid) == before, "the master has closed its copies")
    for sock in held:
        assert release(sock) == b"released\n"


def test_memory_of_the_master_does_not_grow(server: MakeServer) -> None:
    """Over 100 workers' lives; each leaves callbacks, tokens and a member behind, if it is forgotten anywhere."""
    one = server().start("apps:act", workers=2, min_uptime=0)

    def live(born: range) -> None:
        for count in born:
            kill(one.workers[0])
            one.wait_ready_workers(count)

    live(range(3, 63))
    first = resident_kib(one.pid)
    live(range(63, 163))
    assert resident_kib(one.pid) - first < 300


def resident_kib(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    raise AssertionError("no VmRSS")


def test_ready_fd_is_not_kept_by_workers(server: MakeServer) -> None:
    """Whoever reads it to its end sees the end when the master is gone, whatever a worker does."""
    one = server().start("apps:act", workers=1)
    with hold(one.address) as held:
        kill(one.pid)
        one.wait_exit()
        os.set_blocking(one.ready_reader, False)
        assert os.read(one.ready_reader, 1) == b""
        assert release(held) == b"released\n"
    one.wait_nobody()
