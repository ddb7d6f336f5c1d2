"""Descriptors that run out, in the master, in a worker, on their way; and processes. It says so, it waits, it loses
nothing."""

from __future__ import annotations

import errno
import json
import os
import re
import resource
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
from harness import (
    NOBODY,
    Effort,
    Server,
    ask,
    collect,
    connect,
    crowd,
    fds_of,
    freeze,
    hold,
    kill,
    read_line,
    release,
    who,
)

MakeServer = Callable[[], Server]


def limit_descriptors(pid: int, soft: int) -> int:
    """Set a living process's soft limit; the one that it had."""
    before, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))
    return before


# ---- in the master ---------------------------------------------------------------------------------------------------


def test_the_master_has_none_left(server: MakeServer, handler: str, options: dict) -> None:
    """It pauses, says so once, uses no CPU, and goes on as soon as there is one."""
    one = server()
    one.expect("ERROR accept paused: Too many open files; new connections wait in the backlog")
    one.start(f"apps:{handler}", workers=2, **options)
    lowest_free = next(fd for fd in range(3, 1000) if fd not in fds_of(one.pid))
    before = limit_descriptors(one.pid, lowest_free)
    queued = crowd(one.address, 50, "identity")
    one.wait_log("accept paused")
    effort = Effort.of(one.pid)
    nobody_is_answered(queued)
    used = Effort.of(one.pid)
    assert used.cpu_ticks - effort.cpu_ticks <= 3  # of 10 ms
    assert used.voluntary_switches - effort.voluntary_switches <= 12  # it looks ten times a second
    limit_descriptors(one.pid, before)
    assert None not in who(collect(queued))
    one.wait_log("accept resumed")
    assert one.log.count("accept paused") == 1
    assert ask(one.address)["pid"] in one.workers


def nobody_is_answered(socks: list[socket.socket], seconds: float = 0.5) -> None:
    assert select.select(socks, [], [], seconds)[0] == []


def test_the_master_has_few(server: MakeServer, handler: str, options: dict) -> None:
    """Always at the edge: a batch never fits, each connection is served all the same."""
    one = server()
    one.expect("ERROR accept paused: Too many open files")
    one.start(f"apps:{handler}", workers=2, **options)
    highest = max(fds_of(one.pid))
    limit_descriptors(one.pid, highest + 3)
    answers = who(collect(crowd(one.address, 30, "identity")))
    assert None not in answers


def test_a_worker_dies_while_the_master_has_none_left(server: MakeServer) -> None:
    """The slot is tried again until there is a descriptor; the other worker serves what it got."""
    one = server()
    one.expect("ERROR worker=. cannot be started: Too many open files", "ERROR accept paused")
    one.start("apps:act", workers=2)
    before = limit_descriptors(one.pid, 4)
    victim = one.workers[0]
    os.kill(victim, signal.SIGKILL)
    one.wait_log("cannot be started: Too many open files", 2)
    limit_descriptors(one.pid, before)
    one.wait_workers(2, gone=[victim])
    one.wait_ready_workers(3)
    one.wait_all_serve(one.workers)


# ---- in a worker -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("handler", ["act", "act_async"])
def test_a_worker_has_none_left(server: MakeServer, handler: str) -> None:
    """Its handler leaks to the last one: it takes no more, others serve; when some are free it serves again."""
    one = server()
    one.expect("ERROR worker=.: Too many open files; takes no connection until a descriptor is free")
    one.start(handler, script={"on_worker_start": "few_descriptors"}, workers=2, environ={"SPARE_FDS": "8"})
    with connect(one.address, "leak_all") as client:
        leaker = json.loads(read_line(client))
        assert leaker["errno"] == errno.EMFILE
        waiting = crowd(one.address, 100, "identity")
        one.wait_log("takes no connection until a descriptor is free")
        # An event loop has a channel of its own: what was passed into it is passed to the other.
        assert {answer["pid"] for answer in who(collect(waiting))} == set(one.workers) - {leaker["pid"]}
        effort = Effort.of(leaker["pid"])
        nobody_is_answered([client])
        assert Effort.of(leaker["pid"]).cpu_ticks - effort.cpu_ticks <= 3
        limit_descriptors(leaker["pid"], 200)
        one.wait_log("descriptors are free again")

        def serves_again() -> bool:
            """It has the first client still, and so its turn comes when the other one has two."""
            return leaker["pid"] in {answer["pid"] for answer in who(collect(crowd(one.address, 10, "identity")))}

        one.wait_until(serves_again, "it serves again")
    assert len(re.findall("takes no connection until", one.log)) == 1


