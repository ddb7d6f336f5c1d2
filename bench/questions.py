"""What `python -m bench peers` asks of everybody in the field, and how each question is measured.

A measure starts one subject, asks, and stops it; the run takes turns. What the numbers mean: bench/page.py.
"""

from __future__ import annotations

import contextlib
import os
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from bench import loadgen, procfs
from bench.clients import at_once, first_answer_s, held, held_by_others
from bench.field import BY_NAME, SUBJECTS, Subject
from bench.peers import PEERS
from bench.run import Context, Experiment, Scale, Values, alone, common, tail_overhead_s
from bench.server import POLL_S, Server, ServerError

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
RATES = {"low": (200.0, 3.0), "middle": (1000.0, 2.0), "high": (3000.0, 2.0)}
"""Connections a second, and for how many seconds: the fewer, the longer."""
BASE = "SO_REUSEPORT blocking"
"""Whose latency is that of the kernel and the load generator alone."""
HELD = 1000
SHARES = (50, 70, 85, 95)
"""Percent of what 4 blocking workers can do, in the questions about the tail."""
SHARE = 70
"""That which is compared."""
SIZES = (1, 4, 16, 64)
"""Workers."""
GROWING = {
    *("pyfanout blocking", "pyfanout asyncio", "pyfanout gunicorn gthread"),
    *("SO_REUSEPORT blocking", "SO_REUSEPORT asyncio", "shared listener blocking"),
    *("gunicorn gthread", "Node cluster, SCHED_RR", "nginx"),
}
"""One of each design, and nobody who starts 64 programs for a minute."""
HOLDING = {
    *("pyfanout asyncio", "pyfanout gunicorn gthread", "pyfanout uvicorn"),
    *("SO_REUSEPORT asyncio", "gunicorn gthread", "uvicorn", "granian", "Node cluster, SCHED_RR", "nginx"),
}
"""One of each protocol and language: who accepts does not matter to one that stays."""
HOLDS = (100, 1000, 20_000)
"""Connections that stay open."""
ASKED_WHILE_HELD = 1000
HOLDERS = 4
"""Processes that hold them, each within its own limit of descriptors."""
LOSS_RATE = 500.0
KILL_EVERY_S = 0.5
UNDER_WAY_S = 0.5
"""Of load, before something is done to the server: its workers have all been asked by then."""
BEYOND_S = 1.0
"""Of load, after it was done."""
UNTIL_DONE_S = 12.0
"""It must be done by then: who is slower has failed."""
BALLAST_MB = 250
SETTLE_S = 0.5
"""For what a server does when the last client has gone."""
REPLACED_LIMIT_S = 5.0
ASKED_AGAIN_S = 0.25
"""Some servers lose those who come just after a kill, and let them wait."""
ASKED_FOR_ALL = 64
"""At once, in which every worker is found."""
VARIANT = "asked only where what they differ in may matter"
START_S = 0.6
"""In the mean of all, and to warm up 4 workers; only the time left is reckoned with them."""
WARM_S = 1.0
FULL = Scale(rounds=3, slices=0, tail_s=2.0, kills=5, idle_s=0, each_s=1.5)
QUICK = Scale(rounds=1, slices=0, tail_s=1.0, kills=2, idle_s=0, each_s=0.5)


@dataclass(frozen=True, slots=True)
class Work:
    """How long requests take: what the load generator is told."""

    mean_ms: float
    knobs: dict[str, float | str]


ONE_IN_100 = Work(0.99 * 1 + 0.01 * 100, {"path": "work", "slow_fraction": 0.01})
EXPONENTIAL = Work(2, {"exponential": 2000})
BIMODAL = Work(0.9 * 1 + 0.1 * 11, {"path": "wait/1000", "slow_path": "wait/11000", "slow_fraction": 0.1})
SHAPES = {
    "one-in-100": (ONE_IN_100, SHARES, "those that take 1 ms, when 1 % take 100 ms,"),
    "exponential": (EXPONENTIAL, SHARES, "all, when they take 2 ms in the mean, exponentially distributed,"),
    "bimodal": (BIMODAL, SHARES, "those that take 1 ms, when 10 % take 11 ms,"),
}
TAIL_RUNS = {"one-in-100": (0, 4), "exponential": (4, 8), "bimodal": (8, 12)}
"""Of the load generator, from and to, of each of them."""


