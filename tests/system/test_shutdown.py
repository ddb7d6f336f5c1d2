"""How a server ends: gracefully, fast, by force, by accident; and what is left of it."""

from __future__ import annotations

import os
import re
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import (
    Effort,
    Server,
    ask,
    asking,
    close_all,
    collect,
    connect,
    crowd,
    freeze,
    hold,
    is_over,
    kill,
    read_all,
    read_line,
    release,
    session_of,
    who,
)

from .conftest import KINDS

MakeServer = Callable[[], Server]


def refused(address: str) -> bool:
    try:
        connect(address, timeout=2).close()
    except (ConnectionRefusedError, FileNotFoundError):
        return True
    except ConnectionResetError:
        return False
    return False


# ---- gracefully ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["round-robin", "least-connections", "source-hash"])
def test_term_finishes_what_is_there(server: MakeServer, handler: str, options: dict, policy: str) -> None:
    """Running handlers, what waits in channels and in the accept queue: all are answered; then the port closes."""
    one = server().start(f"apps:{handler}", workers=2, policy=policy, **options)
    address = one.address
    # By source-hash both would be the same blocking worker's, which has one thread.
    busy = 1 if policy == "source-hash" and handler == "act" else 2
    held = [hold(address) for _ in range(busy)]
    for pid in one.workers:
        freeze(pid)  # so that channels and accept queue fill
    queued = crowd(address, 100, "identity")
    one.send(signal.SIGTERM)
    one.wait_log("graceful stop: workers have")
    for pid in one.workers:
        os.kill(pid, signal.SIGCONT)
    assert [release(sock) for sock in held] == [b"released\n"] * busy
    answers = who(collect(queued))
    assert None not in answers
    assert len(answers) == 100
    assert one.wait_exit() == 0
    assert refused(address)
    assert "WARNING" not in one.log


def test_clients_that_come_all_the_time_are_answered_or_refused(
    server: MakeServer, handler: str, options: dict
) -> None:
    """There are always some in the queue, and each asks again at once: nobody is reset, and it comes to an end."""
    one = server().start(f"apps:{handler}", workers=2, backlog=16, **options)
    address = one.address
    with asking(lambda answers: answers.append(ask(address, "sleep 0.005")["pid"]), 16, until_refused=True) as answers:
        one.wait_until(lambda: len(answers) >= 200, "answers")
        one.send(signal.SIGTERM)
    assert one.wait_exit() == 0


def test_new_clients_are_refused_while_it_drains(server: MakeServer, handler: str, options: dict) -> None:
    one = server().start(f"apps:{handler}", workers=2, **options)
    address = one.address
    with hold(address) as held:
        one.send(signal.SIGTERM)
        one.wait_until(lambda: refused(address), "new clients are refused")
        assert not is_over(one.pid)
        assert release(held) == b"released\n"
    assert one.wait_exit() == 0


def test_idle_workers_leave_while_a_busy_one_drains(server: MakeServer, handler: str, options: dict) -> None:
    one = server().start(f"apps:{handler}", workers=3, **options)
    with hold(one.address) as held:
        one.send(signal.SIGTERM)
        one.wait_workers(1)
        assert release(held) == b"released\n"
    assert one.wait_exit() == 0


def test_a_worker_killed_while_it_drains(server: MakeServer, handler: str, options: dict) -> None:
    """What was queued behind it is answered all the same."""
    one = server().start(f"apps:{handler}", workers=1, **options)
    pid = one.workers[0]
    freeze(pid)
    queued = crowd(one.address, 40, "identity")
    one.send(signal.SIGTERM)
    one.wait_log("graceful stop: workers have")
    kill(pid)
    answers = who(collect(queued))
    # Blocking threads that slept in their receive call have nothing in their hands; a loop was stopped before it took.
    assert None not in answers
    assert one.wait_exit() == 0


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGKILL, signal.SIGHUP, signal.SIGTTIN])
@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
def test_nothing_is_forked_for_a_stop(server: MakeServer, first: signal.Signals, stop: int) -> None:
    """Workers that leave, or are killed, when the master is told to stop, and requests just before: without a waiting
    client no worker is forked, and the application is not imported once more."""
    one = server()
    one.start("apps:act", workers=2)
    workers = one.workers
    freeze(one.pid)
    if first in (signal.SIGTERM, signal.SIGKILL):
        for pid in workers:
            kill(pid, first)
        one.wait_until(lambda: all(map(is_over, workers)), "they have left")
    else:
        one.send(first)
    one.send(stop)
    one.send(signal.SIGCONT)
    assert one.wait_exit() == 0
    assert one.log.count("BOOTING->") == 2


