"""What /proc says about processes: CPU time in ns, context switches, what belongs to a session."""

from __future__ import annotations

import contextlib
import os
import re
import select
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

PROC = Path("/proc")


def cpu_ns(pid: int) -> int:
    """User and system time; 0: it is gone. schedstat counts ns; utime and stime in stat only ticks of 10 ms."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return sum(int((task / "schedstat").read_text().split()[0]) for task in _tasks(pid))
    return 0


def session_cpu_ns(sid: int) -> int:
    """Of all the living processes of a session."""
    return sum(map(cpu_ns, session(sid)))


def switches(pid: int) -> int:
    """How often its threads were put to sleep, or had to wait for another to run, since they began."""
    names = ("voluntary_ctxt_switches", "nonvoluntary_ctxt_switches")
    return sum(int(field(task / "status", name)) for task in _tasks(pid) for name in names)


def used(sid: int) -> tuple[int, int, int, int]:
    """CPU time in ns and context switches, of a session, and of its first process alone."""
    return session_cpu_ns(sid), sum(map(switches, session(sid))), cpu_ns(sid), switches(sid)


def field(path: Path, wanted: str) -> str:
    """The first word of a line "name: words" in a file of /proc; "0": it has none."""
    found = re.search(rf"^{wanted}:\s*(\S+)", path.read_text(), re.MULTILINE)
    return found[1] if found else "0"


def exit_before(end_s: float, pids: Iterable[int]) -> bool:
    """Wait until all these processes have exited; False: they had not at that time of the monotonic clock."""
    with contextlib.ExitStack() as stack:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                fd = os.pidfd_open(pid)
                stack.callback(os.close, fd)
                if not select.select([fd], [], [], max(0.0, end_s - time.monotonic()))[0]:
                    return False
    return True


def pin(sid: int, cpu: int) -> None:
    """All the processes of a session, and what they will start, to one core."""
    elsewhere = True
    while elsewhere:  # one that was elsewhere may have started others meanwhile
        elsewhere = False
        for task in [int(path.name) for pid in session(sid) for path in _tasks(pid)]:
            with contextlib.suppress(ProcessLookupError):
                elsewhere |= os.sched_getaffinity(task) != {cpu}
                os.sched_setaffinity(task, {cpu})


def pss_bytes(sid: int) -> int:
    """What a session has in memory: its own pages, and of those that it shares with others its part."""
    return sum(int(field(PROC / str(pid) / "smaps_rollup", "Pss")) * 1024 for pid in session(sid))


def session(sid: int) -> list[int]:
    """The living processes of a session, zombies left out; the suite starts each server as a session."""
    found = []
    for path in PROC.glob("[0-9]*/stat"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # gone since the listing
            # the name, in brackets, may hold anything: what follows the last bracket is fixed
            state, _parent, _group, member_of = path.read_text().rpartition(")")[2].split()[:4]
            if int(member_of) == sid and state not in "ZX":
                found.append(int(path.parent.name))
    return sorted(found)


def sleeps(sid: int) -> bool:
    """Whether no thread of a session runs, or waits for a core or a disk."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # one has just ended
        return all(field(task / "status", "State") == "S" for pid in session(sid) for task in _tasks(pid))
    return False


def machine_busy_s() -> float:
    """CPU seconds that no core was idle, or lost to the host, since boot; interrupts included.

    Most kernels count an interrupt to the program that it interrupts, too. Where they do not
    (CONFIG_IRQ_TIME_ACCOUNTING), what our own packets cost looks like the work of others.
    """
    user, nice, system, _idle, _wait, irq, softirq, steal = map(int, (PROC / "stat").read_text().split(maxsplit=9)[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def cpu_model() -> str:
    found = re.search(r"^model name\s*: (.*)$", (PROC / "cpuinfo").read_text(), re.MULTILINE)
    return found[1] if found else "unknown cpu"


def _tasks(pid: int) -> Iterator[Path]:
    """None, if it is gone."""
    return PROC.glob(f"{pid}/task/*")
