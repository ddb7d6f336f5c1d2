"""What a connection costs: how many a second, how much CPU, how long an answer takes, and what waits for what;
what a server takes: memory, descriptors that stay open, and CPU when there is nothing to do."""

from __future__ import annotations

import functools
import re
import subprocess
import time
from collections.abc import Mapping, Sequence
from operator import sub
from typing import NamedTuple

from bench import loadgen, procfs
from bench.clients import held_by_others
from bench.field import BY_NAME, Subject
from bench.loadgen import Answers, Knob, common
from bench.model import Context, Values
from bench.server import SETTLE_S, Server, ServerError
from bench.workloads import WORK_S

WORKERS = 4
IN_FLIGHT = 64
WARM_EACH = 2_000
"""Answers of each worker before anything is timed: a JIT has compiled what it will by then. Told by answers, since the
same seconds are ten times as many for one as for another."""
WARM_MOST = 20_000
"""Of all workers: 64 of them would take half a minute."""
WARM_LIMIT_S = 4.0
"""The slowest have no JIT, and imported all that they need long before."""
STEADY_S = 0.2
"""Of an open loop before its requests are timed."""


Rates = Mapping[str, tuple[float, float]]


class Work(NamedTuple):
    """How long requests take: what the load generator is told."""

    mean_ms: float
    knobs: dict[str, Knob]


Shapes = Mapping[str, Work]
ONE_IN_100 = Work(0.99 * 1 + 0.01 * 100, {"path": "work", "slow_fraction": 0.01})
EXPONENTIAL = Work(2, {"exponential": 2000})
BIMODAL = Work(0.9 * 1 + 0.1 * 11, {"path": "wait/1000", "slow_path": "wait/11000", "slow_fraction": 0.1})
SHAPES = {"one-in-100": ONE_IN_100, "exponential": EXPONENTIAL, "bimodal": BIMODAL}
SHARES = (50, 70, 85, 95)
"""Percent of what 4 blocking workers can do, in the questions about the tail; 70 is compared."""
RATES = {"low": (200.0, 2.0), "middle": (1000.0, 4 / 3), "high": (3000.0, 4 / 3)}
"""Connections a second, and for how long, to a closed loop: the fewer, the longer."""
SIZES = (1, 4, 16, 64)
"""Workers."""
HOLDS = (100, 1000, 20_000)
"""Connections that stay open."""
HOLDERS = 4
"""Processes that hold connections, each within its own limit of descriptors."""


def warm_up(context: Context, server: Server, workers: int = WORKERS) -> None:
    """By answers, in a closed loop."""
    count = min(WARM_EACH * workers, WARM_MOST)
    loadgen.load(server.port, cpu=context.load, closed=IN_FLIGHT, count=count, duration=WARM_LIMIT_S)


def throughput(context: Context, subject: Subject, seed: int, *, workers: int = 2, one_core: bool = False) -> Values:
    """Connections per second, closed loop; what all processes, and the master alone, spend on one. The load generator
    may share the core, so that nothing can hide on an idle one."""
    cpu = context.server if one_core else context.load
    with Server(subject, workers=workers, cpu=context.server) as server:
        warm_up(context, server, workers)
        before = procfs.used(server.pid)
        answers = loadgen.load(server.port, cpu=cpu, closed=IN_FLIGHT, duration=context.start_s, seed=1 + seed)
        all_ns, _, master_ns, switches = map(sub, procfs.used(server.pid), before)
    count = max(answers["answered"], 1)
    return {
        "per_s": answers["answers_per_s"],
        "cpu_us": all_ns / 1e3 / count,
        "master_s_per_100k": master_ns / 1e4 / count,
        "master_switches_per_100k": switches * 1e5 / count,
        **common(answers),
    }


def grow_workers(context: Context, subject: Subject, seed: int, *, sizes: Sequence[int] = SIZES) -> Values:
    """CPU time of a connection, as in `throughput`, with few workers and with many."""
    found = {size: throughput(context, subject, seed, workers=size) for size in sizes}
    runs = [Answers(values["load"][0]) for values in found.values()]
    return {**{f"cpu_{size}_us": values["cpu_us"] for size, values in found.items()}, **common(*runs)}


