"""Processes that SIGKILL does not end, such as one that waits for a device or a file server that does not answer: no
stop, slot or reload waits for them for ever. Here a debugger holds them at their exit, where SIGKILL has no effect
either."""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from harness import Server, ask, connect, freeze, hold, wait_until
from master_script import run

MakeServer = Callable[[], Server]

PTRACE_SEIZE, PTRACE_CONT, PTRACE_O_TRACEEXIT = 0x4206, 7, 0x40
_ptrace = ctypes.CDLL(None, use_errno=True).ptrace
_ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
_ptrace.restype = ctypes.c_long


@contextmanager
def unkillable(pid: int) -> Iterator[None]:
    """It is held at its exit until this is over."""
    if _ptrace(PTRACE_SEIZE, pid, None, PTRACE_O_TRACEEXIT):
        pytest.skip("no process may be traced here")
    try:
        yield
    finally:

        def ends() -> bool:
            _ptrace(PTRACE_CONT, pid, None, None)  # refused until it is in its end
            return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG) is not None

        wait_until(ends, "it ends")


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_does_not_wait_for_it(server: MakeServer, tmp_path: Path, signum: int) -> None:
    """One line, the code that the docs name; port, socket file and pidfile are given back."""
    path, pidfile = tmp_path / "s", tmp_path / "pid"
    one = server()
    one.expect("cannot be killed", "does not die of SIGKILL")
    one.start("apps:act", workers=2, bind=["127.0.0.1:0", f"unix:{path}"], pidfile=str(pidfile), drain_timeout=0.2)
    address = one.address
    with hold(address):
        stuck = next(pid for pid in one.workers if ask(address)["pid"] != pid)
        freeze(stuck)
        with unkillable(stuck):
            assert one.stop(signum) == 5
            assert len([line for line in one.log.splitlines() if "does not die of SIGKILL" in line]) == 1
            assert not path.exists()
            assert not pidfile.exists()
            with pytest.raises(ConnectionRefusedError):
                connect(address)
    one.wait_nobody()


def test_its_slot_is_served_by_another(server: MakeServer) -> None:
    """A hung worker. It is reaped when it dies after all, and does not change the exit code."""
    one = server()
    one.expect("is hung", "does not die of SIGKILL")
    one.start("apps:act", workers=1, ping_interval=0.1, ping_timeout=0.3)
    stuck = one.workers[0]
    freeze(stuck)
    with unkillable(stuck):
        assert ask(one.address)["generation"] == 2
        one.wait_log(rf"pid={stuck} does not die of SIGKILL")
    one.wait_workers(1, gone=[stuck])
    assert one.stop() == 0


def test_a_dispatcher_does_not_wait_for_its_process(tmp_path: Path) -> None:
    run(
        tmp_path,
        f"""
        sys.path.insert(0, {str(Path(__file__).parents[1])!r})
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from test_unkillable import unkillable
        dispatcher = pyfanout.Dispatcher(**options)
        dispatcher.start()
        pid = dispatcher.pid
        os.kill(pid, signal.SIGSTOP)
        with unkillable(pid):
            dispatcher.close(0)
            assert dispatcher.pid is None
        """,
    )