@dataclass(frozen=True, slots=True)
class Column:
    """A number beside that which is compared."""

    title: str
    key: str
    added_to: str = ""
    """By how much it is more than that of this subject, in the same round."""


@dataclass(frozen=True, slots=True)
class Question:
    """One page of the report."""

    name: str
    text: str
    unit: str
    key: str
    """The number that is compared, of `Sample.values`."""
    measure: Callable[[Context, Subject, int], Values]
    of: Callable[[Subject], bool]
    """Who can be asked."""
    expected_s: Callable[[Scale], float]
    less_is_better: bool = True
    across: bool = False
    """All are compared; else only who speaks the same."""
    notes: str = ""
    unasked: str = ""
    """Why the others cannot, or need not."""
    columns: tuple[Column, ...] = ()
    runs: tuple[int, int] | None = None
    """Of the load generator, those that are its own, from and to, where one experiment answers several questions."""
    measured_by: str = ""
    """The question whose samples this one reads, if not its own."""
    points: tuple[tuple[str, str], ...] = ()
    """Of a curve: what stands below each, and its number in `Sample.values`; `key` is one of them."""
    along: str = ""
    """What that is."""
    short: bool = True
    """It is in the short run, too."""

    @property
    def percentile(self) -> str:
        """Of the times that were measured from a schedule; empty: there was none."""
        return "p50" if self.name.startswith("latency") else "p99" if self.name.startswith("tail") else ""

    @property
    def source(self) -> str:
        return self.measured_by or self.name

    def asks(self, subject: Subject) -> bool:
        return self.of(subject) and subject.is_asked(self.source)

    def experiment(self) -> Experiment:
        subjects = tuple(each.name for each in SUBJECTS if self.asks(each) and each.missing() is None)

        def measure(context: Context, name: str, round_: int) -> Values:
            try:
                with BY_NAME[name].place():
                    return self.measure(context, BY_NAME[name], round_)
            except (ServerError, OSError, subprocess.SubprocessError) as error:  # of one; the others are asked on
                print(f"{name}: {error}", file=sys.stderr)
                words = (str(error) or "no reason").splitlines()  # the rest is its log
                return {"failed": f"{type(error).__name__}: {words[0]}", "errors": {}}

        return Experiment(self.name, subjects, alone(measure), self.expected_s, singly=True)


def everybody(_: Subject) -> bool:
    return True


def warm_up(context: Context, server: Server, workers: int = WORKERS) -> loadgen.Answers:
    """By answers, in a closed loop."""
    count = min(WARM_EACH * workers, WARM_MOST)
    cpu = context.core_each.load
    return loadgen.load(server.port, cpu=cpu, closed=IN_FLIGHT, count=count, duration=WARM_LIMIT_S)


# ---- what a connection costs ---------------------------------------------------------------------------------------


def throughput(context: Context, subject: Subject, round_: int) -> Values:
    """Closed loop on a core of its own."""
    answers, cpu_us = _closed_loop(context, subject, 2, context.scale.each_s, round_)
    return {"per_s": answers.per_s, "cpu_us": cpu_us, **common(answers)}


def _closed_loop(
    context: Context, subject: Subject, workers: int, duration: float, round_: int
) -> tuple[loadgen.Answers, float]:
    """The answers, and the CPU time of all processes of the server for one, in us."""
    layout = context.core_each
    with subject.start(workers=workers, cpu=layout.server) as server:
        warm_up(context, server, workers)
        before = procfs.session_cpu_ns(server.pid)
        answers = loadgen.load(server.port, cpu=layout.load, closed=IN_FLIGHT, duration=duration, seed=1 + round_)
        used_ns = procfs.session_cpu_ns(server.pid) - before
    return answers, used_ns / 1e3 / max(answers["answered"], 1)