def test_what_waits_in_a_stop_is_worth_a_fork(server: MakeServer) -> None:
    """Except for clients whose workers have exited."""
    one = server().start("apps:act", workers=1)
    (worker,) = one.workers
    freeze(worker)
    queued = crowd(one.address, 20, "identity")
    one.wait_idle_master()
    freeze(one.pid)
    kill(worker)
    one.send(signal.SIGTERM)
    one.send(signal.SIGCONT)
    answers = who(collect(queued))
    assert {answer["generation"] for answer in answers} == {2}
    assert one.wait_exit() == 0


def test_hooks_and_pidfile_and_socket_file(server: MakeServer, handler: str, options: dict, tmp_path: Path) -> None:
    path, pidfile = tmp_path / "s", tmp_path / "pid"
    one = server().start(
        handler, script={"on_worker_exit": "exited"}, workers=2, bind=f"unix:{path}", pidfile=str(pidfile), **options
    )
    assert pidfile.read_text().strip() == str(one.pid)
    ask(one.address)
    assert one.stop() == 0
    assert one.log.count("app: exited") == 2
    assert sorted(each.name for each in tmp_path.iterdir()) == ["server0.log", "server0.out"]


# ---- out of patience -------------------------------------------------------------------------------------------------


def test_the_ladder(server: MakeServer, handler: str, options: dict) -> None:
    """After drain_timeout SIGTERM ends the handlers: their `finally` and the exit hook run."""
    one = server().start(handler, script={"on_worker_exit": "exited"}, workers=1, drain_timeout=0.3, **options)
    held = hold(one.address)
    start = time.monotonic()
    assert one.stop() == 0
    took = time.monotonic() - start
    held.close()
    assert took >= 0.3
    one.wait_log("drain_timeout of 0.3 s is over: the remaining workers stop now")
    assert "app: exited" in one.log
    if options != {"threads": 3}:  # a thread cannot be told to stop
        assert "app: hold ended" in one.log
    assert "does not stop within 2 s of SIGQUIT and is killed" not in one.log


def test_the_ladders_end(server: MakeServer, handler: str, options: dict) -> None:
    """A worker that hears nothing is killed, 2 s after it was told to stop."""
    one = server().start(f"apps:{handler}", workers=2, drain_timeout=0.2, **options)
    stopped = one.workers[0]
    freeze(stopped)
    start = time.monotonic()
    assert one.stop() == 0
    assert time.monotonic() - start >= 2.2
    one.wait_log(rf"pid={stopped} does not stop within 2 s of SIGQUIT and is killed")
    one.wait_nobody()


def test_a_handler_that_keeps_the_gil(server: MakeServer, handler: str, options: dict) -> None:
    one = server().start(f"apps:{handler}", workers=1, drain_timeout=0.2, **options)
    sock = connect(one.address, "spin 100000")
    one.wait_until(lambda: Effort.of(one.workers[0]).cpu_ticks > 20, "it spins")
    assert one.stop() == 0
    one.wait_log("does not stop within 2 s of SIGQUIT and is killed")
    sock.close()
    one.wait_nobody()


def test_drain_timeout_of_zero(server: MakeServer, handler: str, options: dict) -> None:
    one = server().start(f"apps:{handler}", workers=2, drain_timeout=0, **options)
    sock = hold(one.address)
    assert one.stop(deadline_s=6) == 0
    sock.close()


