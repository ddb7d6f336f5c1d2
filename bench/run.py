"""What is measured: the experiments, and the one run that interleaves them.

In every round each experiment measures each of its subjects once, in an order that rotates. Where the speed of the
core decides, it does so in slices of half a second, taking turns, with all the servers up: what drifts on the
machine drifts for all. What the numbers mean and what was asked is decided in bench/report.py.
"""

from __future__ import annotations

import contextlib
import json
import math
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
Measure = Callable[["Context", tuple[str, ...], int], dict[str, Values]]

IN_FLIGHT = 64
TAIL_WORKERS = 4
SLOW_FRACTION = 0.01
TAIL_MEAN_S = WORK_S + SLOW_FRACTION * (SLOW_S - WORK_S)
HELD = 4000
SEQUENCE = 400
SLICE_S = 0.5
# Caches are cold when it is somebody else's turn, so the first answers of each slice are not timed.
SLICE_WARMUP_S = 0.1
# The first half second belongs to page faults and lazy imports of fresh workers.
WARMUP_S = 0.5
SETTLE_S = 0.5
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
    slices: int  # of SLICE_S for each subject, in conn/s and added latency
    tail_s: float
    kills: int  # per round
    idle_s: float
    each_s: float = 5.0  # one answer of `bench peers`


FULL = Scale(rounds=5, slices=4, tail_s=20.0, kills=5, idle_s=2.0)
# Shows that everything works, and orders of magnitude; its p99 is not to be quoted.
QUICK = Scale(rounds=1, slices=2, tail_s=3.0, kills=5, idle_s=1.0)


@dataclass(slots=True)
class Context:
    """What the experiments of one run share."""

    scale: Scale
    one_core: Layout
    core_each: Layout
    # Of a request in the tail workloads, calibrated once in each round with the shared listener.
    overhead_s: dict[int, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Experiment:
    name: str
    subjects: tuple[str, ...]
    measure: Measure  # its subjects in this order in this round
    expected_s: Callable[[Scale], float]  # for one subject; only the time left is reckoned with it
    singly: bool = False  # a step of the run for each subject: then it is known whose turn others disturbed


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


def alone(measure_one: Callable[[Context, str, int], Values]) -> Measure:
    """Measures one subject after the other."""

    def measure(context: Context, subjects: tuple[str, ...], round_: int) -> dict[str, Values]:
        return {subject: measure_one(context, subject, round_) for subject in subjects}

    return measure


def in_turns(
    handler: str, workers: int, layout_name: str, *, rate: float | None = None
) -> Callable[[Context, tuple[str, ...], int], dict[str, tuple[list[loadgen.Answers], procfs.Usage]]]:
    """Starts all the subjects, then asks them in slices: the answers of each, and what its master used.

    Closed loop, or open with the same seeds for all when there is a `rate`.
    """

    def measure(
        context: Context, subjects: tuple[str, ...], round_: int
    ) -> dict[str, tuple[list[loadgen.Answers], procfs.Usage]]:
        layout: Layout = getattr(context, layout_name)
        found: dict[str, list[loadgen.Answers]] = {subject: [] for subject in subjects}
        master = dict.fromkeys(subjects, procfs.Usage(0, 0, 0))
        with contextlib.ExitStack() as stack:
            servers = {
                subject: stack.enter_context(Server(subject, handler=handler, workers=workers, cpu=layout.server))
                for subject in subjects
            }
            for slice_ in range(-1, context.scale.slices):
                for subject, server in servers.items():
                    before = procfs.usage(server.pid)
                    answers = loadgen.load(
                        server.port,
                        cpu=layout.load,
                        closed=None if rate else IN_FLIGHT,
                        rate=rate,
                        warmup=SLICE_WARMUP_S,
                        duration=SLICE_S if slice_ >= 0 else WARMUP_S,
                        seed=10_000 * (round_ + 1) + slice_,
                    )
                    if slice_ >= 0:
                        found[subject].append(answers)
                        master[subject] += procfs.usage(server.pid) - before
        return {subject: (found[subject], master[subject]) for subject in subjects}

    return measure


def throughput(handler: str, layout_name: str) -> Measure:
    """Connections per second, closed loop, 2 workers; and what the master spent on them."""
    measure_slices = in_turns(handler, 2, layout_name)

    def measure(context: Context, subjects: tuple[str, ...], round_: int) -> dict[str, Values]:
        found = {}
        for subject, (slices, master) in measure_slices(context, subjects, round_).items():
            per_100k = 1e5 / sum(one["started"] for one in slices)
            found[subject] = {
                "per_s": statistics.fmean(one.per_s for one in slices),
                "master_s_per_100k": master.cpu_ns / 1e9 * per_100k,
                "master_sleeps_per_100k": master.voluntary_switches * per_100k,
                "master_preempted_per_100k": master.involuntary_switches * per_100k,
                **common(*slices),
            }
        return found

    return measure


def added_latency(handler: str, rate: float) -> Measure:
    """The median time of an answer in an open loop that is far from full."""
    measure_slices = in_turns(handler, 4, "core_each", rate=rate)

    def measure(context: Context, subjects: tuple[str, ...], round_: int) -> dict[str, Values]:
        return {
            subject: {
                "p50_us": statistics.median(one.fast_ns("p50") for one in slices) / 1e3,
                "p99_us": statistics.median(one.fast_ns("p99") for one in slices) / 1e3,
                **common(*slices),
            }
            for subject, (slices, _) in measure_slices(context, subjects, round_).items()
        }

    return measure


def tail(load_share: float) -> Measure:
    """p99 of the 1 ms requests when 1 % take 100 ms; the same arrivals for every subject of a round."""

    def measure(context: Context, subject: str, round_: int) -> Values:
        layout = context.core_each
        capacity_per_s = TAIL_WORKERS / (tail_overhead_s(context, round_) + TAIL_MEAN_S)
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
            **common(answers),
        }

    return alone(measure)


