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

from bench import loadgen, procfs
from bench.clients import at_once, first_answer_s, held, held_by_others
from bench.field import BY_NAME, SUBJECTS, Subject
from bench.peers import PEERS
from bench.run import Context, Experiment, Scale, Values, alone, common, tail_overhead_s
from bench.server import POLL_S, Server, ServerError

WORKERS = 4
IN_FLIGHT = 64
WARMUP_S = 0.5
RATES = {"low": 200.0, "middle": 1000.0, "high": 3000.0}
HELD = 1000
SHARES = (50, 70, 85, 95)
"""Percent of what 4 blocking workers can do, in the questions about the tail."""
SIZES = (1, 4, 16, 64)
"""Workers."""
GROWING = {
    *("pyfanout blocking", "pyfanout asyncio", "pyfanout gunicorn sync", "pyfanout gunicorn gthread"),
    "pyfanout uvicorn",
    *("SO_REUSEPORT blocking", "SO_REUSEPORT asyncio", "shared listener blocking", "shared listener asyncio"),
    *("dispatcher in Python, blocking", "dispatcher in Python, asyncio", "gunicorn sync", "gunicorn gthread"),
    *("uWSGI", "uvicorn", "Node cluster, SCHED_RR", "nginx"),
}
HOLDS = (100, 1000, 20_000)
"""Connections that stay open."""
ASKED_WHILE_HELD = 200
HOLDERS = 4
"""Processes that hold them, each within its own limit of descriptors."""
LOSS_RATE = 500.0
KILL_EVERY_S = 0.5
UNDER_WAY_S = 1.0
"""Of load, before something is done to the server: its workers have all been asked by then."""
BALLAST_MB = 250
SETTLE_S = 0.5
"""For what a server does when the last client has gone."""
REPLACED_LIMIT_S = 5.0
ASKED_AGAIN_S = 0.25
"""Some servers lose those who come just after a kill, and let them wait."""
RELOAD_S = 5.0
"""Of load: the slowest has replaced all its workers by then."""
ASKED_FOR_ALL = 64
"""At once, in which every worker is found."""
RESTART_S = 4.0
"""Of load: the slowest is back by then."""
FULL = Scale(rounds=3, slices=0, tail_s=2.0, kills=6, idle_s=0, each_s=1.0)
QUICK = Scale(rounds=1, slices=0, tail_s=1.0, kills=2, idle_s=0, each_s=0.5)


@dataclass(frozen=True, slots=True)
class Work:
    """How long requests take: what the load generator is told."""

    mean_ms: float
    knobs: dict[str, float | str]


ONE_IN_100 = Work(0.99 * 1 + 0.01 * 100, {"path": "work", "slow_fraction": 0.01})
EXPONENTIAL = Work(2, {"exponential": 2000})
BIMODAL = Work(0.9 * 1 + 0.1 * 11, {"path": "wait/1000", "slow_path": "wait/11000", "slow_fraction": 0.1})


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
    expected_s: Callable[[Scale], float]
    less_is_better: bool = True
    across: bool = False
    """All are compared; else only who speaks the same."""
    notes: str = ""
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

    def experiment(self) -> Experiment:
        subjects = tuple(each.name for each in SUBJECTS if self.of(each) and each.missing() is None)

        def measure(context: Context, name: str, round_: int) -> Values:
            try:
                with BY_NAME[name].place():
                    return self.measure(context, BY_NAME[name], round_)
            except (ServerError, OSError, subprocess.SubprocessError) as error:  # of one; the others are asked on
                print(f"{name}: {error}", file=sys.stderr)
                words = (str(error) or "no reason").splitlines()  # the rest is its log
                return {"failed": f"{type(error).__name__}: {words[0]}", "errors": {}}

        return Experiment(self.name, subjects, alone(measure), self.expected_s)


def everybody(_: Subject) -> bool:
    return True


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
        knobs = {"cpu": layout.load, "closed": IN_FLIGHT, "seed": 1 + round_}
        loadgen.load(server.port, duration=WARMUP_S, **knobs)
        before = procfs.session_cpu_ns(server.pid)
        answers = loadgen.load(server.port, duration=duration, **knobs)
        used_ns = procfs.session_cpu_ns(server.pid) - before
    return answers, used_ns / 1e3 / max(answers["answered"], 1)


