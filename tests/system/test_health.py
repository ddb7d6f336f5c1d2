"""Workers that hang, each in its way: found, out of rotation, made to say where they are, replaced. And those that
only look like it, who are left in peace."""

from __future__ import annotations

import os
import resource
import select
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from harness import Server, ask, collect, connect, crowd, freeze, hold, is_over, read_line, release, who
from master_script import run

MakeServer = Callable[..., Server]

QUICK = {"ping_interval": 0.1, "ping_timeout": 0.5, "timeout": 1}
"""A verdict within a second."""

HUNG = r"is hung: "


def hangs(one: Server, pid: int, reason: str) -> None:
    """It is found out, for this reason, and replaced."""
    one.expect(HUNG, "Python stacks at death", "Fatal Python error: Aborted")
    one.wait_log(rf"pid={pid} is hung: {reason}")
    one.wait_until(lambda: is_over(pid), "it is gone")
    one.wait_log(rf"pid={pid} was killed by .* \(hung: {reason}")


@contextmanager
def stuck(one: Server, line: str) -> Iterator[int]:
    """A client whose handler does not come back; the pid of its worker."""
    before = one.log.count("app: stuck")
    with connect(one.address, line):
        last = one.wait_log("app: stuck", before + 1)[-1]
        yield int(last.partition("pid=")[2])


# ---- hung ------------------------------------------------------------------------------------------------------------


def test_one_that_is_stopped_while_idle(server: MakeServer, handler: str, options: dict) -> None:
    """Also the connections that were passed to it are answered: nobody has read a byte of them."""
    one = server().start(f"apps:{handler}", workers=2, **QUICK, **options)
    pid = one.workers[0]
    freeze(pid)
    answers = who(collect(crowd(one.address, 40)))
    assert None not in answers
    assert pid not in {answer["pid"] for answer in answers}
    hangs(one, pid, "no answer to a ping")
    one.wait_workers(2, gone=[pid])
    one.wait_ready_workers(3)


def test_the_only_one_is_stopped(server: MakeServer, handler: str, options: dict) -> None:
    """Its clients wait for the replacement."""
    one = server().start(f"apps:{handler}", workers=1, **QUICK, **options)
    pid = one.workers[0]
    freeze(pid)
    answers = who(collect(crowd(one.address, 40)))
    assert None not in answers
    assert {answer["generation"] for answer in answers} == {2}
    hangs(one, pid, "no answer to a ping")