@pytest.mark.parametrize("handler", ["act", "act_async"])
def test_the_only_worker_has_none_left(server: MakeServer, handler: str) -> None:
    """Clients wait; nobody is lost."""
    one = server()
    one.expect("ERROR worker=0: Too many open files; takes no connection until a descriptor is free")
    one.start(handler, script={"on_worker_start": "few_descriptors"}, workers=1, environ={"SPARE_FDS": "8"})
    with connect(one.address, "leak_all") as client:
        assert json.loads(read_line(client))["errno"] == errno.EMFILE
        queued = crowd(one.address, 60, "identity")
        one.wait_log("takes no connection until a descriptor is free")
        nobody_is_answered(queued)
        limit_descriptors(one.workers[0], 200)
        assert None not in who(collect(queued))


def test_an_event_loop_holds_as_many_as_it_can(server: MakeServer) -> None:
    """More clients than it has descriptors: those that fit are served at once, the others when these have left."""
    one = server()
    one.expect("Too many open files")
    one.start("act_async", script={"on_worker_start": "few_descriptors"}, workers=1, environ={"SPARE_FDS": "12"})
    socks = crowd(one.address, 40, "hold")
    for sock in socks:
        sock.sendall(b"")
    one.wait_log("takes no connection until a descriptor is free")
    for sock in socks:
        sock.sendall(b".")
    assert collect(socks) == [b"held\nreleased\n"] * 40


def test_threads_share_the_last_descriptors(server: MakeServer) -> None:
    """Three threads, each of which has looked for a free descriptor before it fell asleep, and one is free."""
    one = server()
    one.expect("Too many open files")
    script = {"on_worker_start": "few_descriptors"}
    one.start("act", script=script, workers=1, threads=3, environ={"SPARE_FDS": "8"})
    pid = one.workers[0]
    one.wait_idle()
    lowest_free = next(fd for fd in range(3, 1000) if fd not in fds_of(pid))
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (lowest_free + 1, before[1]))
    answers = who(collect(crowd(one.address, 6, "sleep 0.05")))
    assert None not in answers
    assert "was lost" not in one.log


# ---- memory ----------------------------------------------------------------------------------------------------------


def test_no_memory_to_take_a_connection(server: MakeServer, kind: str, handler: str, options: dict) -> None:
    """The worker says so, once, and looks again: whom it has in its hands, and who waits, is answered."""
    one = server()
    one.expect("ERROR worker=0: Cannot allocate memory; it cannot take a connection, and tries again")
    one.start(handler, script={}, workers=1, **options)
    pids = one.workers
    held = [hold(one.address) for _ in range(0 if kind == "blocking" else 2)]
    ask(one.address, "refuse ENOMEM 4")
    assert [answer["pid"] for answer in who(collect(crowd(one.address, 20, "identity")))] == pids * 20
    assert [release(sock) for sock in held] == [b"released\n"] * len(held)
    assert one.workers == pids
    assert len(re.findall("it cannot take a connection, and tries again", one.log)) == 1


def test_a_channel_that_cannot_be_read(server: MakeServer) -> None:
    """An event loop ends, and says how many it cuts short; who waits is answered by the next worker."""
    one = server()
    one.expect("an exception ended its serving loop", "^ *Traceback ")
    one.start("apps:act_async", workers=1)
    pids = one.workers
    held = [hold(one.address) for _ in range(3)]
    ask(one.address, "refuse EIO 1")
    one.wait_idle()  # that client is gone, for the worker, too
    waiting = crowd(one.address, 5, "identity")
    assert collect(held) == [b""] * 3
    one.wait_log("WARNING worker=0 stops, with 3 connections in progress")
    assert not {answer["pid"] for answer in who(collect(waiting))} & set(pids)


# ---- processes -------------------------------------------------------------------------------------------------------