def latency(context: Context, subject: Subject, round_: int) -> Values:
    """Open loop, rate after rate: counted from the instant that the schedule gave."""
    layout = context.core_each
    found, runs = {}, []
    with subject.start(workers=WORKERS, cpu=layout.server) as server:
        warm_up(context, server)
        for name, (rate, duration) in RATES.items():
            answers = loadgen.load(
                server.port,
                cpu=layout.load,
                rate=rate,
                warmup=STEADY_S,
                duration=duration * context.scale.each_s / FULL.each_s,
                seed=100 + round_,
            )
            found |= {f"p50_{name}_us": answers.fast_ns("p50") / 1e3, f"p99_{name}_us": answers.fast_ns("p99") / 1e3}
            runs.append(answers)
    return {**found, **common(*runs)}


def tail(shapes: dict[str, tuple[Work, tuple[int, ...]]]) -> Callable[[Context, Subject, int], Values]:
    """The same arrivals, and the same times that they take, for everybody in a round."""

    def measure(context: Context, subject: Subject, round_: int) -> Values:
        overhead_s = tail_overhead_s(context, round_)
        found, runs = {}, []
        with subject.start(workers=WORKERS, cpu=context.core_each.server) as server:
            warm_up(context, server)
            for name, (work, shares) in shapes.items():
                for share in shares:
                    rate = share / 100 * WORKERS / (overhead_s + work.mean_ms / 1e3)
                    answers = loadgen.load(server.port, **_arrivals(context, work, rate, round_))
                    found[f"p99_{name}_{share}_ms"] = answers.fast_ns("p99") / 1e6
                    runs.append(answers)
        return {**found, **common(*runs)}

    return measure


def _arrivals(context: Context, work: Work, rate: float, round_: int) -> dict[str, Any]:
    """What the load generator is told."""
    return {
        "cpu": context.core_each.load,
        "rate": rate,
        "warmup": STEADY_S,
        "duration": context.scale.tail_s,
        "seed": 1000 + round_,
        "timeout": 30,
        **work.knobs,
    }


# ---- who gets them -------------------------------------------------------------------------------------------------


def balance(rate: float | None) -> Callable[[Context, Subject, int], Values]:
    def measure(context: Context, subject: Subject, round_: int) -> Values:
        layout = context.core_each
        with subject.start(workers=WORKERS, cpu=layout.server) as server:
            answers = loadgen.load(server.port, cpu=layout.load, hold=HELD, rate=rate, seed=1 + round_, timeout=30)
        if answers.errors:
            return {"failed": f"not all could be held: {answers.errors}", "errors": answers.errors}
        shares = [0] * (WORKERS - len(answers.by_worker)) + answers.by_worker
        return {"max_to_mean": max(shares) / (HELD / WORKERS), "shares": shares, **common(answers)}

    return measure


