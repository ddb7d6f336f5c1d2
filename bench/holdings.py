"""What a server takes: memory, descriptors that stay open, and CPU when there is nothing to do."""

from __future__ import annotations

import time
from collections.abc import Sequence

from bench import loadgen, procfs
from bench.clients import held_by_others
from bench.field import Subject
from bench.loadgen import common
from bench.model import Context, Values
from bench.server import Server
from bench.share import SETTLE_S
from bench.speed import WORKERS, warm_up

ASKED_WHILE_HELD = 1000
HOLDS = (100, 1000, 20_000)
"""Connections that stay open."""
HOLDERS = 4
"""Processes that hold connections, each within its own limit of descriptors."""


def memory(_context: Context, subject: Subject, _seed: int, *, ballast_mb: int = 250) -> Values:
    """Of all its processes, what is theirs alone and their shares of what they share (Pss), after 1,000 connections,
    over an application of that size, loaded before the fork if it can."""
    with Server(subject, workers=WORKERS, ballast_mb=ballast_mb, options=subject.preload) as server:
        answers = loadgen.load(server.port, closed=8, count=1000, duration=20)
        time.sleep(SETTLE_S)
        found = procfs.pss_bytes(server.pid)
    return {"pss_mb": found / 1e6, **common(answers)}


def grow_held(context: Context, subject: Subject, _seed: int, *, counts: Sequence[int] = HOLDS) -> Values:
    """Connections opened one after the other that stay, with a server of their own for each number of them: what each
    takes of memory (Pss), and what answers cost then."""
    found, runs = {}, []
    for count in counts:
        with Server(subject, workers=WORKERS, cpu=context.server) as server:
            warm_up(context, server)
            time.sleep(SETTLE_S)
            before = procfs.pss_bytes(server.pid)
            with held_by_others(server.port, count, HOLDERS):
                found[f"kb_{count}"] = (procfs.pss_bytes(server.pid) - before) / 1e3 / count
                found[f"cpu_{count}_us"], answers = _cost_us(context, server)
        runs.append(answers)
    return {**found, **common(*runs)}


def _cost_us(context: Context, server: Server) -> tuple[float, loadgen.Answers]:
    """CPU time of an answer, one after the other."""
    cpu_ns = procfs.session_cpu_ns(server.pid)
    answers = loadgen.load(server.port, cpu=context.load, closed=1, count=ASKED_WHILE_HELD, duration=20)
    return (procfs.session_cpu_ns(server.pid) - cpu_ns) / 1e3 / max(answers["answered"], 1), answers


def idle(context: Context, subject: Subject, _seed: int) -> Values:
    """What an idle server uses, after it has served: CPU time and wake-ups of master and workers."""
    with Server(subject, workers=2) as server:
        answers = loadgen.load(server.port, closed=8, count=1000, duration=20)
        time.sleep(SETTLE_S)
        cpu_ns, wakeups = _used(server)
        time.sleep(context.scale.idle_s)
        cpu_then_ns, wakeups_then = _used(server)
    return {"idle_cpu_ns": cpu_then_ns - cpu_ns, "idle_wakeups": wakeups_then - wakeups, **common(answers)}


def _used(server: Server) -> tuple[int, int]:
    return procfs.session_cpu_ns(server.pid), sum(map(procfs.switches, procfs.session(server.pid)))
