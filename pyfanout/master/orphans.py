"""Orphans: processes that the kernel gives to this one when their parents end, for it is PID 1, or a subreaper. Reaped
when they are dead; children that the program has forked never are, for their exit codes are somebody's.

The kernel does not say which is which. But a process that became our child while no code of the program ran was forked
by somebody else; and so was one that is older than our last look, at which it was no child of ours.
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
"""Between two looks while nothing else happens: nobody tells us of an orphan, nor of its death."""

_TICKS = os.sysconf("SC_CLK_TCK")
_MARGIN = _TICKS
"""1 s: a process has its time of birth a moment before it is its parent's child."""


class Orphans:
    """Of this process. Does nothing if it is given none. In the main thread, to which the kernel gives them."""

    def __init__(self) -> None:
        self.adopts = os.getpid() == 1 or is_subreaper()
        self._others: set[str] = set()
        """Children that are no orphans, or perhaps are none. As /proc, which may be another namespace's, names them."""
        self._orphans: dict[str, int] = {}
        """Their pids here."""
        self._looked_ticks = 0
        """When, in /proc's unit."""
        self._alone = False
        """There was one thread then: nobody can have forked, unless the program's code ran in it."""
        self._level = len(_pids("self")) if self.adopts else 0
        self.look(ours=True)

    def look(self, workers: Iterable[int] = (), *, ours: bool = False) -> None:
        """Who is new, and who is dead? `workers`: pids of ours. `ours`: code of the program has run since the last
        look, and may have forked."""
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
        """In our namespace; None: it is gone, or cannot be known."""
        pids = _pids(child)
        return int(pids[self._level - 1]) if len(pids) >= self._level > 0 else None


def _children_of(thread: str) -> list[str]:
    with open(f"/proc/self/task/{thread}/children") as file:
        return file.read().split()


def _pids(process: str) -> list[str]:
    """From the namespace of /proc to its own; empty if there is none."""
    with contextlib.suppress(OSError), open(f"/proc/{process}/status") as file:
        return next((line.split()[1:] for line in file if line.startswith("NSpid:")), [])
    return []


def _born_ticks(process: str) -> int:
    """When; the end of time if that cannot be known."""
    with contextlib.suppress(OSError, IndexError), open(f"/proc/{process}/stat", "rb") as file:
        return int(file.read().rpartition(b")")[2].split()[19])
    return 2**63