@contextmanager
def cores() -> Iterator[None]:
    """Processes that are started meanwhile may leave one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_CORE, (soft, hard))


@pytest.mark.parametrize("asked", [False, True])
def test_a_core_only_if_asked(server: MakeServer, tmp_path: Path, asked: bool) -> None:
    """A core has keys in it. Until its end the worker, and so its children, have the limit that it was started with."""
    (tmp_path / "app.py").write_text("from apps import act\n")
    one = server()
    with cores():
        one.start("app:act", *(["--core-dumps"] if asked else []), cwd=tmp_path, workers=1, **QUICK)
    hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
    assert resource.prlimit(one.workers[0], resource.RLIMIT_CORE) == (hard, hard)
    with stuck(one, "stick sleep") as pid:
        hangs(one, pid, "a handler has run for")
    words = one.wait_log(rf"pid={pid} was killed by SIGABRT")[0]
    one.wait_log("Python stacks at death")
    if not asked or hard != 0:  # nobody may leave one
        assert ("has left a core" in words) == asked
    left = list(tmp_path.glob("core*"))  # where the system writes them, if its pattern names no other place
    assert asked or not left
    for core in left:
        core.unlink()


@pytest.mark.parametrize("line", ["stick sleep", "stick spin", "stick gil", "stick lock"])
def test_a_blocking_handler_that_does_not_come_back(server: MakeServer, line: str) -> None:
    one = server().start("apps:act", workers=2, **QUICK)
    with stuck(one, line) as pid:
        hangs(one, pid, "a handler has run for")
    one.wait_log("in do_stick")  # the log says where it was
    assert None not in who(collect(crowd(one.address, 20)))


@pytest.mark.parametrize("line", ["stick sleep", "stick spin", "stick gil", "stick lock"])
def test_an_event_loop_that_is_blocked(server: MakeServer, line: str) -> None:
    """Its process is fine, and its other threads are; its loop is not. What it had not taken is answered by others."""
    one = server().start("apps:act_async", workers=2, **QUICK)
    with stuck(one, line) as pid:
        answers = who(collect(crowd(one.address, 40)))
        assert None not in answers
        assert pid not in {answer["pid"] for answer in answers}
        hangs(one, pid, "no answer to a ping")
    one.wait_log("in do_stick")


def test_threads_that_are_all_stuck(server: MakeServer) -> None:
    one = server().start("apps:act", workers=1, threads=2, **QUICK)
    with stuck(one, "stick sleep") as pid:
        assert None not in who(collect(crowd(one.address, 5, "sleep 0.3"))), "the other thread serves"
        assert "is hung" not in one.log
        with stuck(one, "stick sleep"):
            hangs(one, pid, "every thread has been in the same request for")
    assert None not in who(collect(crowd(one.address, 5)))


def test_one_that_does_not_die_of_sigabrt(server: MakeServer) -> None:
    one = server().start("apps:act", workers=1, **QUICK)
    one.expect(HUNG, "does not stop")
    with stuck(one, "stick deaf") as pid:
        one.wait_log(rf"pid={pid} was killed by SIGKILL \(hung: a handler has run for")
    assert ask(one.address)["generation"] == 2


# ---- not hung --------------------------------------------------------------------------------------------------------


def test_a_busy_worker_is_not_hung(server: MakeServer) -> None:
    """A long handler, which keeps the GIL for a while: far longer than a ping may take, but shorter than `timeout`."""
    one = server().start("apps:act", workers=1, ping_interval=0.05, ping_timeout=0.1, timeout=60)
    pid = one.workers[0]
    answer = ask(one.address, "spin 60")
    assert answer["pid"] == pid
    assert ask(one.address, "sleep 0.5")["pid"] == pid
    assert "is hung" not in one.log


def test_without_timeout_a_handler_may_run_for_ever(server: MakeServer) -> None:
    one = server().start("apps:act", workers=1, **{**QUICK, "timeout": 0, "ping_timeout": 0.1})
    with hold(one.address) as held:
        pid = one.workers[0]
        assert ask_other_side(one, pid)
        assert release(held) == b"released\n"
    assert "is hung" not in one.log


def ask_other_side(one: Server, pid: int) -> bool:
    """Ten pings' time goes by; the worker is still there."""
    with connect(one.address, "identity") as waiting:
        waiting.settimeout(1.0)
        with pytest.raises(TimeoutError):
            waiting.recv(1)
    return not is_over(pid)


def test_one_that_wakes_up_in_time(server: MakeServer, handler: str, options: dict) -> None:
    """Stopped and continued, again and again, each time for a little less than it may be."""
    one = server().start(f"apps:{handler}", workers=1, ping_interval=0.1, ping_timeout=3, **options)
    pid = one.workers[0]
    for _ in range(3):
        freeze(pid)
        with connect(one.address, "identity") as waiting:
            waiting.settimeout(0.5)
            with pytest.raises(TimeoutError):
                waiting.recv(1)
            os.kill(pid, signal.SIGCONT)
            waiting.settimeout(20)
            assert who([read_line(waiting)])[0]["pid"] == pid
    assert "is hung" not in one.log


def test_after_a_pause_of_everything_nobody_is_killed(server: MakeServer, handler: str, options: dict) -> None:
    """As if the machine had been suspended: master and workers stop, and go on long after each deadline."""
    one = server().start(f"apps:{handler}", workers=2, **{**QUICK, "ping_timeout": 1.2}, **options)
    everybody = [*one.workers, one.pid]
    one.wait_idle()
    for pid in everybody:
        freeze(pid)
    waiting = crowd(one.address, 1)
    waiting[0].settimeout(2.5)
    with pytest.raises(TimeoutError):
        waiting[0].recv(1)
    waiting[0].settimeout(20)
    os.kill(one.pid, signal.SIGCONT)  # the master first: its workers owe pongs
    for pid in everybody[:2]:
        os.kill(pid, signal.SIGCONT)
    assert None not in who(collect(waiting))
    assert None not in who(collect(crowd(one.address, 20)))
    assert "is hung" not in one.log
    assert one.workers == everybody[:2]


