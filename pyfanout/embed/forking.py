"""The children in which a ForkingMixIn server serves its connections. When their worker stops at once, they end with
it, because no other process would end them. Other processes that the application has forked are left alone."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pyfanout.embed import runner
from pyfanout.link.messages import WAKE

if TYPE_CHECKING:
    from pyfanout.worker.listener import Listener
    from pyfanout.worker.worker import WorkerProcess

CLEAN_UP_S = 0.8
"""Seconds for the `finally` clauses of their handlers. The worker has 2 between SIGQUIT and SIGKILL, or 1 if the master
gets a second INT."""

DEATH_S = 0.2
"""For the kernel, after SIGKILL."""

LOOK_S = 0.01


class Children:
    """Those of one server, in its worker."""

    def __init__(self, server: Any, worker: WorkerProcess, listener: Listener) -> None:
        self._server = server
        self._worker = worker
        self._listener = listener

    def serving(self) -> list[int]:
        """Those that have not exited, which the server still has to collect."""
        return [pid for pid in self._known() if _runs(pid)]

    def _known(self) -> list[int]:
        return list(self._server.active_children or ())

    def end(self) -> None:
        """End them, in CLEAN_UP_S and a little, and log how many connections are cut off. May be called again, and from
        any thread."""
        if self._worker.forked:  # a copy, in one of them
            return
        with self._worker.signals.unbroken():
            left = self.serving()
            cut = bool(left) or self._worker.signals.quit
            self._worker.stopped_with(self._listener.live + len(left))
            for signum, patience_s in ((signal.SIGQUIT, CLEAN_UP_S), (signal.SIGKILL, DEATH_S)):
                _tell(left, signum)
                end_s = time.monotonic() + patience_s
                while (left := [pid for pid in left if _runs(pid)]) and time.monotonic() < end_s:
                    time.sleep(LOOK_S)
                    _tell(left, WAKE)
            for pid in self._known() if cut else ():  # else the server collects them
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, os.WNOHANG)


def _tell(pids: list[int], signum: int) -> None:
    for pid in pids:
        with contextlib.suppress(OSError):  # it has exited, or has another user now
            os.kill(pid, signum)


def _runs(pid: int) -> bool:
    """Whether this child has not exited. It is not collected, so that its number goes to no other process."""
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
    except ChildProcessError:  # the application has collected it
        return False


def tracked(process_request: Callable[..., object], worker: WorkerProcess) -> Callable[..., object]:
    """Forks a child, which is in `active_children` when a stop looks there."""

    def process(request: Any, address: Any) -> None:
        with worker.signals.forking():
            process_request(request, address)

    return process


def collecting(server: Any, worker: WorkerProcess, listener: Listener) -> Callable[..., None]:
    """Collects children that have ended. At `max_children` the server waits until one has, and does not read its
    listener meanwhile; here it reads what the master says."""
    collect = server.collect_children

    def collect_children(*, blocking: bool = False) -> None:
        children = server.active_children or set()
        while len(children) >= server.max_children and not blocking:
            for pid in list(children):
                with contextlib.suppress(ChildProcessError):  # the application has collected it
                    if os.waitpid(pid, os.WNOHANG)[0] == 0:
                        continue
                children.discard(pid)
            if worker.draining:
                return
            if len(children) >= server.max_children:
                worker.is_short(True, "children")
                listener.receive(runner.LOOK_S)
        worker.is_short(False, "children")
        collect(blocking=blocking)

    return collect_children
