"""Orphans: processes that the kernel gives to this one when their parents end, because it is PID 1 or a subreaper. They
are reaped when they are dead. Children that the program has forked never are: the program needs their exit codes.

The kernel does not say which is which. But a process that became a child while no code of the program ran was forked by
another process; so was one that is older than the last look, at which it was no child.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Iterable

from pyfanout.core import is_subreaper

log = logging.getLogger("pyfanout.master")

LOOK_NS = 1_000_000_000
"""Between two looks while nothing else happens: no event reports an orphan or its death."""

_TICKS = os.sysconf("SC_CLK_TCK")
_MARGIN = _TICKS
"""1 s: a process has its start time a moment before it is its parent's child."""


class Orphans:
    """The orphans of this process. Does nothing if the kernel gives it none. In the main thread, to which the kernel
    gives them."""

    def __init__(self) -> None:
        self.adopts = os.getpid() == 1 or is_subreaper()
        self._others: set[str] = set()
        """Children that are no orphans, or perhaps are none, as /proc names them, which may be that of another
        namespace."""
        self._orphans: dict[str, int] = {}
        """Their pids in this namespace."""
        self._looked_ticks = 0
        """When the last look was, in the unit of /proc."""
        self._alone = False
        """The process had one thread then: only the program's code in that thread can have forked since."""
        self._level = len(_pids("self")) if self.adopts else 0
        self.look(ours=True)

    def look(self, workers: Iterable[int] = (), *, ours: bool = False) -> None:
        """Find new children, and reap dead orphans. `workers`: pids of the workers. `ours`: code of the program has run
        since the last look, and may have forked."""
        if not self.adopts:
            return
        try:
            threads = os.listdir("/proc/self/task")
            children = {child for thread in threads for child in _children_of(thread)}
        except OSError:  # no /proc, a thread that has ended meanwhile, or no descriptor: the next look will do
            self._alone = False
            return
        new = children - self._others - self._orphans.keys()
        known = set(workers) if new else set()
        for child in new:
            pid = self._pid_of(child)
            foreign = (self._alone and not ours) or _born_ticks(child) < self._looked_ticks - _MARGIN
            if pid is not None and pid not in known and foreign:
                self._orphans[child] = pid
            else:
                self._others.add(child)
        self._others &= children
        self._looked_ticks = int(time.clock_gettime(time.CLOCK_BOOTTIME) * _TICKS)
        self._alone = len(threads) == 1
        self._reap()

    def _reap(self) -> None:
        for child, pid in list(self._orphans.items()):
            try:
                dead = os.waitpid(pid, os.WNOHANG)[0] == pid
            except ChildProcessError:  # the program has reaped it
                dead = True
            if dead:
                log.debug("orphan pid=%d has exited", pid)
                del self._orphans[child]

    def _pid_of(self, child: str) -> int | None:
        """Its pid in this namespace; None: it has exited, or cannot be known."""
        pids = _pids(child)
        return int(pids[self._level - 1]) if len(pids) >= self._level > 0 else None


def _children_of(thread: str) -> list[str]:
    with open(f"/proc/self/task/{thread}/children") as file:
        return file.read().split()


def _pids(process: str) -> list[str]:
    """Its pids, from the namespace of /proc to its own; empty if there are none."""
    with contextlib.suppress(OSError), open(f"/proc/{process}/status") as file:
        return next((line.split()[1:] for line in file if line.startswith("NSpid:")), [])
    return []


def _born_ticks(process: str) -> int:
    """Its start time; the largest number if that cannot be known."""
    with contextlib.suppress(OSError, IndexError), open(f"/proc/{process}/stat", "rb") as file:
        return int(file.read().rpartition(b")")[2].split()[19])
    return 2**63
