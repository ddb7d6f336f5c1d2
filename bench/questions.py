"""What `python -m bench peers` asks of everybody in the field, and how each question is measured.

A measure starts one subject, asks, and stops it; the run takes turns. What the numbers mean: bench/page.py.
"""

from __future__ import annotations

import contextlib
import os
import signal
import statistics
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from bench import loadgen, procfs
from bench.field import BY_NAME, SUBJECTS, Subject
from bench.peers import PEERS
from bench.run import Context, Experiment, Scale, Values, alone, common, tail_capacity_per_s
from bench.server import POLL_S, Server, ServerError, held

WORKERS = 4
IN_FLIGHT = 64
WARMUP_S = 0.5
RATES = {"low": 200.0, "middle": 1000.0, "high": 3000.0}
HELD = 1000
TAIL_SHARE = 0.7
LOSS_RATE = 500.0
KILL_EVERY_S = 0.5
UNDER_WAY_S = 1.0
"""Of load, before something is done to the server: its workers have all been asked by then."""
RETRY_S = 0.001
"""Between two tries of a client that is refused or reset; what recovery is measured with."""
BALLAST_MB = 250
SETTLE_S = 0.5
"""For what a server does when the last client has gone."""
REPLACED_LIMIT_S = 5.0
FULL = Scale(rounds=3, slices=0, tail_s=15.0, kills=20, idle_s=0, each_s=5.0)
QUICK = Scale(rounds=1, slices=0, tail_s=1.5, kills=3, idle_s=0, each_s=1.0)


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

    @property
    def source(self) -> str:
        return self.measured_by or self.name

    def experiment(self) -> Experiment:
        subjects = tuple(each.name for each in SUBJECTS if self.of(each) and each.missing() is None)

        def measure(context: Context, name: str, round_: int) -> Values:
            try:
                return self.measure(context, BY_NAME[name], round_)
            except (ServerError, OSError, subprocess.SubprocessError) as error:  # of one; the others are asked on
                return {"failed": f"{type(error).__name__}: {error}", "errors": {}}

        return Experiment(self.name, subjects, alone(measure), self.expected_s)


def everybody(_: Subject) -> bool:
    return True


# ---- what a connection costs ---------------------------------------------------------------------------------------


def throughput(context: Context, subject: Subject, round_: int) -> Values:
    """Closed loop on a core of its own; the CPU time is that of all processes of the server."""
    layout = context.core_each
    with subject.start(workers=2, cpu=layout.server) as server:
        knobs = {"cpu": layout.load, "closed": IN_FLIGHT, "seed": 1 + round_}
        loadgen.load(server.port, duration=WARMUP_S, **knobs)
        before = _cpu_ns(server)
        answers = loadgen.load(server.port, duration=context.scale.each_s, **knobs)
        used_ns = _cpu_ns(server) - before
    return {"per_s": answers.per_s, "cpu_us": used_ns / 1e3 / max(answers["answered"], 1), **common(answers)}


def _cpu_ns(server: Server) -> int:
    total = 0
    for pid in procfs.session(server.pid):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            total += procfs.cpu_ns(pid)
    return total


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


def tail(context: Context, subject: Subject, round_: int) -> Values:
    """The same arrivals, and the same slow ones among them, for everybody in a round."""
    layout = context.core_each
    rate = TAIL_SHARE * tail_capacity_per_s(context, round_)
    with subject.start(workers=WORKERS, cpu=layout.server) as server:
        answers = loadgen.load(
            server.port,
            cpu=layout.load,
            rate=rate,
            warmup=WARMUP_S,
            duration=context.scale.tail_s,
            path="work",
            slow_fraction=0.01,
            seed=1000 + round_,
            timeout=30,
        )
    return {"p99_ms": answers.fast_ns("p99") / 1e6, "p50_ms": answers.fast_ns("p50") / 1e6, **common(answers)}


# ---- who gets them -------------------------------------------------------------------------------------------------


def balance(rate: float | None) -> Callable[[Context, Subject, int], Values]:
    def measure(context: Context, subject: Subject, round_: int) -> Values:
        layout = context.core_each
        with subject.start(workers=WORKERS, cpu=layout.server) as server:
            answers = loadgen.load(server.port, cpu=layout.load, hold=HELD, rate=rate, seed=1 + round_, timeout=30)
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
        with contextlib.suppress(OSError), held(port, 8) as answers:
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
    lost = sum(answers.errors.values())
    return {"lost_per_kill": lost / max(killed, 1), "lost": lost, "kills": killed, **common(answers)}