def balance_after_restart(_context: Context, subject: Subject, _round: int) -> Values:
    """Half of them, then a worker is killed; who was with it comes again, then the other half."""
    with subject.start(workers=WORKERS) as server, held(server.port, HELD // 2) as before:
        killed = before[0]
        os.kill(killed, signal.SIGKILL)
        _until_replaced(server.port, set(before))
        kept = Counter(pid for pid in before if pid != killed)
        with held(server.port, HELD - kept.total()) as after:
            shares = kept + Counter(after)
    return {"max_to_mean": max(shares.values()) / (HELD / WORKERS), "shares": sorted(shares.values()), "errors": {}}


def _until_replaced(port: int, known: set[int]) -> None:
    end_s = time.monotonic() + REPLACED_LIMIT_S
    while time.monotonic() < end_s:
        with contextlib.suppress(OSError), held(port, 8, ASKED_AGAIN_S) as answers:
            if set(answers) - known:
                return
        time.sleep(POLL_S)
    raise ServerError(f"no other worker answers within {REPLACED_LIMIT_S:g} s of a kill")


# ---- what is lost --------------------------------------------------------------------------------------------------


def kills(context: Context, subject: Subject, round_: int) -> Values:
    """Connections that got no whole answer, for each SIGKILL under load, of the worker whose turn it is."""
    layout, count = context.core_each, context.scale.kills
    with subject.start(workers=WORKERS, cpu=layout.server) as server:
        with _loading(context, server, KILL_EVERY_S * (count + 2), _path(subject), round_) as run:
            killed = 0
            for _ in range(count):
                time.sleep(KILL_EVERY_S)
                with contextlib.suppress(OSError), held(server.port, 1, KILL_EVERY_S) as (victim,):
                    os.kill(victim, signal.SIGKILL)
                    killed += 1
        answers = loadgen.answers(run)
        try:
            at_once(server.port, 1, REPLACED_LIMIT_S)
        except OSError as error:
            raise ServerError(f"nobody serves any more after {killed} kills ({answers.errors})") from error
    lost = sum(answers.errors.values())
    return {"lost_per_kill": lost / max(killed, 1), "lost": lost, "kills": killed, **common(answers)}


def _path(subject: Subject) -> str:
    return "work" if subject.waits else "fast"


def reload(context: Context, subject: Subject, round_: int) -> Values:
    """Connections that got no whole answer while all workers were replaced once, as it is told to do that."""
    with subject.start(workers=WORKERS, cpu=context.core_each.server) as server:
        old = at_once(server.port, ASKED_FOR_ALL)
        with _until_done(context, server, "fast", round_) as run:
            begin_s = time.monotonic()
            server.reload()
            for pid in old:
                if not procfs.exits(pid, begin_s + UNTIL_DONE_S - time.monotonic()):
                    raise ServerError(f"a worker is not replaced after {UNTIL_DONE_S:g} s")
            took_s = time.monotonic() - begin_s
        answers = loadgen.answers(run)
    lost = sum(answers.errors.values())
    return {"lost": lost, "took_s": took_s, "workers_seen": len(answers["workers"]), **common(answers)}


def stop(context: Context, subject: Subject, round_: int) -> Values:
    """A closed loop of clients while the server is told to stop, and until it has: connections that were made, and got
    no whole answer. Who is refused because it no longer listens is not lost."""
    with subject.start(workers=WORKERS, cpu=context.core_each.server) as server:
        with _until_done(context, server, _path(subject), round_, closed=IN_FLIGHT) as run:
            took_s = server.stopped_s(UNTIL_DONE_S)
        answers = loadgen.answers(run)
    lost = sum(count for kind, count in answers.errors.items() if kind != "refused")
    return {"lost": lost, "took_s": took_s, **common(answers)}


@contextlib.contextmanager
def _until_done(
    context: Context, server: Server, path: str, seed: int, closed: int | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """The load generator before, beside and beyond what is done to the server meanwhile."""
    with _loading(context, server, UNDER_WAY_S + UNTIL_DONE_S + BEYOND_S, path, seed, closed) as run:
        time.sleep(UNDER_WAY_S)
        yield run
        time.sleep(BEYOND_S)
        run.terminate()


@contextlib.contextmanager
def _loading(
    context: Context, server: Server, duration: float, path: str, seed: int, closed: int | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """The load generator, beside what is done to the server meanwhile."""
    process = loadgen.start(
        server.port,
        cpu=context.core_each.load,
        rate=None if closed else LOSS_RATE,
        closed=closed,
        duration=duration,
        path=path,
        seed=seed + 1,
        timeout=10,
    )
    try:
        yield process
    except BaseException:
        process.kill()
        process.wait()
        raise


def restart(context: Context, subject: Subject, round_: int) -> Values:
    """Connections that got no answer, refused ones too, around a restart as a service manager does it."""
    with subject.start(workers=WORKERS, cpu=context.core_each.server) as server:
        with _until_done(context, server, "fast", round_) as run:
            begin_s = time.monotonic()
            server.restart()
            took_s = time.monotonic() - begin_s
            if took_s > UNTIL_DONE_S:
                raise ServerError(f"was not back after {UNTIL_DONE_S:g} s")
        answers = loadgen.answers(run)
    return {"lost": sum(answers.errors.values()), "took_s": took_s, **common(answers)}


def recovery(context: Context, subject: Subject, _round: int) -> Values:
    """From SIGKILL of both workers at once to the first answer."""
    took_ms = []
    for _ in range(_recoveries(context.scale)):
        with subject.start(workers=2) as server:
            workers = set[int]()
            while len(workers) < 2:
                workers |= at_once(server.port, 8)
            for pid in workers:
                os.kill(pid, signal.SIGKILL)
            took_ms.append(first_answer_s(server.port, REPLACED_LIMIT_S) * 1e3)
    return {"recovery_ms": statistics.median(took_ms), "all_ms": took_ms, "errors": {}}


def _recoveries(scale: Scale) -> int:
    return max(1, scale.kills // 2)


# ---- what it takes -------------------------------------------------------------------------------------------------


def memory(_context: Context, subject: Subject, _round: int) -> Values:
    """Of all its processes, what is theirs alone and their shares of what they share (Pss), after 1,000 connections."""
    with subject.start(workers=WORKERS, ballast_mb=BALLAST_MB, preload=True) as server:
        answers = loadgen.load(server.port, closed=8, count=1000, duration=20)
        time.sleep(SETTLE_S)
        found = _pss_bytes(server)
    return {"pss_mb": found / 1e6, **common(answers)}


def grow_workers(context: Context, subject: Subject, round_: int) -> Values:
    """CPU time of a connection, as in `throughput`, with few workers and with many."""
    found, runs = {}, []
    for workers in SIZES:
        answers, found[f"cpu_{workers}_us"] = _closed_loop(context, subject, workers, context.scale.each_s / 2, round_)
        runs.append(answers)
    return {**found, **common(*runs)}


def grow_held(context: Context, subject: Subject, _round: int) -> Values:
    """Connections opened one after the other that stay, with a server of their own for each number of them: what each
    takes of memory (Pss), and what answers cost then."""
    found, runs = {}, []
    for count in HOLDS:
        with subject.start(workers=WORKERS, cpu=context.core_each.server) as server:
            warm_up(context, server)
            time.sleep(SETTLE_S)
            before = _pss_bytes(server)
            with held_by_others(server.port, count, HOLDERS):
                found[f"kb_{count}"] = (_pss_bytes(server) - before) / 1e3 / count
                cpu_ns = procfs.session_cpu_ns(server.pid)
                answers = loadgen.load(
                    server.port, cpu=context.core_each.load, closed=1, count=ASKED_WHILE_HELD, duration=20
                )
                cpu_ns = procfs.session_cpu_ns(server.pid) - cpu_ns
            found[f"cpu_{count}_us"] = cpu_ns / 1e3 / max(answers["answered"], 1)
        runs.append(answers)
    return {**found, **common(*runs)}


def _pss_bytes(server: Server) -> int:
    return sum(procfs.pss_bytes(pid) for pid in procfs.session(server.pid))


def _can_reload(subject: Subject) -> bool:
    return subject.ours or (subject.server in PEERS and PEERS[subject.server].reload is not None)


def _replaces(subject: Subject) -> bool:
    return subject.replaces


def _a_while(seconds: float) -> Callable[[Scale], float]:
    return lambda _: START_S + seconds


def _throughput_s(scale: Scale) -> float:
    return START_S + WARM_S / 2 + scale.each_s


def _latency_s(scale: Scale) -> float:
    share = scale.each_s / FULL.each_s
    return START_S + WARM_S + sum(STEADY_S + duration * share for _, duration in RATES.values())


def _tail_s(points: int) -> Callable[[Scale], float]:
    return lambda scale: START_S + WARM_S + points * (scale.tail_s + STEADY_S + 0.1)


def _grow_workers_s(scale: Scale) -> float:
    return len(SIZES) * (2 * START_S + WARM_S + scale.each_s / 2)


def _grow_held_s(_scale: Scale) -> float:
    return len(HOLDS) * (START_S + WARM_S + SETTLE_S + 0.5) + 6


TOO_FEW = "a worker serves one at a time, or as many as it has threads"
HELD_UNASKED = (
    f"{TOO_FEW}; or it looks through all that it holds at each turn, so that {HOLDS[-1]:,} take minutes (waitress); or"
    " somebody of the same protocol and language is asked"
)
UNREPLACED = "does not replace a worker that dies"
QUESTIONS = (
    Question(
        "throughput",
        "How many connections a second? A new one for each request, 64 in flight, 2 workers on one core.",
        "conn/s",
        "per_s",
        throughput,
        everybody,
        _throughput_s,
        less_is_better=False,
    ),
    Question(
        "cpu",
        "What does a connection cost? CPU time of all the server's processes, in the runs of the question before.",
        "us",
        "cpu_us",
        throughput,
        everybody,
        _throughput_s,
        measured_by="throughput",
    ),
    *(
        Question(
            f"latency-{name}",
            f"How long does an answer take at {rate:,.0f} connections a second? 4 workers on one core.",
            "us, median",
            f"p50_{name}_us",
            latency,
            everybody,
            _latency_s,
            columns=(Column(f"added to {BASE}, us", f"p50_{name}_us", added_to=BASE),),
            runs=(at, at + 1),
            measured_by="" if at == 0 else f"latency-{next(iter(RATES))}",
        )
        for at, (name, (rate, _)) in enumerate(RATES.items())
    ),
    *(
        Question(
            f"tail-{name}",
            f"Does a short request wait behind a long one? p99 of {whose} at {SHARE} % of what 4 blocking workers"
            " can do, where a worker serves one or a few at once.",
            "ms, p99",
            f"p99_{name}_{SHARE}_ms",
            tail({name: (work, shares) for name, (work, shares, _) in SHAPES.items()}),
            lambda subject: subject.sleeps,
            _tail_s(sum(len(shares) for _, shares, _ in SHAPES.values())),
            points=tuple((f"{share} %", f"p99_{name}_{share}_ms") for share in shares),
            along="load",
            runs=TAIL_RUNS[name],
            measured_by="" if at == 0 else f"tail-{next(iter(SHAPES))}",
            unasked="a worker serves any number at once, which is asked below, or has nothing to wait for",
        )
        for at, (name, (_, shares, whose)) in enumerate(SHAPES.items())
    ),
    Question(
        "tail-event-loop",
        f"And where a worker serves any number at once? p99 of those that take 1 ms, when 1 % take 100 ms, at"
        f" {SHARE} % of what 4 blocking workers can do.",
        "ms, p99",
        f"p99_one-in-100_{SHARE}_ms",
        tail({"one-in-100": (ONE_IN_100, (SHARE,))}),
        lambda subject: subject.waits and not subject.sleeps,
        _tail_s(1),
        short=False,
        unasked="a worker serves one or a few at once, which is asked above, or has nothing to wait for",
    ),
    Question(
        "balance-at-once",
        f"How even are {HELD:,} connections that come at once, and stay? What the fullest of 4 workers has, to its"
        " share.",
        "x its share",
        "max_to_mean",
        balance(None),
        lambda subject: subject.keeps,
        _a_while(0.6),
        across=True,
        unasked=TOO_FEW,
    ),
    Question(
        "balance-steady",
        f"How even are {HELD:,} that come at 500 a second, and stay?",
        "x its share",
        "max_to_mean",
        balance(500.0),
        lambda subject: subject.keeps,
        _a_while(2.2),
        across=True,
        unasked=TOO_FEW,
    ),
    Question(
        "balance-restart",
        f"How even are {HELD:,}, when a worker was killed after half of them?",
        "x its share",
        "max_to_mean",
        balance_after_restart,
        lambda subject: subject.keeps and subject.replaces,
        _a_while(2),
        across=True,
        unasked=f"{TOO_FEW}, or {UNREPLACED}",
    ),
    Question(
        "kill",
        f"What is lost when a worker is killed, at {LOSS_RATE:,.0f} connections a second of 1 ms each?",
        "connections a kill",
        "lost_per_kill",
        kills,
        _replaces,
        lambda scale: START_S + KILL_EVERY_S * (scale.kills + 2),
        notes="A worker that is killed cannot finish what it had begun. nginx has nothing that takes a while.",
        across=True,
        unasked=UNREPLACED,
    ),
    Question(
        "reload",
        f"What is lost in a reload, at {LOSS_RATE:,.0f} connections a second?",
        "connections",
        "lost",
        reload,
        _can_reload,
        _a_while(UNDER_WAY_S + 1.5 + BEYOND_S),
        across=True,
        columns=(Column("all replaced after, s", "took_s"),),
        unasked="has no signal or command for it",
    ),
    Question(
        "stop",
        f"What is lost in a graceful stop? {IN_FLIGHT} clients in a closed loop until the server has exited, and"
        f" {BEYOND_S:g} s beyond; refused ones are not lost.",
        "connections",
        "lost",
        stop,
        everybody,
        _a_while(UNDER_WAY_S + 0.5 + BEYOND_S),
        across=True,
        columns=(Column("exited after, s", "took_s"),),
        notes="A client that was refused comes again after 10 ms.",
    ),
    Question(
        "restart",
        f"What is lost when the whole service is restarted, at {LOSS_RATE:,.0f} connections a second? The signal for a"
        " graceful stop, and when it has ended, the same command again; refused ones are lost, too.",
        "connections",
        "lost",
        restart,
        everybody,
        _a_while(UNDER_WAY_S + 1.5 + BEYOND_S),
        across=True,
        short=False,
        columns=(Column("serves again after, s", "took_s"),),
        notes="Nobody listens meanwhile. A service manager that holds the listener (systemd's socket units) lets them"
        " wait instead; pyfanout's `--bind fd://` takes such a one.",
    ),
    Question(
        "recovery",
        "How long is a service away, when all its workers are killed? Two of them, both at once.",
        "ms",
        "recovery_ms",
        recovery,
        _replaces,
        lambda scale: (START_S + 0.3) * _recoveries(scale),
        across=True,
        unasked=UNREPLACED,
    ),
    Question(
        "memory",
        f"What do 4 workers take over an application of {BALLAST_MB} MB?",
        "MB",
        "pss_mb",
        memory,
        lambda subject: subject.server != "nginx",
        _a_while(3),
        notes="It is loaded before the fork by all who can, and are told to if they must be. uvicorn, hypercorn,"
        " granian, Node and PM2 load it in every worker.",
        unasked="has no application",
    ),
    Question(
        "workers",
        f"How does the cost of a connection grow with the workers? CPU time on one core, {IN_FLIGHT} in flight, with"
        f" {SIZES[-1]} workers.",
        "us",
        f"cpu_{SIZES[-1]}_us",
        grow_workers,
        lambda subject: subject.name in GROWING,
        _grow_workers_s,
        points=tuple((f"{size}", f"cpu_{size}_us") for size in SIZES),
        along="workers",
        short=False,
        unasked="one of each design is, and nobody who starts 64 programs for a minute",
    ),
    Question(
        "held-memory",
        f"What does a connection take that stays open? Of memory, with {HOLDS[-1]:,} held by 4 workers.",
        "kB a connection",
        f"kb_{HOLDS[-1]}",
        grow_held,
        lambda subject: subject.name in HOLDING,
        _grow_held_s,
        points=tuple((f"{count:,}", f"kb_{count}") for count in HOLDS),
        along="held",
        short=False,
        notes="The processes' own (Pss); what the kernel takes for the sockets is not in it, and is the same for all.",
        unasked=HELD_UNASKED,
    ),
    Question(
        "held-cpu",
        f"And what does a new one cost beside them? CPU time, one after the other, with {HOLDS[-1]:,} held by 4"
        " workers.",
        "us",
        f"cpu_{HOLDS[-1]}_us",
        grow_held,
        lambda subject: subject.name in HOLDING,
        _grow_held_s,
        points=tuple((f"{count:,}", f"cpu_{count}_us") for count in HOLDS),
        along="held",
        measured_by="held-memory",
        short=False,
        unasked=HELD_UNASKED,
    ),
)


def _is_wanted(name: str, who: list[str], quick: bool) -> bool:
    return any(name.startswith(each) for each in who) if who else BY_NAME[name].quick or not quick


def experiments(only: list[str], who: list[str], *, quick: bool) -> list[Experiment]:
    """Of the questions, and with the subjects, whose names begin with one of these; all if there are none. `quick`:
    only some, unless some are named."""
    found = []
    for question in QUESTIONS:
        asked = any(question.name.startswith(name) for name in only) if only else question.short or not quick
        if question.measured_by or not asked:
            continue
        one = question.experiment()
        named = tuple(name for name in one.subjects if _is_wanted(name, who, quick))
        if named:
            found.append(replace(one, subjects=named))
    if not found:
        raise ServerError(f"nothing is called so; there are the questions {', '.join(one.name for one in QUESTIONS)}")
    return found
