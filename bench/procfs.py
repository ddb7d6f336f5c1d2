"""What /proc says about processes: CPU time in ns, context switches, who is in a session."""

from __future__ import annotations

import contextlib
import os
import select
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class Usage:
    """What the threads of one process have used since they began."""

    cpu_ns: int
    voluntary_switches: int  # it went to sleep, and something woke it
    involuntary_switches: int

    def __add__(self, more: Usage) -> Usage:
        return Usage(
            self.cpu_ns + more.cpu_ns,
            self.voluntary_switches + more.voluntary_switches,
            self.involuntary_switches + more.involuntary_switches,
        )

    def __sub__(self, earlier: Usage) -> Usage:
        return Usage(
            self.cpu_ns - earlier.cpu_ns,
            self.voluntary_switches - earlier.voluntary_switches,
            self.involuntary_switches - earlier.involuntary_switches,
        )


def cpu_ns(pid: int) -> int:
    """User and system time. schedstat counts ns; utime and stime in stat only ticks of 10 ms."""
    return sum(int((task / "schedstat").read_text().split()[0]) for task in _tasks(pid))


def cpu_ns_if_alive(pid: int) -> int:
    try:
        return cpu_ns(pid)
    except (FileNotFoundError, ProcessLookupError):
        return 0


def session_cpu_ns(sid: int) -> int:
    """Of all the living processes of a session."""
    return sum(map(cpu_ns_if_alive, session(sid)))


def usage(pid: int) -> Usage:
    voluntary = involuntary = 0
    for task in _tasks(pid):
        for line in (task / "status").read_text().splitlines():
            name, _, value = line.partition(":")
            if name == "voluntary_ctxt_switches":
                voluntary += int(value)
            elif name == "nonvoluntary_ctxt_switches":
                involuntary += int(value)
    return Usage(cpu_ns(pid), voluntary, involuntary)


def exits(pid: int, limit_s: float) -> bool:
    """Wait until a process has exited; False: it has not, after so long."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([fd], [], [], max(0.0, limit_s))[0])
    finally:
        os.close(fd)


def pin(sid: int, cpu: int) -> None:
    """All the processes of a session, and what they will start, to one core."""
    while loose := [task for task in _tasks_of_session(sid) if _cpus(task) - {cpu}]:
        for task in loose:
            with contextlib.suppress(ProcessLookupError):
                os.sched_setaffinity(task, {cpu})


def _tasks_of_session(sid: int) -> list[int]:
    found = []
    for pid in session(sid):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            found += [int(task.name) for task in _tasks(pid)]
    return found


def _cpus(task: int) -> set[int]:
    try:
        return os.sched_getaffinity(task)
    except ProcessLookupError:
        return set()


def pss_bytes(pid: int) -> int:
    """What a process has in memory: its own pages, and of those that it shares its part."""
    for line in (PROC / str(pid) / "smaps_rollup").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "Pss":
            return int(value.split()[0]) * 1024
    return 0


def session(sid: int) -> list[int]:
    """The living processes of a session, zombies left out; the suite starts each server as a session."""
    found = []
    for path in PROC.iterdir():
        if not path.name.isdigit():
            continue
        try:
            # the name, in brackets, may hold anything: what follows the last bracket is fixed
            state, _parent, _group, member_of = (path / "stat").read_text().rpartition(")")[2].split()[:4]
        except (FileNotFoundError, ProcessLookupError):
            continue  # gone since the listing
        if int(member_of) == sid and state not in "ZX":
            found.append(int(path.name))
    return sorted(found)


def machine_busy_s() -> float:
    """CPU seconds that no core was idle, or lost to the host, since boot; interrupts included.

    Most kernels count an interrupt to the program that it interrupts, too. Where they do not
    (CONFIG_IRQ_TIME_ACCOUNTING), what our own packets cost looks like the work of others.
    """
    user, nice, system, _idle, _wait, irq, softirq, steal = map(int, (PROC / "stat").read_text().split(maxsplit=9)[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def cpu_model() -> str:
    for line in (PROC / "cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return "unknown cpu"


def _tasks(pid: int) -> Iterator[Path]:
    return (PROC / str(pid) / "task").iterdir()