# ---- fast ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGQUIT])
def test_fast_stop(server: MakeServer, handler: str, options: dict, signum: int, tmp_path: Path) -> None:
    """Busy handlers are interrupted; the exit hook runs; nobody needs to be killed."""
    path = tmp_path / "s"
    one = server().start(handler, script={"on_worker_exit": "exited"}, workers=2, bind=f"unix:{path}", **options)
    sock = hold(one.address)
    assert one.stop(signum) == 0
    one.wait_nobody()
    sock.close()
    assert "is killed" not in one.log
    assert one.log.count("app: exited") == 2
    assert "is killed" not in one.log
    assert not path.exists()


@pytest.mark.parametrize("threads", [1, 3])
def test_a_fast_stop_where_exceptions_are_swallowed(server: MakeServer, threads: int) -> None:
    """The signal comes in a `__del__`, as it may come in a hook around os.fork. What stops a loop is no exception."""
    one = server().start("apps:act", workers=1, threads=threads)
    one.favour()  # it has 2 s, and its threads occupy a core
    sock = connect(one.address, "deaf")
    one.wait_log("app: deaf")
    assert one.stop(signal.SIGINT) == 0
    sock.close()
    assert "is killed" not in one.log
    assert "ignored in" not in one.log


def test_a_fast_stop_that_a_handler_catches(server: MakeServer) -> None:
    one = server().start("apps:act", workers=1)
    sock = connect(one.address, "catch")
    one.wait_log("app: catching")
    assert one.stop(signal.SIGINT) == 0
    assert b"Stopped" in read_line(sock), "its answer, which it could give"
    sock.close()
    assert "is killed" not in one.log


def test_a_second_int_kills(server: MakeServer, handler: str, options: dict) -> None:
    """If it comes a second after the first: a user who insists has waited."""
    one = server().start(f"apps:{handler}", workers=2, **options)
    for pid in one.workers:
        freeze(pid)
    one.send(signal.SIGINT)
    one.wait_log("stopping now")
    # Not to synchronise: the passing of time is what is tested.
    time.sleep(1)
    one.send(signal.SIGINT)
    assert one.wait_exit() == 0
    one.wait_log("asked once more to stop now: 2 workers that are left are killed")
    one.wait_nobody()


@pytest.mark.parametrize("again", [signal.SIGINT, signal.SIGQUIT])
def test_two_ints_within_a_second_are_one(server: MakeServer, handler: str, options: dict, again: int) -> None:
    """A terminal sends ^C to all its processes, and a wrapper among them passes it on: no worker is killed."""
    one = server().start(handler, script={"on_worker_exit": "exited"}, workers=2, **options)
    workers = one.workers
    for pid in workers:
        freeze(pid)
    os.killpg(one.pid, signal.SIGINT)
    one.wait_log("stopping now")
    one.send(again)
    one.wait_idle_master()
    for pid in workers:
        os.kill(pid, signal.SIGCONT)
    assert one.wait_exit() == 0
    assert one.log.count("app: exited") == 2
    assert "killed" not in one.log


def test_int_while_it_drains(server: MakeServer, handler: str, options: dict) -> None:
    """The more urgent wish wins."""
    one = server().start(f"apps:{handler}", workers=2, **options)
    sock = hold(one.address)
    one.send(signal.SIGTERM)
    one.wait_log("graceful stop: workers have")
    assert one.stop(signal.SIGINT) == 0
    sock.close()
    one.wait_nobody()
    assert "is killed" not in one.log
    assert "drain_timeout of" not in one.log


def test_ctrl_c_reaches_the_whole_group(server: MakeServer, handler: str, options: dict) -> None:
    """A terminal sends SIGINT to all; the workers leave that to the master."""
    one = server().start(f"apps:{handler}", workers=3, **options)
    os.killpg(one.pid, signal.SIGINT)
    assert one.wait_exit() == 0
    one.wait_nobody()
    assert "WARNING" not in one.log


def test_many_signals_at_once(server: MakeServer, handler: str, options: dict) -> None:
    one = server().start(f"apps:{handler}", workers=2, **options)
    for signum in (signal.SIGCHLD, signal.SIGWINCH, signal.SIGTERM, signal.SIGTERM, signal.SIGCHLD):
        one.send(signum)
    assert one.wait_exit() == 0
    one.wait_nobody()