def test_pings_can_be_switched_off(server: MakeServer, handler: str, options: dict) -> None:
    one = server().start(f"apps:{handler}", workers=2, **{**QUICK, "ping_interval": 0}, **options)
    pid = one.workers[0]
    freeze(pid)
    waiting = crowd(one.address, 2, "sleep 1.5")
    assert select.select(waiting, [], [], 20)[0], "one of them went to the other worker"
    os.kill(pid, signal.SIGCONT)
    assert None not in who(collect(waiting))
    assert "is hung" not in one.log
    assert one.workers[0] == pid


SHORT = """
import errno
from pyfanout.link.messages import Ping
from pyfanout.link import outbox

class Refusing:
    # No ping is sent: `times` of them in this process
    def __init__(self, error, times):
        self.error, self.left, self.pid, self.send = error, times, os.getpid(), outbox.send

    def __call__(self, sock, message):
        if isinstance(message, Ping) and self.left and os.getpid() == self.pid:
            self.left -= 1
            raise OSError(self.error, os.strerror(self.error))
        self.send(sock, message)

exits = []
options |= {"workers": 2, "ping_interval": 0.1, "ping_timeout": 0.5}
master = pyfanout.Master("app:handler", **options)
master.on("exit", exits.append)
"""


@pytest.mark.parametrize("error", ["ENOBUFS", "ENOMEM"])
def test_pings_that_cannot_be_sent(tmp_path: Path, error: str) -> None:
    """For far longer than `ping_timeout`: for want of memory in the system nobody is killed."""
    run(
        tmp_path,
        SHORT
        + f"""
with master:
    outbox.send = Refusing(errno.{error}, 40)
    until(master, lambda: not outbox.send.left, "all are refused")
    until(master, lambda: all(worker.last_pong for worker in master.workers), "all are pinged")
    assert not exits, exits
""",
    )


def test_pings_that_a_worker_does_not_read(tmp_path: Path) -> None:
    """As when its socket is full: that is its own fault."""
    run(
        tmp_path,
        SHORT
        + """
with master:
    until_ready(master)
    outbox.send = Refusing(errno.EAGAIN, 10**9)
    until(master, lambda: exits, "it is found")
    assert "hung: no answer to a ping" in exits[0].detail, exits
""",
    )


LATE = """
import errno, mmap
from pyfanout.link import outbox
from pyfanout.link.messages import Pong, Ready

release(APP + '''
async def coroutine(reader, writer):
    await reader.read(99)
    writer.write(b"%%d" %% os.getpid())
''')
send, counts, master_pid = outbox.send, mmap.mmap(-1, 3), os.getpid()
READYS, PONGS, ENOUGH = range(3)

def refuse(sock, message):
    # In the workers: the first READYs, and all PONGs until it is enough
    if os.getpid() != master_pid:
        if isinstance(message, Ready) and counts[READYS] < 5:
            counts[READYS] += 1
            raise OSError(%s, "refused")
        if isinstance(message, Pong) and not counts[ENOUGH]:
            counts[PONGS] = 1
            raise OSError(%s, "refused")
    send(sock, message)

outbox.send = refuse
exits = []
master = pyfanout.Master("app:%s", **(options | {"workers": 1, "ping_interval": 0.1, "ping_timeout": 60}))
master.on("exit", exits.append)
with master:
    until(master, lambda: counts[PONGS], "its READY was sent, and a PONG is refused")
    assert counts[READYS] == 5
    assert ask(master) == master.workers[0].pid, "what serves does not wait until the PONG is sent"
    assert not master.workers[0].last_pong
    counts[ENOUGH] = 1
    until(master, lambda: master.workers[0].last_pong, "its PONG was sent")
    assert not exits, exits
"""


@pytest.mark.parametrize("error", ["errno.ENOBUFS", "errno.EAGAIN"])
@pytest.mark.parametrize("kind", ["handler", "coroutine"])
def test_what_a_worker_cannot_send_now_is_sent_later(tmp_path: Path, kind: str, error: str) -> None:
    """A READY or a PONG that did not come would be its end; and what serves does not wait for it."""
    run(tmp_path, LATE % (error, error, kind))
