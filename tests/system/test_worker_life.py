"""Workers that die, are killed, misbehave, retire; and what their clients notice."""

from __future__ import annotations

import os
import re
import signal
import socket
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
    freeze,
    hold,
    is_asleep,
    is_over,
    kill,
    read_all,
    read_line,
    release,
    state_of,
    who,
)

MakeServer = Callable[[], Server]

IGNORED_HERE = {signum for signum in signal.Signals if signal.getsignal(signum) is signal.SIG_IGN}
"""A test runner in the background passes these on."""

SWALLOWED = "the handler waits: a signal that comes on its way into a call is looked at when that returns"


# ---- killed ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["round-robin", "source-hash"])
@pytest.mark.parametrize("workers", [1, 3])
def test_what_is_queued_behind_a_killed_worker_is_answered(server: MakeServer, policy: str, workers: int) -> None:
    one = server().start("apps:act", workers=workers, policy=policy)
    held = [hold(one.address) for _ in range(workers)] if policy == "round-robin" else hold_all(one, workers)
    before = one.workers
    queued = crowd(one.address, 50, "identity")
    kill(before[0])
    if workers > 1:
        for pid in before[1:]:
            kill(pid)
    answers = who(collect(queued))
    assert None not in answers
    assert not {answer["pid"] for answer in answers} & set(before)
    # Killed while their handlers ran: an end without an answer, as soon as the process is gone.
    assert all(answer in (b"", None) for answer in collect(held, deadline_s=5))
    one.wait_workers(workers, gone=before)
    one.wait_log(r"was killed by SIGKILL .* with 1 connection in progress", workers)


def hold_all(one: Server, workers: int) -> list[socket.socket]:
    """Keep every worker busy with source-hash: try client addresses until each has one."""
    held: list[socket.socket] = []
    busy: set[int] = set()
    for last in range(1, 200):
        source = f"127.0.1.{last}"
        if len(busy) == workers:
            return held
        slot = ask_if_idle(one, source, busy)
        if slot is not None and slot not in busy:
            sock = connect(one.address, "hold", source=source)
            assert read_line(sock) == b"held\n"
            held.append(sock)
            busy.add(slot)
    raise AssertionError("no address for each worker")


def ask_if_idle(one: Server, source: str, busy: set[int]) -> int | None:
    """The slot that serves `source`; None if it is busy. A client that gives up is no harm."""
    sock = connect(one.address, "identity", source=source, timeout=0.2 if busy else 20)
    try:
        answer = who([read_all(sock)])[0]
    except TimeoutError:
        return None
    return None if answer is None else int(answer["slot"])


@pytest.mark.parametrize("policy", ["round-robin", "least-connections"])
def test_what_a_killed_event_loop_had_not_taken_is_answered(server: MakeServer, policy: str) -> None:
    """A loop that spins takes nothing: what was passed to it goes to the other one, or to its replacement."""
    one = server().start("apps:act_async", workers=2, policy=policy)
    before = one.workers
    for pid in before:
        freeze(pid)
    queued = crowd(one.address, 50, "identity")
    kill(before[0])
    replacement = one.wait_workers(2, gone=before[:1])[1]
    one.wait_ready_workers(3)
    kill(before[1])
    answers = who(collect(queued))
    assert None not in answers
    assert not {answer["pid"] for answer in answers} & set(before)
    assert replacement in {answer["pid"] for answer in answers}
    one.wait_workers(2, gone=before)


def test_the_port_stays_open_with_no_worker(server: MakeServer, kind: str, handler: str, options: dict) -> None:
    """The last worker is killed again and again: nobody is refused, everybody is answered in the end."""
    one = server().start(f"apps:{handler}", workers=1, **options)
    queued = []
    for _ in range(4):
        pid = one.wait_workers(1)[0]
        kill(pid)
        queued += crowd(one.address, 5, "identity")  # connect() itself would fail if it were refused
        one.wait_until(lambda pid=pid: state_of(pid) == "", "it is reaped")
        queued += crowd(one.address, 5, "identity")
    answers = who(collect(queued))
    # Only one that a handler had begun may have no answer: at most one for each thread of each kill.
    begun = {"blocking": 1, "threads": 3, "asyncio": 10}[kind] * 3
    assert answers.count(None) <= begun
    last = [answer for answer in answers[-5:] if answer]
    assert len(last) == 5


