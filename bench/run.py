"""What is measured: the experiments, and the one run that interleaves them.

An experiment measures one subject once and returns numbers. In every round each experiment runs each of its
subjects once, in an order that rotates, so that what drifts on the machine drifts for all. What the numbers
mean and what was asked is decided in bench/report.py.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TextIO

from bench import loadgen, procfs
from bench.server import Server, ServerError
from bench.workloads import SLOW_S, WORK_S

Values = dict[str, Any]

IN_FLIGHT = 64
TAIL_WORKERS = 4
SLOW_FRACTION = 0.01
HELD = 4000
SEQUENCE = 400
# The first half second belongs to caches, TCP slow paths and page faults of fresh workers.
WARMUP_S = 0.5
SETTLE_S = 1.0
CLIENT_LIMIT_S = 20.0


@dataclass(frozen=True, slots=True)
class Layout:
    """Which core serves and which one asks."""

    server: int
    load: int


@dataclass(frozen=True, slots=True)
class Scale:
    """How long things last, and how often."""

    rounds: int
    throughput_s: float
    tail_s: float
    added_s: float
    kills: int  # per round
    idle_s: float


FULL = Scale(rounds=5, throughput_s=3.0, tail_s=20.0, added_s=3.0, kills=5, idle_s=3.0)
# Shows that everything works, and orders of magnitude; its p99 is not to be quoted.
QUICK = Scale(rounds=1, throughput_s=1.0, tail_s=3.0, added_s=1.0, kills=5, idle_s=1.0)


@dataclass(slots=True)
class Context:
    """What the experiments of one run share."""

    scale: Scale
    one_core: Layout
    core_each: Layout
    # Full speed of the tail workload, calibrated once in each round with the shared listener.
    capacity_per_s: dict[int, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Experiment:
    name: str
    subjects: tuple[str, ...]
    measure: Callable[[Context, str, int], Values]
    expected_s: Callable[[Scale], float]  # for one subject once; only the time left is reckoned with it


@dataclass(frozen=True, slots=True)
class Sample:
    experiment: str
    subject: str
    round: int
    values: Values


def choose_cores() -> tuple[Layout, Layout]:
    """One core for all, and one each. The last cores: the first one serves most of a machine's interrupts."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise ServerError("the bench needs two cores: one that serves, one that asks")
    return Layout(cores[-1], cores[-1]), Layout(cores[-1], cores[-2])


# ---- the experiments -------------------------------------------------------------------------------------


def throughput(handler: str, layout_name: str) -> Callable[[Context, str, int], Values]:
    """Connections per second, closed loop, 2 workers; and what the master spent on them."""

    def measure(context: Context, subject: str, _round: int) -> Values:
        layout: Layout = getattr(context, layout_name)
        with Server(subject, handler=handler, workers=2, cpu=layout.server) as server:
            before_ns = procfs.cpu_ns(server.pid)
            answers = loadgen.load(
                server.port,
                cpu=layout.load,
                closed=IN_FLIGHT,
                warmup=WARMUP_S,
                duration=context.scale.throughput_s,
            )
            master_ns = procfs.cpu_ns(server.pid) - before_ns
        return {
            "per_s": answers.per_s,
            "master_s_per_100k": master_ns / 1e9 / answers["started"] * 1e5,
            **_common(answers),
        }

    return measure


def tail(load_share: float) -> Callable[[Context, str, int], Values]:
    """p99 of the 1 ms requests when 1 % take 100 ms; the same arrivals for every subject of a round."""

    def measure(context: Context, subject: str, round_: int) -> Values:
        layout = context.core_each
        capacity_per_s = _tail_capacity_per_s(context, round_)
        with Server(subject, handler="blocking", workers=TAIL_WORKERS, cpu=layout.server) as server:
            answers = loadgen.load(
                server.port,
                cpu=layout.load,
                rate=load_share * capacity_per_s,
                warmup=WARMUP_S,
                duration=context.scale.tail_s,
                path="work",
                slow_fraction=SLOW_FRACTION,
                seed=1000 + round_,
                timeout=30,
            )
        return {
            "p99_ms": answers.fast_ns("p99") / 1e6,
            "p999_ms": answers.fast_ns("p999") / 1e6,
            "p50_ms": answers.fast_ns("p50") / 1e6,
            "rate_per_s": load_share * capacity_per_s,
            **_common(answers),
        }

    return measure


def _tail_capacity_per_s(context: Context, round_: int) -> float:
    """Connections per second that the workers can do, from what a 1 ms request really takes them.

    Only 1 ms requests are measured: how many slow ones fall into a short run varies by a tenth, but what they
    add is known.
    """
    if round_ not in context.capacity_per_s:
        layout = context.core_each
        with Server("shared", handler="blocking", workers=TAIL_WORKERS, cpu=layout.server) as server:
            answers = loadgen.load(
                server.port, cpu=layout.load, closed=3 * TAIL_WORKERS, warmup=0.3, duration=1, path="work"
            )
        service_s = TAIL_WORKERS / answers.per_s + SLOW_FRACTION * (SLOW_S - WORK_S)
        context.capacity_per_s[round_] = TAIL_WORKERS / service_s
    return context.capacity_per_s[round_]