def latency(context: Context, subject: Subject, seed: int, *, rates: Rates = RATES) -> Values:
    """Open loop, at each of some rates for so many times the closed loop's time: counted from the instant that the
    schedule gave."""
    found, runs = {}, []
    with Server(subject, workers=WORKERS, cpu=context.server) as server:
        warm_up(context, server)
        for name, (rate, times) in rates.items():
            knobs = {"cpu": context.load, "warmup": STEADY_S, "seed": 100 + seed}
            answers = loadgen.load(server.port, rate=rate, duration=times * context.start_s, **knobs)
            found |= {f"{at}_{name}_us": answers.fast_ns(at) / 1e3 for at in ("p50", "p99")}
            runs.append(answers)
    return {**found, **common(*runs)}


def tail(
    context: Context, subject: Subject, seed: int, *, shapes: Shapes = SHAPES, shares: Sequence[int] = SHARES
) -> Values:
    """p99 at some percents of what the workers can do; the same arrivals, and the same times that they take, for all
    in a round."""
    overhead_s = _overhead_s(context, seed)
    knobs = {"cpu": context.load, "warmup": STEADY_S, "duration": context.scale.tail_s, "timeout": 30}
    found, runs = {}, []
    with Server(subject, workers=WORKERS, cpu=context.server) as server:
        warm_up(context, server)
        for name, work in shapes.items():
            for share in shares:
                rate = share / 100 * WORKERS / (overhead_s + work.mean_ms / 1e3)
                runs.append(loadgen.load(server.port, rate=rate, seed=1000 + seed, **knobs, **work.knobs))
                found[f"p99_{name}_{share}_ms"] = runs[-1].fast_ns("p99") / 1e6
    return {**found, **common(*runs)}


@functools.cache
def _overhead_s(context: Context, _seed: int) -> float:
    """What a 1 ms request takes a worker, besides its 1 ms; once a round, with the shared listener. Only
    1 ms requests are measured: how many slow ones fall into a short run varies by a tenth, but what they add is
    known."""
    with Server(BY_NAME["shared listener blocking"], workers=WORKERS, cpu=context.server) as server:
        knobs = {"closed": 3 * WORKERS, "warmup": 0.3, "duration": 1, "path": "work"}
        return WORKERS / loadgen.load(server.port, cpu=context.load, **knobs)["answers_per_s"] - WORK_S


def kept(context: Context, subject: Subject, _seed: int) -> Values:
    """Requests per second on connections that are kept, two workers."""
    with Server(subject, workers=2, cpu=context.server) as server:
        warm_up(context, server, 2)
        wrk = f"wrk -t1 -c{IN_FLIGHT} -d{max(1, round(context.start_s))}s http://127.0.0.1:{server.port}/fast"
        command = ["taskset", "--cpu-list", f"{context.load}", *wrk.split()]
        printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"Requests/sec:\s*([\d.]+)", printed)
    if found is None or "Non-2xx" in printed:
        raise ServerError(f"wrk: {printed}")
    return {"requests_per_s": float(found[1]), "errors": {}}


def memory(_context: Context, subject: Subject, _seed: int, *, ballast_mb: int = 250) -> Values:
    """Of all its processes, what is theirs alone and their shares of what they share (Pss), after 1,000 connections,
    over an application of that size, loaded before the fork if it can."""
    with Server(subject, workers=WORKERS, ballast_mb=ballast_mb, options=subject.preload) as server:
        answers = loadgen.load(server.port, closed=8, count=1000, duration=20)
        time.sleep(SETTLE_S)
        return {"pss_mb": procfs.pss_bytes(server.pid) / 1e6, **common(answers)}


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
                cpu_ns = procfs.session_cpu_ns(server.pid)
                runs.append(loadgen.load(server.port, cpu=context.load, closed=1, count=1000, duration=20))
                cpu_ns = procfs.session_cpu_ns(server.pid) - cpu_ns
        found[f"cpu_{count}_us"] = cpu_ns / 1e3 / max(runs[-1]["answered"], 1)
    return {**found, **common(*runs)}


def idle(context: Context, subject: Subject, _seed: int) -> Values:
    """What an idle server uses, after it has served: CPU time and wake-ups of master and workers."""
    with Server(subject, workers=2) as server:
        answers = loadgen.load(server.port, closed=8, count=1000, duration=20)
        time.sleep(SETTLE_S)
        before = procfs.used(server.pid)
        time.sleep(context.scale.idle_s)
        cpu_ns, wakeups, _, _ = map(sub, procfs.used(server.pid), before)
    return {"idle_cpu_ns": cpu_ns, "idle_wakeups": wakeups, **common(answers)}