def reload(context: Context, subject: Subject, round_: int) -> Values:
    """Connections that got no whole answer while all workers were replaced once, by the signal that is for that."""
    layout = context.core_each
    signum = signal.SIGHUP if subject.ours else PEERS[subject.server].reload
    assert signum is not None
    with subject.start(workers=WORKERS, cpu=layout.server) as server:
        with _loading(context, server, 2 + 2 * context.scale.each_s, "fast", round_) as run:
            time.sleep(UNDER_WAY_S)
            os.kill(server.pid, signum)
        answers = loadgen.answers(run)
    return {"lost": sum(answers.errors.values()), "workers_seen": len(answers["workers"]), **common(answers)}


def stop(context: Context, subject: Subject, round_: int) -> Values:
    """A closed loop of clients while the server is told to stop: connections that were made, and got no whole answer.
    Who is refused because it no longer listens is not lost."""
    with subject.start(workers=WORKERS) as server:
        with _loading(context, server, 2, "work" if subject.waits else "fast", round_, closed=IN_FLIGHT) as run:
            time.sleep(UNDER_WAY_S)
            os.kill(server.pid, signal.SIGTERM)
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


def recovery(context: Context, subject: Subject, _round: int) -> Values:
    """From SIGKILL of the only worker to the first answer; a client connects right after it, and again if it is
    refused or reset."""
    took_ms = []
    for _ in range(max(1, context.scale.kills // 3)):
        with subject.start(workers=1) as server:
            with held(server.port, 1) as (old,):
                pass
            begin_ns = time.monotonic_ns()
            os.kill(old, signal.SIGKILL)
            end_ns = begin_ns + int(REPLACED_LIMIT_S * 1e9)
            while time.monotonic_ns() < end_ns:
                with contextlib.suppress(OSError), held(server.port, 1):
                    break
                time.sleep(RETRY_S)
            else:
                raise ServerError(f"{subject.name}: no answer for {REPLACED_LIMIT_S:g} s after a kill")
            took_ms.append((time.monotonic_ns() - begin_ns) / 1e6)
    return {"recovery_ms": statistics.median(took_ms), "all_ms": took_ms, "errors": {}}


# ---- what it takes -------------------------------------------------------------------------------------------------


def memory(_context: Context, subject: Subject, _round: int) -> Values:
    """Of all its processes, what is theirs alone and their shares of what they share (Pss), after 1,000 connections."""
    with subject.start(workers=WORKERS, ballast_mb=BALLAST_MB) as server:
        answers = loadgen.load(server.port, closed=8, count=1000, duration=20)
        time.sleep(SETTLE_S)
        found = sum(procfs.pss_bytes(pid) for pid in procfs.session(server.pid))
    return {"pss_mb": found / 1e6, **common(answers)}


def _can_reload(subject: Subject) -> bool:
    return subject.ours or (subject.server in PEERS and PEERS[subject.server].reload is not None)


def _replaces(subject: Subject) -> bool:
    return subject.replaces


def _each_s(scale: Scale) -> float:
    return scale.each_s + WARMUP_S + 2


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
    Question(
        "tail",
        "Does a short request wait behind a long one? p99 of those that take 1 ms, when 1 % take 100 ms, at 70 % of"
        " what 4 blocking workers can do.",
        "ms, p99",
        "p99_ms",
        tail,
        lambda subject: subject.waits,
        lambda scale: scale.tail_s + WARMUP_S + 2,
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
        lambda scale: 5 + 2 * scale.each_s,
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
        "recovery",
        "How long is a service of one worker away, when that is killed?",
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
        lambda _: 8,
        notes="As each loads it when nothing is said: before the fork, or in every worker.",
    ),
)


def _is_wanted(name: str, who: list[str], quick: bool) -> bool:
    return any(name.startswith(each) for each in who) if who else BY_NAME[name].quick or not quick


def experiments(only: list[str], who: list[str], *, quick: bool) -> list[Experiment]:
    """Of the questions, and with the subjects, whose names begin with one of these; all if there are none. `quick`: of
    the subjects only some, unless some are named."""
    found = []
    for question in QUESTIONS:
        if question.measured_by or (only and not any(question.name.startswith(name) for name in only)):
            continue
        one = question.experiment()
        named = tuple(name for name in one.subjects if _is_wanted(name, who, quick))
        if named:
            found.append(replace(one, subjects=named))
    if not found:
        raise ServerError(f"nothing is called so; there are the questions {', '.join(one.name for one in QUESTIONS)}")
    return found