def hold(policy: str, rate: float | None) -> Callable[[Context, str, int], Values]:
    """How evenly connections that stay are spread: the most any worker holds to the mean."""

    def measure(context: Context, subject: str, round_: int) -> Values:
        layout = context.core_each
        with Server(subject, handler="asyncio", workers=4, policy=policy, cpu=layout.server) as server:
            answers = loadgen.load(server.port, cpu=layout.load, hold=HELD, rate=rate, seed=1 + round_, timeout=30)
        return {"max_to_mean": max(answers.by_worker) / (HELD / 4), **_common(answers)}

    return measure


def sequence(handler: str) -> Callable[[Context, str, int], Values]:
    """One connection after the other to idle workers: each must get exactly its share."""

    def measure(context: Context, subject: str, _round: int) -> Values:
        layout = context.core_each
        with Server(subject, handler=handler, workers=4, cpu=layout.server) as server:
            answers = loadgen.load(server.port, cpu=layout.load, closed=1, count=SEQUENCE, duration=20)
        shares = answers.by_worker + [0] * (4 - len(answers.by_worker))
        return {"off_by": max(abs(share - SEQUENCE // 4) for share in shares), **_common(answers)}

    return measure


def added_latency(handler: str, rate: float) -> Callable[[Context, str, int], Values]:
    """The median time of an answer in an open loop that is far from full."""

    def measure(context: Context, subject: str, round_: int) -> Values:
        layout = context.core_each
        with Server(subject, handler=handler, workers=4, cpu=layout.server) as server:
            answers = loadgen.load(
                server.port,
                cpu=layout.load,
                rate=rate,
                warmup=WARMUP_S,
                duration=context.scale.added_s,
                seed=2000 + round_,
            )
        return {
            "p50_us": answers.fast_ns("p50") / 1e3,
            "p99_us": answers.fast_ns("p99") / 1e3,
            **_common(answers),
        }

    return measure


def respawn(context: Context, subject: str, _round: int) -> Values:
    """From SIGKILL of the only worker to the first answer of its replacement.

    A new server for each kill: a worker that dies again soon after its birth is held back on purpose.
    """
    took_ms = []
    for _ in range(context.scale.kills):
        with Server(subject, handler="blocking", workers=1) as server:
            old = _ask(server.port)
            begin_ns = time.monotonic_ns()
            os.kill(old, signal.SIGKILL)
            new = _ask(server.port)
            took_ms.append((time.monotonic_ns() - begin_ns) / 1e6)
            if new == old:
                raise ServerError(f"worker {old} answered after its SIGKILL")
    return {"respawn_ms": took_ms, "errors": {}}


def idle(handler: str) -> Callable[[Context, str, int], Values]:
    """What an idle server uses, after it has served: CPU time and wake-ups of master and workers."""

    def measure(context: Context, subject: str, _round: int) -> Values:
        with Server(subject, handler=handler, workers=2) as server:
            answers = loadgen.load(server.port, closed=8, count=1000, duration=20)
            time.sleep(SETTLE_S)
            before = {pid: procfs.usage(pid) for pid in procfs.session(server.pid)}
            time.sleep(context.scale.idle_s)
            used = [procfs.usage(pid) - before[pid] for pid in before]
        return {
            "idle_cpu_ns": sum(one.cpu_ns for one in used),
            "idle_wakeups": sum(one.voluntary_switches + one.involuntary_switches for one in used),
            "processes": len(used),
            **_common(answers),
        }

    return measure


def _ask(port: int) -> int:
    """One request; the pid of the worker that answers."""
    with socket.create_connection(("127.0.0.1", port), CLIENT_LIMIT_S) as conn:
        conn.sendall(b"GET /fast HTTP/1.0\r\n\r\n")
        answer = b""
        while more := conn.recv(4096):
            answer += more
    try:
        return int(answer.partition(b"\r\n\r\n")[2])
    except ValueError as error:
        raise ServerError(f"not an answer: {answer!r}") from error


def _common(answers: loadgen.Answers) -> Values:
    return {
        "errors": answers.errors,
        "load_busy": answers["self"]["busy_fraction"],
        "late_start_p99_us": answers["late_start_ns"]["p99"] / 1e3,
        "load": dict(answers),
    }


BOTH = ("pyfanout", "reuseport")
OURS = ("pyfanout",)


def _throughput_s(scale: Scale) -> float:
    return scale.throughput_s + WARMUP_S + 1


def _tail_s(scale: Scale) -> float:
    return scale.tail_s + WARMUP_S + 1.5


def _added_s(scale: Scale) -> float:
    return scale.added_s + WARMUP_S + 1


EXPERIMENTS = (
    Experiment("throughput-blocking-one-core", BOTH, throughput("blocking", "one_core"), _throughput_s),
    Experiment("throughput-asyncio-one-core", BOTH, throughput("asyncio", "one_core"), _throughput_s),
    Experiment("throughput-asyncio-core-each", BOTH, throughput("asyncio", "core_each"), _throughput_s),
    Experiment("tail-50", ("pyfanout", "shared"), tail(0.50), _tail_s),
    Experiment("tail-70", ("pyfanout", "shared"), tail(0.70), _tail_s),
    Experiment("tail-85", ("pyfanout", "shared"), tail(0.85), _tail_s),
    Experiment("hold-round-robin-2000", OURS, hold("round-robin", 2000), lambda _: 4),
    Experiment("hold-least-connections-2000", OURS, hold("least-connections", 2000), lambda _: 4),
    Experiment("hold-least-connections-at-once", OURS, hold("least-connections", None), lambda _: 3),
    Experiment("sequence-blocking", OURS, sequence("blocking"), lambda _: 1),
    Experiment("sequence-asyncio", OURS, sequence("asyncio"), lambda _: 1),
    Experiment("added-blocking-500", BOTH, added_latency("blocking", 500), _added_s),
    Experiment("added-blocking-5000", BOTH, added_latency("blocking", 5000), _added_s),
    Experiment("added-asyncio-500", BOTH, added_latency("asyncio", 500), _added_s),
    Experiment("added-asyncio-5000", BOTH, added_latency("asyncio", 5000), _added_s),
    Experiment("respawn", OURS, respawn, lambda scale: 0.5 * scale.kills),
    Experiment("idle-blocking", OURS, idle("blocking"), lambda scale: scale.idle_s + SETTLE_S + 1),
    Experiment("idle-asyncio", OURS, idle("asyncio"), lambda scale: scale.idle_s + SETTLE_S + 1),
)


# ---- the run ---------------------------------------------------------------------------------------------


class Progress:
    """One line on stderr for every measurement, with the time left."""

    def __init__(self, expected_s: float, steps: int, out: TextIO = sys.stderr) -> None:
        self._all_s = expected_s
        self._done_s = 0.0
        self._steps = steps
        self._step = 0
        self._begin_s = time.monotonic()
        self._out = out

    def did(self, sample: Sample, expected_s: float) -> None:
        self._step += 1
        self._done_s += expected_s
        elapsed_s = time.monotonic() - self._begin_s
        left_s = elapsed_s / self._done_s * (self._all_s - self._done_s)
        print(
            f"[{self._step}/{self._steps}, {left_s / 60:.1f} min left] round {sample.round + 1} "
            f"{sample.experiment} {sample.subject}: {brief(sample.values)}",
            file=self._out,
            flush=True,
        )


def brief(values: Values) -> str:
    """The first number of a sample, and its errors."""
    name, value = next(iter(values.items()))
    if isinstance(value, list):
        value = statistics.median(value)
    text = f"{name} {value:.5g}"
    return f"{text}, errors {values['errors']}" if values["errors"] else text


def selected(only: list[str]) -> list[Experiment]:
    """The experiments whose name begins with one of `only`; all when it is empty."""
    found = [one for one in EXPERIMENTS if not only or any(one.name.startswith(name) for name in only)]
    if not found:
        raise ServerError(f"no experiment is called {' or '.join(only)}: {', '.join(e.name for e in EXPERIMENTS)}")
    return found


def steps(experiments: list[Experiment], rounds: int) -> Iterator[tuple[int, Experiment, str]]:
    """Round by round, every experiment, every subject; who is first rotates."""
    for round_ in range(rounds):
        for experiment in experiments:
            first = round_ % len(experiment.subjects)
            for subject in experiment.subjects[first:] + experiment.subjects[:first]:
                yield round_, experiment, subject


def measure(context: Context, round_: int, experiment: Experiment, subject: str) -> Sample:
    """One subject once; and how much CPU went to others meanwhile, who spoil the numbers."""
    begin_s, busy_s, used_s = time.monotonic(), procfs.machine_busy_s(), _used_s()
    values = experiment.measure(context, subject, round_)
    others_s = procfs.machine_busy_s() - busy_s - (_used_s() - used_s)
    values["others_cpu"] = max(0.0, others_s / (time.monotonic() - begin_s))
    return Sample(experiment.name, subject, round_, values)


def _used_s() -> float:
    """CPU seconds of the suite and of all it started and has seen end: load generators, servers, their workers."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def run(experiments: list[Experiment], scale: Scale, keep: Path, header: Values) -> list[Sample]:
    """Measures everything, writing each sample to `keep` as it comes: a broken run is not lost."""
    loadgen.build()
    one_core, core_each = choose_cores()
    context = Context(scale, one_core, core_each)
    plan = list(steps(experiments, scale.rounds))
    progress = Progress(sum(one.expected_s(scale) for _, one, _ in plan), len(plan))
    samples = []
    keep.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.closing(keep.open("w")) as out:
        out.write(json.dumps(header | {"scale": asdict(scale)}) + "\n")
        for round_, experiment, subject in plan:
            sample = measure(context, round_, experiment, subject)
            samples.append(sample)
            out.write(json.dumps(asdict(sample)) + "\n")
            out.flush()
            progress.did(sample, experiment.expected_s(scale))
    return samples