def test_a_replacement_that_boots_is_stopped_quietly(server: MakeServer, tmp_path: Path, kind: str) -> None:
    """Nobody's fault: no error in the log, and no wait for it."""
    (tmp_path / "app.py").write_text(
        "import time, pyfanout\n"
        "if pyfanout.current_worker().generation > 1:\n"
        "    time.sleep(100)\n"
        "def act(conn, addr):\n"
        "    pass\n"
        "async def act_async(reader, writer):\n"
        "    pass\n"
    )
    for signum in (signal.SIGTERM, signal.SIGINT):
        handler = "act_async" if kind == "asyncio" else "act"
        one = server().start(f"app:{handler}", cwd=tmp_path, workers=2, threads=3 if kind == "threads" else 1)
        victim = one.workers[0]
        kill(victim)
        one.wait_workers(2, gone=[victim])
        assert one.stop(signum) == 0
        one.wait_nobody()
        assert "could not start" not in one.log
        assert "is killed" not in one.log
        assert "stops now" not in one.log


# ---- from a script ---------------------------------------------------------------------------------------------------


def test_serve_returns_and_works_again(server: MakeServer, handler: str, options: dict) -> None:
    one = server().start(handler, script={"times": 2}, workers=2, **options)
    assert ask(one.address)["generation"] == 1
    one.send(signal.SIGTERM)
    one.wait_until(lambda: one.out.count("\n") == 1, "serve returns")
    assert one.out == "served, my handlers are back: True, wakeup_fd=-1\n"
    one.wait_log("all workers are ready", 2)
    second = re.findall(r"listening on (\S+) with", one.log)[1]
    assert ask(second)["generation"] == 1
    assert one.stop(signal.SIGINT) == 0
    assert one.out.count("served, my handlers are back: True, wakeup_fd=-1\n") == 2
    assert "my own handler" not in one.out


# ---- the master dies -------------------------------------------------------------------------------------------------


def test_the_master_is_killed(server: MakeServer, handler: str, options: dict, tmp_path: Path) -> None:
    """Workers finish what they have and exit by themselves; a new master can have the address at once."""
    path = tmp_path / "s"
    one = server().start(
        handler, script={"on_worker_exit": "exited"}, workers=3, bind=["127.0.0.1:0", f"unix:{path}"], **options
    )
    address = one.address
    with hold(address) as held:
        kill(one.pid)
        assert one.wait_exit() == -signal.SIGKILL
        two = server().start(f"apps:{handler}", workers=1, bind=[address, f"unix:{path}"], **options)
        assert ask(address)["pid"] in two.workers
        assert ask(f"unix:{path}")["pid"] in two.workers
        one.wait_until(lambda: len(session_of(one.pid)) == 1, "the idle workers have left")
        assert release(held) == b"released\n"
    one.wait_nobody()
    assert one.log.count("app: exited") == 3


REQUEST = "GET / HTTP/1.1\r\nHost: localhost\r\n\r"
STAYING = {
    **{name: (*kind, "hold") for name, kind in KINDS.items()},
    "http.server": ("Web", {}, REQUEST),
    "wsgiref": ("wsgi", {"server": "wsgiref"}, None),
}
"""What a client says that stays, and is answered; None: it is silent from the beginning."""


@pytest.mark.parametrize("staying", list(STAYING))
def test_the_master_is_killed_and_clients_stay(server: MakeServer, staying: str) -> None:
    """They are silent: the worker leaves before its time is over, and ends as after any other drain."""
    app, options, line = STAYING[staying]
    hooks = {"on_worker_start": "registers", "on_worker_exit": "exited"}
    one = server().start(app, script=hooks, workers=1, drain_timeout=60, **options)
    with connect(one.address, line) as client, connect(one.address) as silent:
        if line is not None:
            assert read_line(client)
        one.wait_idle_master()
        kill(one.pid)
        assert one.wait_exit() == -signal.SIGKILL
        one.wait_nobody()
        read_all(client)
        assert read_all(silent) == b""
    assert one.log.count("app: exited") == one.log.count("app: exit function") == 1