def tail_overhead_s(context: Context, round_: int) -> float:
    """What a 1 ms request takes a worker, besides its 1 ms.

    Only 1 ms requests are measured: how many slow ones fall into a short run varies by a tenth, but what they
    add is known.
    """
    if round_ not in context.overhead_s:
        layout = context.core_each
        with Server("shared", handler="blocking", workers=TAIL_WORKERS, cpu=layout.server) as server:
            answers = loadgen.load(
                server.port, cpu=layout.load, closed=3 * TAIL_WORKERS, warmup=0.3, duration=1, path="work"
            )
        context.overhead_s[round_] = TAIL_WORKERS / answers.per_s - WORK_S
    return context.overhead_s[round_]


def hold(policy: str, rate: float | None) -> Measure:
    """How evenly connections that stay are spread: the most any worker holds to the mean."""

    def measure(context: Context, subject: str, round_: int) -> Values:
        layout = context.core_each
        with Server(subject, handler="asyncio", workers=4, policy=policy, cpu=layout.server) as server:
            answers = loadgen.load(server.port, cpu=layout.load, hold=HELD, rate=rate, seed=1 + round_, timeout=30)
        return {"max_to_mean": max(answers.by_worker) / (HELD / 4), **common(answers)}

    return alone(measure)


def sequence(handler: str) -> Measure:
    """One connection after the other to idle workers: each must get exactly its share."""

    def measure(context: Context, subject: str, _round: int) -> Values:
        layout = context.core_each
        with Server(subject, handler=handler, workers=4, cpu=layout.server) as server:
            answers = loadgen.load(server.port, cpu=layout.load, closed=1, count=SEQUENCE, duration=20)
        shares = answers.by_worker + [0] * (4 - len(answers.by_worker))
        return {"off_by": max(abs(share - SEQUENCE // 4) for share in shares), **common(answers)}

    return alone(measure)


def respawn(context: Context, subject: str, _round: int) -> Values:
    """From SIGKILL of the only worker to the first answer of its replacement.

    A new server for each kill: a worker that dies again soon after its birth is held back on purpose.
    """
    took_ms: list[float] = []
    errors: dict[str, int] = {}
    for _ in range(context.scale.kills):
        with Server(subject, handler="blocking", workers=1) as server:
            old = _ask(server.port)
            begin_ns = time.monotonic_ns()
            os.kill(old, signal.SIGKILL)
            try:
                new = _ask(server.port)
            except ConnectionResetError:
                errors["reset"] = errors.get("reset", 0) + 1
                continue
            took_ms.append((time.monotonic_ns() - begin_ns) / 1e6)
            if new == old:
                raise ServerError(f"worker {old} answered after its SIGKILL")
    return {"respawn_ms": took_ms, "errors": errors}


def idle(handler: str) -> Measure:
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
            **common(answers),
        }

    return alone(measure)


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


def common(*runs: loadgen.Answers) -> Values:
    """What every sample keeps besides its numbers: errors by kind, how the load generator was, all it said."""
    errors: dict[str, int] = {}
    for one in runs:
        for kind, count in one.errors.items():
            errors[kind] = errors.get(kind, 0) + count
    return {
        "errors": errors,
        "load_busy": statistics.median(one["self"]["busy_fraction"] for one in runs),
        "late_start_p99_us": statistics.median(one["late_start_ns"]["p99"] for one in runs) / 1e3,
        "load": [dict(one) for one in runs],
    }


BOTH = ("pyfanout", "reuseport")
OURS = ("pyfanout",)


def _in_turns_s(scale: Scale) -> float:
    return scale.slices * (SLICE_S + SLICE_WARMUP_S) + WARMUP_S + 1


def _tail_s(scale: Scale) -> float:
    return scale.tail_s + WARMUP_S + 1.5


EXPERIMENTS = (
    Experiment("throughput-blocking-one-core", BOTH, throughput("blocking", "one_core"), _in_turns_s),
    Experiment("throughput-asyncio-one-core", BOTH, throughput("asyncio", "one_core"), _in_turns_s),
    Experiment("throughput-asyncio-core-each", BOTH, throughput("asyncio", "core_each"), _in_turns_s),
    Experiment("tail-50", ("pyfanout", "shared"), tail(0.50), _tail_s),
    Experiment("tail-70", ("pyfanout", "shared"), tail(0.70), _tail_s),
    Experiment("tail-85", ("pyfanout", "shared"), tail(0.85), _tail_s),
    Experiment("hold-round-robin-2000", OURS, hold("round-robin", 2000), lambda _: 4),
    Experiment("hold-least-connections-2000", OURS, hold("least-connections", 2000), lambda _: 4),
    Experiment("hold-least-connections-at-once", OURS, hold("least-connections", None), lambda _: 3),
    Experiment("sequence-blocking", OURS, sequence("blocking"), lambda _: 1),
    Experiment("sequence-asyncio", OURS, sequence("asyncio"), lambda _: 1),
    Experiment("added-blocking-500", BOTH, added_latency("blocking", 500), _in_turns_s),
    Experiment("added-blocking-5000", BOTH, added_latency("blocking", 5000), _in_turns_s),
    Experiment("added-asyncio-500", BOTH, added_latency("asyncio", 500), _in_turns_s),
    Experiment("added-asyncio-5000", BOTH, added_latency("asyncio", 5000), _in_turns_s),
    Experiment("respawn", OURS, alone(respawn), lambda scale: 0.5 * scale.kills),
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

    def did(self, samples: list[Sample], expected_s: float) -> None:
        self._step += 1
        self._done_s += expected_s
        elapsed_s = time.monotonic() - self._begin_s
        left_s = elapsed_s / self._done_s * (self._all_s - self._done_s)
        numbers = "; ".join(f"{sample.subject} {brief(sample.values)}" for sample in samples)
        print(
            f"[{self._step}/{self._steps}, {left_s / 60:.1f} min left] round {samples[0].round + 1} "
            f"{samples[0].experiment}: {numbers}",
            file=self._out,
            flush=True,
        )


def brief(values: Values) -> str:
    """The first number of a sample, and its errors."""
    if "failed" in values:
        return str(values["failed"]).splitlines()[0]
    name, value = next(iter(values.items()))
    if isinstance(value, list):
        value = statistics.median(value) if value else math.nan
    text = f"{name} {value:.5g}"
    return f"{text}, errors {values['errors']}" if values["errors"] else text


def selected(only: list[str]) -> list[Experiment]:
    """The experiments whose name begins with one of `only`; all when it is empty."""
    found = [one for one in EXPERIMENTS if not only or any(one.name.startswith(name) for name in only)]
    if not found:
        raise ServerError(f"no experiment is called {' or '.join(only)}: {', '.join(e.name for e in EXPERIMENTS)}")
    return found


def steps(experiments: list[Experiment], rounds: int) -> Iterator[tuple[int, Experiment, tuple[str, ...]]]:
    """Round by round, every experiment with its subjects in an order that rotates: in all the rounds, once round."""
    for round_ in range(rounds):
        for experiment in experiments:
            count = len(experiment.subjects)
            first = round_ * max(1, count // rounds) % count
            order = experiment.subjects[first:] + experiment.subjects[:first]
            for subjects in [(one,) for one in order] if experiment.singly else [order]:
                yield round_, experiment, subjects


def measure(context: Context, round_: int, experiment: Experiment, subjects: tuple[str, ...]) -> list[Sample]:
    """One experiment of one round; and how much CPU went to others meanwhile, who spoil the numbers."""
    begin_s, busy_s, ours_s = time.monotonic(), procfs.machine_busy_s(), used_s()
    found = experiment.measure(context, subjects, round_)
    others_s = procfs.machine_busy_s() - busy_s - (used_s() - ours_s)
    others = max(0.0, others_s / (time.monotonic() - begin_s))
    return [
        Sample(experiment.name, subject, round_, values | {"others_cpu": others}) for subject, values in found.items()
    ]


def used_s() -> float:
    """CPU seconds of the suite and of all that it started: load generators, servers, workers."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system + Server.orphans_s


def read(path: Path) -> tuple[Values, list[Sample]]:
    """The header of a run, and its samples, without a last line that a killed run did not end."""
    first, *rest = path.read_text().splitlines(keepends=True)
    return json.loads(first), [Sample(**json.loads(line)) for line in rest if line.endswith("\n")]


def _already(keep: Path, header: Values) -> list[Sample]:
    """What a run that was broken off has measured; a new one is begun where there is none. Raises ServerError if it was
    not the same."""
    if not keep.exists():
        keep.parent.mkdir(parents=True, exist_ok=True)
        keep.write_text(json.dumps(header) + "\n")
        return []
    before, samples = read(keep)
    for name in ("commit", "machine", "kernel", "python", "versions", "scale"):
        if before.get(name) != header.get(name):
            raise ServerError(f"{keep} is of another {name}: {before.get(name)}, now {header.get(name)}")
    if not keep.read_text().endswith("\n"):
        keep.write_text("".join(json.dumps(line) + "\n" for line in (before, *map(asdict, samples))))
    return samples


def run(experiments: list[Experiment], scale: Scale, keep: Path, header: Values) -> list[Sample]:
    """Measures everything, writing each sample to `keep` as it comes. A run that was broken off goes on: what is in
    `keep` is not measured again."""
    loadgen.build()
    one_core, core_each = choose_cores()
    context = Context(scale, one_core, core_each)
    samples = _already(keep, header | {"scale": asdict(scale)})
    done = {(sample.round, sample.experiment, sample.subject) for sample in samples}
    plan = [
        (round_, one, subjects)
        for round_, one, subjects in steps(experiments, scale.rounds)
        if not {(round_, one.name, subject) for subject in subjects} <= done
    ]
    progress = Progress(sum(one.expected_s(scale) * len(subjects) for _, one, subjects in plan), len(plan))
    with contextlib.closing(keep.open("a")) as out:
        for round_, experiment, subjects in plan:
            found = measure(context, round_, experiment, subjects)
            samples += found
            out.writelines(json.dumps(asdict(sample)) + "\n" for sample in found)
            out.flush()
            progress.did(found, experiment.expected_s(scale) * len(subjects))
    return samples
