"""What a connection costs: how many a second, how much CPU, how long an answer takes, and who waits behind whom."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bench import loadgen, procfs
from bench.field import BY_NAME, Subject
from bench.loadgen import Answers, Knob, common
from bench.model import Context, Values
from bench.server import Server, ServerError
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


@dataclass(frozen=True, slots=True)
class Work:
    """How long requests take: what the load generator is told."""

    mean_ms: float
    knobs: dict[str, Knob]


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
Rates = Mapping[str, tuple[float, float]]
Shapes = Mapping[str, Work]


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
        all_ns, master_ns, switches = _used(server)
        answers = loadgen.load(server.port, cpu=cpu, closed=IN_FLIGHT, duration=context.start_s, seed=1 + seed)
        all_then_ns, master_then_ns, switches_then = _used(server)
    count = max(answers["answered"], 1)
    return {
        "per_s": answers.per_s,
        "cpu_us": (all_then_ns - all_ns) / 1e3 / count,
        "master_s_per_100k": (master_then_ns - master_ns) / 1e4 / count,
        "master_switches_per_100k": (switches_then - switches) * 1e5 / count,
        **common(answers),
    }


def _used(server: Server) -> tuple[int, int, int]:
    return procfs.session_cpu_ns(server.pid), procfs.cpu_ns(server.pid), procfs.switches(server.pid)


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


def _overhead_s(context: Context, seed: int) -> float:
    """What a 1 ms request takes a worker, besides its 1 ms.

    Only 1 ms requests are measured: how many slow ones fall into a short run varies by a tenth, but what they
    add is known.
    """
    if seed not in context.overhead_s:
        with Server(BY_NAME["shared listener blocking"], workers=WORKERS, cpu=context.server) as server:
            knobs = {"closed": 3 * WORKERS, "warmup": 0.3, "duration": 1, "path": "work"}
            answers = loadgen.load(server.port, cpu=context.load, **knobs)
        context.overhead_s[seed] = WORKERS / answers.per_s - WORK_S
    return context.overhead_s[seed]


def kept(context: Context, subject: Subject, _seed: int) -> Values:
    """Requests per second on connections that are kept, two workers."""
    with Server(subject, workers=2, cpu=context.server) as server:
        warm_up(context, server, 2)
        loop = ["wrk", "-t1", f"-c{IN_FLIGHT}", f"-d{max(1, round(context.start_s))}s"]
        command = ["taskset", "--cpu-list", f"{context.load}", *loop, f"http://127.0.0.1:{server.port}/fast"]
        printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"Requests/sec:\s*([\d.]+)", printed)
    if found is None or "Non-2xx" in printed:
        raise ServerError(f"wrk: {printed}")
    return {"requests_per_s": float(found[1]), "errors": {}}