def test_the_master_is_killed_while_a_worker_drains(server: MakeServer, handler: str, options: dict) -> None:
    """Its time is over after `drain_timeout` all the same."""
    one = server()
    one.expect("ERROR worker=0: the master has exited and 0.3 s are over", "in thread", "Traceback", "as asked")
    one.start(f"apps:{handler}", workers=1, drain_timeout=0.3, **options)
    pid = ask(one.address, "later raise draining")["pid"]
    with hold(one.address):
        freeze(one.pid)  # it would end the worker itself
        os.kill(pid, signal.SIGTERM)
        one.wait_log(f"app: later raise pid={pid}")
        kill(one.pid)
        one.wait_exit()
        one.wait_nobody()


def test_the_master_is_killed_and_a_handler_never_ends(server: MakeServer, handler: str, options: dict) -> None:
    """After drain_timeout the worker gives up."""
    one = server()
    one.expect("ERROR worker=0: the master has exited and 0.3 s are over")
    one.start(f"apps:{handler}", workers=1, drain_timeout=0.3, **options)
    with hold(one.address):
        kill(one.pid)
        one.wait_exit()
        one.wait_nobody()


def test_the_master_is_killed_while_connections_wait(server: MakeServer, handler: str, options: dict) -> None:
    """What was in the channels is answered by the workers; nobody waits for ever."""
    one = server().start(f"apps:{handler}", workers=2, **options)
    for pid in one.workers:
        freeze(pid)
    queued = crowd(one.address, 20, "identity")
    workers = one.workers
    one.wait_idle_master()
    kill(one.pid)
    one.wait_exit()
    for pid in workers:
        os.kill(pid, signal.SIGCONT)
    answers = who(collect(queued))
    assert any(answers)  # the others were in the accept queue, and are reset
    one.wait_nobody()


# ---- at rest ---------------------------------------------------------------------------------------------------------


def test_an_idle_server_does_nothing(server: MakeServer) -> None:
    """Beside the pings nothing polls: over 2 s, no process of it is woken or uses any CPU, also after traffic, deaths
    and drains."""
    servers = []
    for handler, options in (("act", {}), ("act", {"threads": 3}), ("act_async", {})):
        one = server().start(f"apps:{handler}", workers=2, ping_interval=0, **options)
        collect(crowd(one.address, 50))
        close_all([hold(one.address)])
        victim = one.workers[0]
        kill(victim)
        one.wait_workers(2, gone=[victim])
        one.wait_ready_workers(3)
        victim = one.workers[0]
        os.kill(victim, signal.SIGTERM)
        one.wait_workers(2, gone=[victim])
        one.wait_ready_workers(4)
        ask(one.address)
        servers.append(one)
    pids = [pid for one in servers for pid in (one.pid, *one.workers)]
    settle(pids)
    before = {pid: Effort.of(pid) for pid in pids}
    # Not to synchronise: the passing of time without any work is what is tested.
    time.sleep(2)
    after = {pid: Effort.of(pid) for pid in pids}
    assert before == after


def settle(pids: list[int]) -> None:
    """Until nothing happens for a quarter of a second: what follows the last connection is over."""
    for _ in range(20):
        before = [Effort.of(pid) for pid in pids]
        time.sleep(0.25)
        if before == [Effort.of(pid) for pid in pids]:
            return
    raise AssertionError("not at rest after 5 s")


def test_the_port_can_be_bound_again_at_once(server: MakeServer) -> None:
    """Connections in TIME_WAIT do not hinder a restart."""
    one = server().start("apps:act", workers=1)
    address = one.address
    for _ in range(3):
        ask(address)
        assert one.stop() == 0
        one = server().start("apps:act", workers=1, bind=address)
    with socket.socket() as late:
        late.settimeout(5)
        late.connect(("127.0.0.1", int(address.rpartition(":")[2])))