def test_a_replacement_comes_at_once_the_first_time(server: MakeServer, handler: str, options: dict) -> None:
    one = server().start(f"apps:{handler}", workers=2, **options)
    victim = one.workers[0]
    # A life of at least a second: only then is a death the first of a new row, see master.timing.
    kill(victim)
    one.wait_workers(2, gone=[victim])
    one.wait_ready_workers(3)
    one.wait_all_serve(one.workers)
    assert not re.search("is started again in", one.log)


# ---- handlers that misbehave -----------------------------------------------------------------------------------------


def test_a_handler_that_raises(server: MakeServer, handler: str, options: dict) -> None:
    """The client sees the end, the log has the traceback, the worker lives."""
    one = server()
    one.expect("the handler raised an exception", "^ *Traceback ")
    one.start(f"apps:{handler}", workers=1, **options)
    for _ in range(3):
        assert ask(one.address, "raise") is None
    assert one.log.count("RuntimeError: as asked") == 3
    assert len(re.findall(r"ERROR worker=0: the handler raised an exception", one.log)) == 3
    assert ask(one.address)["generation"] == 1


def test_a_handler_that_lets_a_cancellation_out(server: MakeServer, kind: str, handler: str, options: dict) -> None:
    """It ended its worker. A task that ends so is cancelled, for asyncio, which says nothing."""
    one = server()
    one.expect("the handler raised an exception", "^ *Traceback ")
    one.start(f"apps:{handler}", workers=1, **options)
    for _ in range(3):
        assert ask(one.address, "cancel") is None
    assert ask(one.address)["generation"] == 1
    assert one.log.count("ERROR worker=0: the handler raised an exception") == (0 if kind == "asyncio" else 3)


@pytest.mark.parametrize("app", ["act_in_task", "act_in_future"])
def test_a_plain_function_that_returns_an_awaitable(server: MakeServer, app: str) -> None:
    one = server()
    one.expect("the handler raised an exception", "^ *Traceback ")
    one.start(f"apps:{app}", workers=1)
    assert ask(one.address)["pid"] == one.workers[0]
    assert ask(one.address, "raise") is None
    assert len(re.findall(r"ERROR worker=0: the handler raised an exception", one.log)) == 1


def test_connections_may_share_an_awaitable(server: MakeServer) -> None:
    one = server().start("apps:act_in_shared", workers=1)
    assert collect([connect(one.address) for _ in range(3)]) == [b"waits\n"] * 3
    one.wait_idle()


def test_a_plain_function_that_raises_before_it_returns_an_awaitable(server: MakeServer) -> None:
    one = server()
    one.expect("the handler raised an exception", "^ *Traceback ")
    one.start("apps:raise_before_it_awaits", workers=1)
    assert ask(one.address, "raise") is None
    assert len(re.findall(r"ERROR worker=0: the handler raised an exception", one.log)) == 1


INTERRUPTS = ["interrupt KeyboardInterrupt", "interrupt GeneratorExit"]


@pytest.mark.parametrize("line", ["exit 0", "exit 5", "die 0", "die 7", "kill SIGSEGV", "kill SIGKILL", *INTERRUPTS])
def test_a_handler_that_ends_its_worker(server: MakeServer, handler: str, options: dict, line: str) -> None:
    """The client sees the end at once, the slot gets a new worker, the log says how the old one ended."""
    one = server()
    one.expect("^ *Traceback ", "^ *Fatal Python error", "Python stacks at death", "the handler raised an exception")
    one.expect("an exception ends this process")
    one.start(f"apps:{handler}", workers=1, **options)
    before = one.workers
    client = connect(one.address, line)
    assert collect([client])[0] in (b"", None)
    one.wait_workers(1, gone=before)
    answer = ask(one.address)
    assert (answer["slot"], answer["generation"]) == (0, 2)
    how = {
        "exit 5": "exited with code 5",
        "die 0": "exited with code 0",
        "die 7": "exited with code 7",
        "kill SIGSEGV": "was killed by SIGSEGV",
        "kill SIGKILL": "was killed by SIGKILL",
        **dict.fromkeys(INTERRUPTS, "exited with code 70"),
    }.get(line)
    if how:
        one.wait_log(rf"WARNING worker=0 gen=1 pid={before[0]} {how}")
    assert "\nTraceback" not in one.log