NPROC = 300
CROWD = """
import os, sys, time
if os.getuid() == 0:
    os.setgroups([])
    os.setresgid(*[int(sys.argv[1])] * 3)
    os.setresuid(*[int(sys.argv[1])] * 3)
for _ in range(int(sys.argv[2])):
    if os.fork() == 0:
        sys.stdin.read()
        os._exit(0)
print("there", flush=True)
sys.stdin.read()
for _ in range(int(sys.argv[2])):
    os.wait()
"""


def test_no_process_may_be_forked(server: MakeServer, handler: str, options: dict) -> None:
    """EAGAIN, of the kernel's own: the user has all the processes that it may have. Who lives serves on."""
    one = server().start(handler, script={"uid": NOBODY, "nproc": NPROC}, workers=2, **options)
    one.expect("cannot be started: Resource temporarily unavailable")
    user = NOBODY if os.getuid() == 0 else os.getuid()
    command = [sys.executable, "-c", CROWD, str(user), str(NPROC)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as others:
        assert others.stdout is not None
        assert others.stdout.readline() == b"there\n"
        victim, survivor = one.workers
        kill(victim)
        one.wait_log(r"worker=\d cannot be started: Resource temporarily unavailable")
        assert {answer["pid"] for answer in who(collect(crowd(one.address, 20, "identity")))} == {survivor}
        others.communicate()
    one.wait_workers(2, gone=[victim])


# ---- on their way ----------------------------------------------------------------------------------------------------

IN_FLIGHT = """
import os, resource, socket, sys
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
if os.getuid() == 0:
    os.setgroups([])
    os.setresgid(*[int(sys.argv[1])] * 3)
    os.setresuid(*[int(sys.argv[1])] * 3)
pairs = []
for _ in range(int(sys.argv[2])):
    left, right = socket.socketpair()
    socket.send_fds(left, [b"x"], [0] * 200)
    pairs.append((left, right))
print("in flight", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def many_in_flight(guard: None) -> Iterator[Callable[[], Callable[[], None]]]:
    """Another process of the same user has 1,000 descriptors in flight: start it, and the function that ends it."""
    processes: list[subprocess.Popen[bytes]] = []

    def start() -> Callable[[], None]:
        command = [sys.executable, "-c", IN_FLIGHT, str(NOBODY if os.getuid() == 0 else os.getuid()), "5"]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        processes.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == b"in flight\n"
        return lambda: (process.communicate(timeout=10), None)[1]

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def test_too_many_in_flight(
    server: MakeServer, handler: str, options: dict, many_in_flight: Callable[[], Callable[[], None]]
) -> None:
    """ETOOMANYREFS: the user has more descriptors in flight than its limit. Clients wait, the master does not spin."""
    one = server().start(handler, script={"uid": NOBODY, "nofile": 100}, workers=2, **options)
    assert ask(one.address)["uid"] != 0
    one.expect("accept paused: Too many references")
    end = many_in_flight()
    queued = crowd(one.address, 60, "identity")
    effort = Effort.of(one.pid)
    nobody_is_answered(queued)
    one.wait_log("accept paused: Too many references")
    assert Effort.of(one.pid).cpu_ticks - effort.cpu_ticks <= 5
    end()
    assert None not in who(collect(queued))
    one.wait_log("accept resumed")
    assert ask(one.address)["pid"] in one.workers


def test_the_master_alone_never_has_too_many_in_flight(server: MakeServer, handler: str, options: dict) -> None:
    """Many workers that take nothing and a low limit: what is on its way is far below it."""
    one = server().start(handler, script={"uid": NOBODY, "nofile": 150}, workers=4, **options)
    workers = one.workers
    for pid in workers:
        freeze(pid)
    queued = crowd(one.address, 300, "identity")
    one.wait_idle_master()
    for pid in workers:
        os.kill(pid, signal.SIGCONT)
    assert None not in who(collect(queued))


def test_held_connections_do_not_count(server: MakeServer) -> None:
    """What a worker has taken is not in flight any more: it may hold more than that."""
    one = server().start("act_async", script={"uid": NOBODY, "nofile": 200}, workers=2)
    held = [hold(one.address) for _ in range(250)]
    assert [release(sock) for sock in held] == [b"released\n"] * 250
