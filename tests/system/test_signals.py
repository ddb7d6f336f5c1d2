"""Each signal to the master, at each time of its life: each has its effect, and none ends it without its clean-up."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import Server, ask, hold, release
from master_script import run

MakeServer = Callable[[], Server]

SLOW_TO_LOAD = """
import os, time
os.write(2, b"app: loading\\n")
while not os.path.exists("go"):
    time.sleep(0.01)
def act(conn, addr):
    pass
"""

SLOW_TO_END = """
import atexit, os, time

def rest(stage, exists=os.path.exists, write=os.write, sleep=time.sleep):
    write(2, b"app: %s\\n" % stage.encode())
    while not exists("go " + stage):
        sleep(0.01)

class Last:
    def __del__(self, rest=rest):
        rest("last")

atexit.register(rest, "atexit")
last = Last()

def act(conn, addr):
    pass
"""


# ---- while it serves -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("signum", [signal.SIGUSR1, signal.SIGUSR2])
def test_what_asks_for_nothing_that_we_have(server: MakeServer, tmp_path: Path, signum: signal.Signals) -> None:
    """One line; and the whole service may be sent it, as `systemctl kill` does."""
    pidfile = tmp_path / "pid"
    one = server().start("apps:act", workers=2, pidfile=str(pidfile))
    before = one.workers
    with hold(one.address) as held:
        os.killpg(one.pid, signum)
        one.wait_log(signum.name)
        assert release(held) == b"released\n"
    assert ask(one.address)["pid"] in before
    assert one.workers == before
    assert one.stop() == 0
    assert not pidfile.exists()


@pytest.mark.parametrize("signum", [signal.SIGALRM, signal.SIGXCPU, signal.SIGPWR, signal.SIGIO, signal.SIGRTMIN + 3])
def test_what_would_kill_it_stops_it_gracefully(server: MakeServer, tmp_path: Path, signum: int) -> None:
    pidfile = tmp_path / "pid"
    one = server().start("apps:act", workers=1, pidfile=str(pidfile))
    with hold(one.address) as held:
        one.send(signum)
        one.wait_log("graceful stop: workers have")
        assert release(held) == b"released\n"
    assert one.wait_exit() == 0
    assert not pidfile.exists()


def test_a_parent_that_has_blocked_them(server: MakeServer) -> None:
    """A process inherits the signals that its parent has blocked: it could be neither reloaded nor stopped."""
    one = server()
    one.fresh = True  # else it is the child of another process
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        one.start("apps:act", wait=False, workers=1)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    one.wait_ready()
    old = one.workers
    one.send(signal.SIGHUP)
    (worker,) = one.wait_workers(1, gone=old)
    for pid in (one.pid, worker):
        status = Path(f"/proc/{pid}/status")
        one.wait_until(lambda status=status: f"SigBlk:\t{0:016x}\n" in status.read_text(), "it blocks none")
    assert one.stop() == 0


def test_what_the_program_has_a_handler_for_is_its_own(tmp_path: Path) -> None:
    run(
        tmp_path,
        """
        heard = []
        for signum in (signal.SIGUSR1, signal.SIGALRM):
            signal.signal(signum, lambda signum, frame: heard.append(signum))
        signal.signal(signal.SIGVTALRM, signal.SIG_IGN)
        with pyfanout.Master("app:handler", workers=1, **options) as master:
            until_ready(master)
            for signum in (signal.SIGUSR1, signal.SIGALRM, signal.SIGVTALRM):
                os.kill(os.getpid(), signum)
            until(master, lambda: heard == [signal.SIGUSR1, signal.SIGALRM], "heard")
            ask(master)
        assert signal.getsignal(signal.SIGPROF) is signal.SIG_DFL
        """,
    )


def test_a_child_of_the_program_has_its_own_signals(tmp_path: Path) -> None:
    """`multiprocessing.Process.terminate` ends it, and the signal does not reach the master."""
    run(
        tmp_path,
        """
        with pyfanout.Master("app:handler", workers=1, **options) as master:
            until_ready(master)
            for signum in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
                reader, writer = os.pipe()
                child = os.fork()
                if child == 0:
                    os.write(writer, b"x")
                    signal.pause()
                    os._exit(1)
                os.read(reader, 1)
                os.kill(child, signum)
                assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signum
            for _ in range(5):
                assert master.step(0)
            assert [worker.generation for worker in master.workers] == [1]
        """,
    )


# ---- while it begins -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("signum", [signal.SIGHUP, signal.SIGUSR1, signal.SIGTERM, signal.SIGALRM])
def test_as_soon_as_its_pidfile_appears(server: MakeServer, tmp_path: Path, signum: int) -> None:
    pidfile = tmp_path / "pid"
    one = server().start("apps:act", workers=1, pidfile=str(pidfile), wait=False)
    end = time.monotonic() + 20
    while not pidfile.exists():  # without a pause: the instant is what is tested
        assert time.monotonic() < end, one.log
    one.send(signum)
    if signum in (signal.SIGHUP, signal.SIGUSR1):
        one.wait_log("reloaded" if signum == signal.SIGHUP else "SIGUSR1")
        one.wait_ready()
        one.send(signal.SIGTERM)
    assert one.wait_exit() == 0
    assert not pidfile.exists()
    assert "Traceback" not in one.log


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGALRM])
def test_a_stop_while_it_preloads(server: MakeServer, tmp_path: Path, signum: int) -> None:
    """At once, although the import goes on for ever, and swallows exceptions as many do."""
    text = SLOW_TO_LOAD.replace("    time.sleep(0.01)", "    try:\n        time.sleep(0.01)\n    except:\n        pass")
    (tmp_path / "app.py").write_text(text)
    pidfile = tmp_path / "pid"
    one = server().start("app:act", cwd=tmp_path, workers=1, preload=True, pidfile=str(pidfile), wait=False)
    one.wait_log("app: loading")
    assert one.stop(signum) == 0
    assert not pidfile.exists()
    assert "Traceback" not in one.log
    assert "listening" not in one.log


def test_other_signals_while_it_preloads(server: MakeServer, tmp_path: Path) -> None:
    """A service manager may ask for a reload as soon as it has started the process."""
    (tmp_path / "app.py").write_text(SLOW_TO_LOAD)
    one = server().start("app:act", cwd=tmp_path, workers=1, preload=True, wait=False)
    one.wait_log("app: loading")
    for signum in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGTTIN, signal.SIGTTOU):
        one.send(signum)
    (tmp_path / "go").touch()
    one.wait_ready()
    assert "reloading" not in one.log
    assert one.stop() == 0


@pytest.mark.parametrize(("own", "end"), [("None", "0"), ("lambda *_: sys.exit(7)", "7")])
def test_a_stop_while_a_program_preloads(tmp_path: Path, own: str, end: str) -> None:
    """Its own handler is called, if it has one."""
    run(
        tmp_path,
        f"""
        release("import os, signal, time; os.kill(os.getpid(), signal.SIGTERM); time.sleep(60)")
        own = {own}
        if own:
            signal.signal(signal.SIGTERM, own)
        try:
            pyfanout.serve("app:handler", preload=True, **options)
        except SystemExit as stop:
            assert own, stop
            assert stop.code == 4  # an application may exit at import: that is its failure
            sys.exit(7)
        assert False, "it has served"
        """,
        code=int(end),
    )


# ---- while it ends ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["atexit", "last"])
def test_signals_while_the_interpreter_ends(server: MakeServer, tmp_path: Path, stage: str) -> None:
    """A service may be stopped twice. The exit code stays, and the application's exit functions run."""
    (tmp_path / "app.py").write_text(SLOW_TO_END)
    one = server().start("app:act", cwd=tmp_path, workers=1, preload=True)
    one.send(signal.SIGTERM)
    if stage == "last":
        (tmp_path / "go atexit").touch()
    one.wait_log(f"app: {stage}")
    for signum in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGALRM, signal.SIGTERM):
        one.send(signum)
    (tmp_path / "go atexit").touch()
    (tmp_path / "go last").touch()
    assert one.wait_exit() == 0
    one.wait_log("app: last")


def test_a_fast_stop_of_an_exit_that_hangs(server: MakeServer, tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(SLOW_TO_END)
    one = server().start("app:act", cwd=tmp_path, workers=1, preload=True)
    one.send(signal.SIGTERM)
    one.wait_log("app: atexit")
    assert one.stop(signal.SIGINT) == 0