def test_sys_exit_lets_the_other_threads_finish(server: MakeServer) -> None:
    one = server().start("apps:act", workers=1, threads=3)
    before = one.workers
    with hold(one.address) as held:
        assert ask(one.address, "exit 5") is None
        one.wait_log("READY->DRAINING")
        assert release(held) == b"released\n"
    one.wait_workers(1, gone=before)
    one.wait_log("exited with code 5")


@pytest.mark.parametrize("line", ["detach", "close_twice", "leave_file", "keep", "task"])
def test_the_connection_is_closed_once(server: MakeServer, kind: str, handler: str, options: dict, line: str) -> None:
    """However the handler leaves it: the client gets all and then end-of-file; the scoreboard counts it once."""
    if line in (("leave_file", "keep") if kind == "asyncio" else ("task",)):
        pytest.skip("not for this kind")
    one = server().start(f"apps:{handler}", workers=1, **options)
    for _ in range(5):
        assert ask(one.address, line)["generation"] == 1
    answer = ask(one.address)
    assert answer["generation"] == 1
    one.wait_idle()
    kill(answer["pid"])
    # What the scoreboard says about it now: all five, and `whoami`, were done.
    one.wait_log(rf"pid={answer['pid']} was killed by SIGKILL .* with 0 connections in progress")


@pytest.mark.parametrize("daemon", ["daemon", "nondaemon"])
def test_a_thread_left_behind(server: MakeServer, handler: str, options: dict, daemon: str) -> None:
    """It does not disturb the worker. A non-daemon thread that never ends has what is left of a drain, as it delays the
    end of any program."""
    one = server().start(f"apps:{handler}", workers=1, drain_timeout=0.5, **options)
    pids = {ask(one.address, f"thread {daemon}")["pid"] for _ in range(3)}
    assert pids == set(one.workers)
    os.kill(one.workers[0], signal.SIGTERM)
    one.wait_workers(1, gone=pids)
    assert ask(one.address, f"thread {daemon}")["generation"] == 2
    assert one.stop() == 0


def forks(one: Server, options: dict) -> Server:
    """From Python 3.12 on os.fork warns where handlers have threads. A blocking handler has the main thread: see
    test_forks.py."""
    if "threads" in options:
        one.expect("DeprecationWarning: .* multi-threaded, use of fork")
    return one


@pytest.mark.parametrize("end", ["return", "raise", "exit", "die", "stay"])
def test_a_handler_that_forks(server: MakeServer, handler: str, options: dict, end: str) -> None:
    """The child is no worker, whatever it does: it takes no connection and does not touch the scoreboard."""
    one = forks(server(), options)
    if end == "raise":
        one.expect("the handler raised an exception", "^ *Traceback ")
    one.start(f"apps:{handler}", workers=2, **options)
    workers = one.workers
    forked = []
    for _ in range(4):
        # With end-of-file only when the child has let go of its copy, unless it stays: then the answer is enough.
        client = connect(one.address, f"fork {end}")
        line = read_line(client)
        forked.append(who([line])[0]["child"])
        if end == "stay":
            client.close()
        else:
            assert read_all(client) == b""
    if end != "stay":
        one.wait_until(lambda: all(is_over(pid) for pid in forked), "the forked children are gone")
    one.wait_until(lambda: one.log.count("child current_worker=None") == 4, "four children that are no workers")
    one.wait_all_serve(workers)
    assert one.workers == workers
    # The workers can still be told to leave: the children have broken neither signals nor event loop.
    for pid in workers:
        os.kill(pid, signal.SIGTERM)
    one.wait_workers(2, gone=workers)
    one.wait_ready_workers(4)
    assert ask(one.address)["generation"] == 2
    assert re.search("in progress", one.log) is None
    for pid in forked:
        kill(pid)
    one.wait_until(lambda: all(is_over(pid) for pid in forked), "the forked children are gone")
    assert one.stop() == 0


def test_a_child_that_stays_does_not_keep_a_connection_from_the_others(server: MakeServer) -> None:
    """While it has the channel's descriptor it must not be woken for a connection."""
    one = server().start("apps:act", workers=1)
    with connect(one.address, "fork stay") as client:
        child = who([read_line(client)])[0]["child"]
        for _ in range(50):
            assert ask(one.address)["pid"] == one.workers[0]
        kill(child)
    one.wait_until(lambda: is_over(child), "it is gone")