def latency(rate: float) -> Callable[[Context, Subject, int], Values]:
    """Open loop: counted from the instant that the schedule gave."""

    def measure(context: Context, subject: Subject, round_: int) -> Values:
        layout = context.core_each
        with subject.start(workers=WORKERS, cpu=layout.server) as server:
            answers = loadgen.load(
                server.port,
                cpu=layout.load,
                rate=rate,
                warmup=WARMUP_S,
                duration=context.scale.each_s,
                seed=100 + round_,
            )
        return {"p50_us": answers.fast_ns("p50") / 1e3, "p99_us": answers.fast_ns("p99") / 1e3, **common(answers)}

    return measure


def tail(work: Work, shares: tuple[int, ...]) -> Callable[[Context, Subject, int], Values]:
    """The same arrivals, and the same times that they take, for everybody in a round."""

    def measure(context: Context, subject: Subject, round_: int) -> Values:
        layout = context.core_each
        capacity_per_s = WORKERS / (tail_overhead_s(context, round_) + work.mean_ms / 1e3)
        found, runs = {}, []
        with subject.start(workers=WORKERS, cpu=layout.server) as server:
            for share in shares:
                answers = loadgen.load(
                    server.port,
                    cpu=layout.load,
                    rate=share / 100 * capacity_per_s,
                    warmup=WARMUP_S,
                    duration=context.scale.tail_s,
                    seed=1000 + round_,
                    timeout=30,
                    **work.knobs,
                )
                found[f"p99_{share}_ms"] = answers.fast_ns("p99") / 1e6
                runs.append(answers)
        return {**found, **common(*runs)}

    return measure


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
    duration = WARMUP_S + KILL_EVERY_S * (count + 2)
    with subject.start(workers=WORKERS, cpu=layout.server) as server:
        with _loading(context, server, duration, "work" if subject.waits else "fast", round_) as run:
            time.sleep(WARMUP_S)
            killed = 0
            for _ in range(count):
                time.sleep(KILL_EVERY_S)
                with contextlib.suppress(OSError), held(server.port, 1) as (victim,):
                    os.kill(victim, signal.SIGKILL)
                    killed += 1
        answers = loadgen.answers(run)
        try:
            at_once(server.port, 1)
        except OSError as error:
            raise ServerError(f"nobody serves any more after {killed} kills ({answers.errors})") from error
    lost = sum(answers.errors.values())
    return {"lost_per_kill": lost / max(killed, 1), "lost": lost, "kills": killed, **common(answers)}


def reload(context: Context, subject: Subject, round_: int) -> Values:
    """Connections that got no whole answer while all workers were replaced once, by the signal that is for that."""
    layout = context.core_each
    signum = signal.SIGHUP if subject.ours else PEERS[subject.server].reload
    assert signum is not None
    with subject.start(workers=WORKERS, cpu=layout.server) as server:
        old = at_once(server.port, ASKED_FOR_ALL)
        with _loading(context, server, RELOAD_S, "fast", round_) as run:
            time.sleep(UNDER_WAY_S)
            os.kill(server.pid, signum)
        answers = loadgen.answers(run)
        if left := old & at_once(server.port, ASKED_FOR_ALL):
            raise ServerError(f"{len(left)} workers are not replaced {RELOAD_S - UNDER_WAY_S:g} s after the signal")
    return {"lost": sum(answers.errors.values()), "workers_seen": len(answers["workers"]), **common(answers)}


def stop(context: Context, subject: Subject, round_: int) -> Values:
    """A closed loop of clients while the server is told to stop: connections that were made, and got no whole answer.
    Who is refused because it no longer listens is not lost."""
    with subject.start(workers=WORKERS) as server:
        with _loading(context, server, 2, "work" if subject.waits else "fast", round_, closed=IN_FLIGHT) as run:
            time.sleep(UNDER_WAY_S)
            server.terminate()
        answers = loadgen.answers(run)
    lost = sum(count for kind, count in answers.errors.items() if kind != "refused")
    return {"lost": lost, **common(answers)}


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
    layout = context.core_each
    with subject.start(workers=WORKERS, cpu=layout.server) as server:
        with _loading(context, server, RESTART_S, "fast", round_) as run:
            time.sleep(UNDER_WAY_S)
            server.restart()
        answers = loadgen.answers(run)
    return {"lost": sum(answers.errors.values()), **common(answers)}