@pytest.mark.parametrize("proxied", [False, True])
def test_a_fault_is_blocked_in_no_thread(server: MakeServer, handler: str, options: dict, proxied: bool) -> None:
    """The kernel kills without a handler if it is blocked, and the log would not have the stacks."""
    more = {"proxy_protocol": True} if proxied else {}
    one = server().start(f"apps:{handler}", workers=1, **options, **more)
    (pid,) = one.workers
    one.wait_until(lambda: is_asleep(pid), "its threads are there")
    faults = sum(1 << (signum - 1) for signum in (signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL))
    tasks = list(Path(f"/proc/{pid}/task").iterdir())
    for task in tasks:
        (blocked,) = re.findall(r"^SigBlk:\s+(\w+)", (task / "status").read_text(), re.M)
        assert not int(blocked, 16) & faults, (task.name, blocked)
    assert len(tasks) > 1 or "async" in handler


def test_children_have_default_signals(server: MakeServer, handler: str, options: dict) -> None:
    """Executed programs ignore and block no signal, except those of the test runner; SIGTERM ends a forked child."""
    one = forks(server(), options).start(f"apps:{handler}", workers=1, **options)
    answer = ask(one.address, "children")
    assert not set(answer["kept"]) - IGNORED_HERE, answer
    assert answer["exitcode"] == -signal.SIGTERM
    assert ask(one.address)["generation"] == 1