def recovery(context: Context, subject: Subject, _round: int) -> Values:
    """From SIGKILL of both workers at once to the first answer."""
    took_ms = []
    for _ in range(max(1, context.scale.kills // 3)):
        with subject.start(workers=2) as server:
            workers = set[int]()
            while len(workers) < 2:
                workers |= at_once(server.port, 8)
            for pid in workers:
                os.kill(pid, signal.SIGKILL)
            took_ms.append(first_answer_s(server.port, REPLACED_LIMIT_S) * 1e3)
    return {"recovery_ms": statistics.median(took_ms), "all_ms": took_ms, "errors": {}}


# ---- what it takes -------------------------------------------------------------------------------------------------


def memory(_context: Context, subject: Subject, _round: int) -> Values:
    """Of all its processes, what is theirs alone and their shares of what they share (Pss), after 1,000 connections."""
    with subject.start(workers=WORKERS, ballast_mb=BALLAST_MB) as server:
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
    """Connections opened one after the other that stay: what each takes of memory (Pss), and what answers cost then."""
    found, runs = {}, []
    with subject.start(workers=WORKERS) as server:
        loadgen.load(server.port, closed=8, count=1000, duration=20)
        for count in HOLDS:
            time.sleep(SETTLE_S)
            before = _pss_bytes(server)
            with held_by_others(server.port, count, HOLDERS):
                found[f"kb_{count}"] = (_pss_bytes(server) - before) / 1e3 / count
                cpu_ns = procfs.session_cpu_ns(server.pid)
                answers = loadgen.load(server.port, closed=1, count=ASKED_WHILE_HELD, duration=20)
                cpu_ns = procfs.session_cpu_ns(server.pid) - cpu_ns
            found[f"cpu_{count}_us"] = cpu_ns / 1e3 / ASKED_WHILE_HELD
            runs.append(answers)
    return {**found, **common(*runs)}


def _pss_bytes(server: Server) -> int:
    return sum(procfs.pss_bytes(pid) for pid in procfs.session(server.pid))


def _can_reload(subject: Subject) -> bool:
    return subject.ours or (subject.server in PEERS and PEERS[subject.server].reload is not None)


def _replaces(subject: Subject) -> bool:
    return subject.replaces


def _each_s(scale: Scale) -> float:
    return scale.each_s + WARMUP_S + 1


QUESTIONS = (
    Question(
        "throughput",
        "How many connections a second? A new one for each request, 64 in flight, 2 workers on one core.",
        "conn/s",
        "per_s",
        throughput,
        everybody,
        _each_s,
        less_is_better=False,
    ),
    Question(
        "cpu",
        "What does a connection cost? CPU time of all the server's processes, in the runs of the question before.",
        "us",
        "cpu_us",
        throughput,
        everybody,
        _each_s,
        measured_by="throughput",
    ),
    *(
        Question(
            f"latency-{name}",
            f"How long does an answer take at {rate:,.0f} connections a second? 4 workers on one core.",
            "us, median",
            "p50_us",
            latency(rate),
            everybody,
            _each_s,
        )
        for name, rate in RATES.items()
    ),
    *(
        Question(
            f"tail-{name}",
            f"Does a short request wait behind a long one? p99 of {whose} at {SHARES[1]} % of what 4 blocking workers"
            " can do, where a worker serves one or a few at once.",
            "ms, p99",
            f"p99_{SHARES[1]}_ms",
            tail(work, SHARES),
            lambda subject: subject.sleeps,
            lambda scale: len(SHARES) * (scale.tail_s + WARMUP_S + 0.3) + 1,
            points=tuple((f"{share} %", f"p99_{share}_ms") for share in SHARES),
            along="load",
            short=name == "one-in-100",
        )
        for name, work, whose in (
            ("one-in-100", ONE_IN_100, "those that take 1 ms, when 1 % take 100 ms,"),
            ("exponential", EXPONENTIAL, "all, when they take 2 ms in the mean, exponentially distributed,"),
            ("bimodal", BIMODAL, "those that take 1 ms, when 10 % take 11 ms,"),
        )
    ),
    Question(
        "tail-event-loop",
        f"And where a worker serves any number at once? p99 of those that take 1 ms, when 1 % take 100 ms, at"
        f" {SHARES[1]} % of what 4 blocking workers can do.",
        "ms, p99",
        f"p99_{SHARES[1]}_ms",
        tail(ONE_IN_100, SHARES[1:2]),
        lambda subject: subject.waits and not subject.sleeps,
        lambda scale: scale.tail_s + WARMUP_S + 2,
        short=False,
    ),
    Question(
        "balance-at-once",
        f"How even are {HELD:,} connections that come at once, and stay? What the fullest of 4 workers has, to its"
        " share.",
        "x its share",
        "max_to_mean",
        balance(None),
        lambda subject: subject.keeps,
        lambda _: 4,
        across=True,
    ),
    Question(
        "balance-steady",
        f"How even are {HELD:,} that come at 500 a second, and stay?",
        "x its share",
        "max_to_mean",
        balance(500.0),
        lambda subject: subject.keeps,
        lambda _: 6,
        across=True,
    ),
    Question(
        "balance-restart",
        f"How even are {HELD:,}, when a worker was killed after half of them?",
        "x its share",
        "max_to_mean",
        balance_after_restart,
        lambda subject: subject.keeps and subject.replaces,
        lambda _: 6,
        across=True,
    ),
    Question(
        "kill",
        f"What is lost when a worker is killed, at {LOSS_RATE:,.0f} connections a second of 1 ms each?",
        "connections a kill",
        "lost_per_kill",
        kills,
        _replaces,
        lambda scale: KILL_EVERY_S * (scale.kills + 2) + 3,
        notes="A worker that is killed cannot finish what it had begun.",
        across=True,
    ),
    Question(
        "reload",
        f"What is lost in a reload, at {LOSS_RATE:,.0f} connections a second?",
        "connections",
        "lost",
        reload,
        _can_reload,
        lambda _: RELOAD_S + 2,
        across=True,
    ),
    Question(
        "stop",
        "What is lost in a graceful stop? 64 clients in a closed loop; refused ones are not lost.",
        "connections",
        "lost",
        stop,
        everybody,
        lambda _: 5,
        across=True,
    ),
    Question(
        "restart",
        f"What is lost when the whole service is restarted, at {LOSS_RATE:,.0f} connections a second? The signal for a"
        " graceful stop, and when it has ended, the same command again; refused ones are lost, too.",
        "connections",
        "lost",
        restart,
        everybody,
        lambda _: RESTART_S + 1,
        across=True,
        short=False,
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
        lambda scale: 1.5 * max(1, scale.kills // 3),
        across=True,
    ),
    Question(
        "memory",
        f"What do 4 workers take over an application of {BALLAST_MB} MB?",
        "MB",
        "pss_mb",
        memory,
        lambda subject: subject.server != "nginx",
        lambda _: 5,
        notes="As each loads it when nothing is said: before the fork, or in every worker.",
    ),
    Question(
        "workers",
        f"How does the cost of a connection grow with the workers? CPU time on one core, {IN_FLIGHT} in flight, with"
        f" {SIZES[-1]} workers.",
        "us",
        f"cpu_{SIZES[-1]}_us",
        grow_workers,
        lambda subject: subject.name in GROWING,
        lambda scale: len(SIZES) * (scale.each_s / 2 + WARMUP_S + 2),
        points=tuple((f"{size}", f"cpu_{size}_us") for size in SIZES),
        along="workers",
        short=False,
        notes="One of each design is asked: to start 64 workers takes many a minute.",
    ),
    Question(
        "held-memory",
        f"What does a connection take that stays open? Of memory, with {HOLDS[-1]:,} held by 4 workers.",
        "kB a connection",
        f"kb_{HOLDS[-1]}",
        grow_held,
        lambda subject: subject.keeps,
        lambda _: 12,
        points=tuple((f"{count:,}", f"kb_{count}") for count in HOLDS[1:]),
        along="held",
        short=False,
    ),
    Question(
        "held-cpu",
        f"And what does a new one cost beside them? CPU time, one after the other, with {HOLDS[-1]:,} held by 4"
        " workers.",
        "us",
        f"cpu_{HOLDS[-1]}_us",
        grow_held,
        lambda subject: subject.keeps,
        lambda _: 12,
        points=tuple((f"{count:,}", f"cpu_{count}_us") for count in HOLDS),
        along="held",
        measured_by="held-memory",
        short=False,
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