def test_an_application_may_reap_its_own_children(server: MakeServer, tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(
        "import subprocess, sys\n"
        "def handler(conn, addr):\n"
        "    done = subprocess.run([sys.executable, '-S', '-c', 'print(42)'], capture_output=True)\n"
        "    conn.sendall(done.stdout)\n"
    )
    one = server().start("app:handler", cwd=tmp_path, workers=1)
    assert read_all(connect(one.address)) == b"42\n"


def test_workers_that_serve_and_are_killed_are_replaced_at_once(
    server: MakeServer, handler: str, options: dict
) -> None:
    """Each of them again and again, sooner than `min_uptime`: if that were held back, soon nobody would serve."""
    one = server().start(f"apps:{handler}", workers=2, min_uptime=60, **options)
    for _ in range(12):
        answers = who(collect(crowd(one.address, 10, "identity")))
        assert None not in answers
        victim = answers[0]["pid"]
        one.wait_idle()
        kill(victim)
        one.wait_workers(2, gone=[victim])
    assert "is started again in" not in one.log


# ---- leaving ---------------------------------------------------------------------------------------------------------


def test_max_requests_recycles_and_loses_nothing(server: MakeServer, handler: str, options: dict) -> None:
    one = server().start(f"apps:{handler}", workers=2, max_requests=20, max_requests_jitter=10, **options)
    answers = [ask(one.address) for _ in range(100)]
    answers += who(collect(crowd(one.address, 200)))
    assert None not in answers

    def four_have_served() -> bool:
        answers.append(ask(one.address))
        return len({(answer["slot"], answer["generation"]) for answer in answers}) >= 4

    one.wait_until(four_have_served, "each serves on until its successor is there, but no longer")
    retired = [int(count) for count in re.findall(r"has served (\d+) connections and asks to be replaced", one.log)]
    assert len(retired) >= 2
    assert set(retired) <= set(range(20, 31))
    assert "WARNING" not in one.log  # a retirement is no death
    assert "is started again in" not in one.log


def test_jitter_differs_between_workers(server: MakeServer) -> None:
    one = server().start("apps:act", workers=4, max_requests=1, max_requests_jitter=100)
    limits: set[int] = set()
    for _ in range(4 * 101):  # by then all four have retired
        ask(one.address, "identity")
        limits |= {int(count) for count in re.findall(r"has served (\d+) connections?", one.log)}
        if len(limits) >= 2:
            return
    raise AssertionError(f"all workers retire after {limits}")


def test_sigterm_to_a_worker_drains_it(server: MakeServer, handler: str, options: dict) -> None:
    """What it has begun is finished, its slot has a new worker, others have served meanwhile."""
    one = server().start(f"apps:{handler}", workers=2, **options)
    held = [hold(one.address) for _ in range(2)]
    before = one.workers
    victim = before[0]
    os.kill(victim, signal.SIGTERM)
    one.wait_log(rf"pid={victim} READY->DRAINING")
    if "asyncio" in handler or options:
        assert ask(one.address)["pid"] == before[1]
    assert [release(sock) for sock in held] == [b"released\n"] * 2
    after = one.wait_workers(2, gone=[victim])
    assert before[1] in after
    one.wait_ready_workers(3)
    seen: set[int] = set()  # one that is on its way back to its queue may take what another was woken for
    one.wait_until(lambda: seen.add(ask(one.address)["pid"]) or seen == set(after), "both answer")
    assert "WARNING" not in one.log


def test_sigterm_to_idle_workers_many_times(server: MakeServer, kind: str, handler: str, options: dict) -> None:
    """One that sleeps on its channel has to wake up for it, whichever thread got the signal."""
    one = server().start(f"apps:{handler}", workers=1, min_uptime=0, **options)  # else it would be held back
    for generation in range(1, 8):
        pid = one.wait_workers(1)[0]
        one.wait_ready_workers(generation)
        os.kill(pid, signal.SIGTERM)
        one.wait_workers(1, gone=[pid])
    assert ask(one.address)["generation"] >= 8
    assert "WARNING" not in one.log


def test_a_second_sigterm_changes_nothing(server: MakeServer, handler: str, options: dict) -> None:
    """What is in its hands is answered; SIGQUIT would stop it now."""
    one = server().start(f"apps:{handler}", workers=1, **options)
    with hold(one.address) as held:
        pid = one.workers[0]
        one.wait_until(lambda: is_asleep(pid), SWALLOWED)
        os.kill(pid, signal.SIGTERM)
        one.wait_log("READY->DRAINING")
        os.kill(pid, signal.SIGTERM)
        one.wait_log("worker=0 gen=2 .*BOOTING->READY")
        os.kill(pid, signal.SIGTERM)
        assert ask(one.address)["generation"] == 2
        assert release(held) == b"released\n"
        one.wait_workers(1, gone=[pid])
    assert one.in_hands == 0


@pytest.mark.parametrize("where", ["owning", "owning_async", "signal", "loop"])
def test_a_handler_of_its_own_for_sigterm(
    server: MakeServer, kind: str, handler: str, options: dict, where: str
) -> None:
    """The handler is set in a start hook or in a request, and raises SystemExit. Neither DRAIN nor a signal from
    elsewhere cuts a request short; the handler is called after the drain, unless it was given to a loop, which has
    ended by then."""
    in_request, on_loop = where in ("signal", "loop"), where in ("loop", "owning_async")
    if (on_loop and kind != "asyncio") or (in_request and kind == "threads"):  # only the main thread can set one
        pytest.skip("not for this kind")
    script = {} if in_request else {"on_worker_start": where}
    one = server().start(handler, script=script, workers=1, drain_timeout=60, ping_interval=0.1, **options)
    for generation, tell in enumerate((lambda _: one.send(signal.SIGHUP), lambda pid: kill(pid, signal.SIGTERM)), 1):
        (pid,) = one.wait_workers(1)
        if in_request:
            assert ask(one.address, f"own {where}")["pid"] == pid
            one.wait_log("the application's handler of SIGTERM is called after the drain", generation)
        with hold(one.address) as held:
            one.wait_until(lambda pid=pid: is_asleep(pid), SWALLOWED)
            tell(pid)
            one.wait_log(rf"pid={pid} READY->DRAINING")
            assert release(held) == b"released\n"
        one.wait_workers(1, gone=[pid])
        assert f"app: SIGTERM in {pid}" in one.log or on_loop
    assert ask(one.address)["generation"] == 3
    assert "exited with code" not in one.log
    assert one.in_hands == 0


@pytest.mark.parametrize(("error", "failed"), [("KeyboardInterrupt", 0), ("GeneratorExit", 1), ("ValueError", 1)])
def test_a_handler_of_sigterm_that_raises(server: MakeServer, tmp_path: Path, error: str, failed: int) -> None:
    """KeyboardInterrupt is the word of many for an end: each worker that left had a traceback in the log."""
    (tmp_path / "app.py").write_text(f"""
import signal
def end(signum, frame): raise {error}
signal.signal(signal.SIGTERM, end)
def handler(conn, addr): conn.recv(9)
""")
    one = server().start("app:handler", cwd=tmp_path, workers=1)
    one.expect(*["the application's handler of SIGTERM raised an exception", "Traceback", error] * failed)
    assert one.stop() == 0
    assert one.log.count("the application's handler of SIGTERM raised an exception") == failed
    assert "exited with code" not in one.log


@pytest.mark.parametrize("where", ["waiting", "waiting_async"])
def test_a_stop_is_heard_in_a_start_hook(
    server: MakeServer, kind: str, handler: str, options: dict, where: str
) -> None:
    """Whatever handlers it has set."""
    if where == "waiting_async" and kind != "asyncio":
        pytest.skip("for event loops only")
    one = server().start(handler, script={"on_worker_start": where}, workers=1, drain_timeout=60, **options)
    one.send(signal.SIGHUP)
    one.expect("reload aborted")
    one.wait_log("app: waiting")
    assert one.stop() == 0
    one.wait_nobody()


OTHERS = (
    *(signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2),
    signal.SIGURG,
    signal.SIGCHLD,
    signal.SIGWINCH,
)


@pytest.mark.parametrize("signum", [signal.SIGQUIT, *OTHERS])
def test_other_signals_to_a_worker(server: MakeServer, handler: str, options: dict, signum: int) -> None:
    """SIGQUIT stops it now; the others are not for it."""
    one = server().start(f"apps:{handler}", workers=1, **options)
    before = one.workers
    os.kill(before[0], signum)
    if signum == signal.SIGQUIT:
        one.wait_workers(1, gone=before)
    assert ask(one.address)["generation"] == (2 if signum == signal.SIGQUIT else 1)


# ---- hooks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hook", ["", "_async"])
def test_hooks(server: MakeServer, kind: str, handler: str, options: dict, hook: str) -> None:
    if hook and kind != "asyncio":
        pytest.skip("for event loops only")
    script = {"on_worker_start": f"started{hook}", "on_worker_exit": f"exited{hook}"}
    one = server().start(handler, script=script, workers=2, **options)
    first = one.workers
    for slot, pid in enumerate(first):
        assert f"app: started slot={slot} gen=1 pid={pid} same=True" in one.log
    os.kill(first[0], signal.SIGTERM)  # drained: the hook runs
    one.wait_log(f"app: exited slot=0 gen=1 pid={first[0]}$")
    one.wait_workers(2, gone=first[:1])
    one.wait_ready_workers(3)
    second = one.workers
    one.wait_log(f"app: started slot=0 gen=2 pid={second[1]} same=True")
    assert ask(one.address, "exit 3") is None  # an exit of the application's own: the hook runs, too
    one.wait_log("exited with code 3")
    assert one.log.count("app: exited") == 2
    one.wait_workers(2)
    one.wait_ready_workers(4)
    third = one.workers
    kill(third[0])  # killed: it cannot run
    one.wait_workers(2, gone=third[:1])
    one.wait_ready_workers(5)
    assert one.log.count("app: exited") == 2
    assert one.stop() == 0
    assert one.log.count("app: exited") == 4


def test_hooks_run_when_a_worker_is_recycled(server: MakeServer, handler: str, options: dict) -> None:
    script = {"on_worker_start": "started", "on_worker_exit": "exited"}
    one = server().start(handler, script=script, workers=1, max_requests=2, max_requests_jitter=0, **options)
    one.wait_until(lambda: ask(one.address)["generation"] == 3, "the third generation serves")
    one.wait_log("app: exited slot=0 gen=2")
    one.wait_log("app: started slot=0 gen=3")


def test_hooks_do_not_run_in_a_forked_child(server: MakeServer, handler: str, options: dict) -> None:
    script = {"on_worker_start": "started", "on_worker_exit": "exited"}
    one = forks(server(), options).start(handler, script=script, workers=1, **options)
    for end in ("return", "exit"):
        with connect(one.address, f"fork {end}") as client:
            child = who([read_line(client)])[0]["child"]
            one.wait_until(lambda child=child: is_over(child), "it is gone")
    assert "app: exited" not in one.log


def test_an_exit_hook_that_raises(server: MakeServer, handler: str, options: dict) -> None:
    """It is logged; the worker leaves all the same and is replaced."""
    one = server()
    one.expect("^ *Traceback ", "ERROR")
    one.start(handler, script={"on_worker_exit": "failing"}, workers=1, **options)
    before = one.workers
    os.kill(before[0], signal.SIGTERM)
    one.wait_workers(1, gone=before)
    assert ask(one.address)["generation"] == 2
    assert "the hook fails, as asked" in one.log


# ---- crash loops and slow starts -------------------------------------------------------------------------------------

RETIRING = """
import pyfanout
def handler(conn, addr):
    worker = pyfanout.current_worker()
    if conn.recv(100) == b"retire\\n":
        worker.retire()
        worker.retire()
    conn.sendall(b"%d" % worker.generation)
"""


def test_a_worker_that_retires_is_replaced_without_a_gap(server: MakeServer, tmp_path: Path) -> None:
    """It has a successor before it drains, and no other worker is affected."""
    (tmp_path / "app.py").write_text(RETIRING)
    one = server().start("app:handler", cwd=tmp_path, workers=1)
    assert read_all(connect(one.address, "retire")) == b"1"
    one.wait_until(lambda: read_all(connect(one.address, "serve")) == b"2", "the second generation")
    one.wait_until(lambda: len(one.workers) == 1, "the first one has gone")
    assert read_all(connect(one.address, "serve")) == b"2"


FRAGILE = """
import os, time
import pyfanout
if os.path.exists("broken"):
    {when_broken}
def handler(conn, addr):
    if conn.recv(100) == b"break\\n":
        open("broken", "w").close()
        os._exit(9)
    conn.sendall(b"%d\\n" % pyfanout.current_worker().generation)
"""


def test_a_crash_loop_backs_off_and_heals(server: MakeServer, tmp_path: Path) -> None:
    """The others serve on; the delay grows; when the application is whole again so is the server."""
    (tmp_path / "app.py").write_text(FRAGILE.format(when_broken="os._exit(9)"))
    one = server().start("app:handler", cwd=tmp_path, workers=2)
    before = one.workers
    assert read_all(connect(one.address, "break")) == b""
    lines = one.wait_log(r"is started again in ([\d.]+) s \(death (\d+) in a row\)", 4)
    found = [re.search(r"in ([\d.]+) s \(death (\d+) in a row", line) for line in lines]
    deaths = [int(match[2]) for match in found if match]
    delays = [float(match[1]) for match in found if match]
    assert deaths[:4] == list(range(deaths[0], deaths[0] + 4))
    for death, delay in zip(deaths, delays, strict=True):
        assert 0.1 * 2 ** (death - 2) / 2 - 0.06 <= delay <= 0.1 * 2 ** (death - 2) + 0.06
    survivor = [pid for pid in one.workers if pid in before]
    assert len(survivor) == 1
    assert read_all(connect(one.address, "x")) == b"1\n"
    (tmp_path / "broken").unlink()
    one.wait_ready_workers(3)
    one.wait_workers(2)


def test_boot_timeout_of_a_replacement(server: MakeServer, tmp_path: Path) -> None:
    """One that does not become ready is killed, and tried again with back-off; the other one serves."""
    (tmp_path / "app.py").write_text(FRAGILE.format(when_broken="time.sleep(100)"))
    one = server()
    one.expect("is not ready after 0.5 s .boot_timeout.", "Python stacks at death", "^ *Fatal Python error")
    one.start("app:handler", cwd=tmp_path, workers=2, boot_timeout=0.5)
    assert read_all(connect(one.address, "break")) == b""
    one.wait_log("is not ready after 0.5 s .boot_timeout.; it is killed", 2)
    assert read_all(connect(one.address, "x")) == b"1\n"
    (tmp_path / "broken").unlink()
    one.wait_ready_workers(3)


def test_a_worker_that_dies_with_its_children_around(server: MakeServer) -> None:
    """A child that a handler forked outlives the worker; the slot is replaced all the same."""
    one = server().start("apps:act", workers=1)
    with connect(one.address, "fork stay") as client:
        child = who([read_line(client)])[0]["child"]
    before = one.workers
    kill(before[0])
    one.wait_workers(1, gone=before)
    assert ask(one.address)["generation"] == 2
    assert children_of(one.pid) == one.workers
    kill(child)
    one.wait_until(lambda: is_over(child), "it is gone")
