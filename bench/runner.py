"""The one run of the bench. In every round each question is asked of each of its subjects, and where speed is asked of
several starts of each. They take turns, in an order that rotates: what drifts on the machine drifts for all.
What it finds is kept in a file: its first line is what was run, and each other one a sample.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

from bench import loadgen, procfs
from bench.field import BY_NAME, Subject
from bench.model import Context, Question, Sample, Scale, Values
from bench.server import Server, ServerError

STALL_S = 0.2
"""Of the server that the load generator is checked with, a fifth of the run: so a tenth of all wait for half of it or
more."""
CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


class Step(NamedTuple):
    """One start of one subject."""

    round: int
    start: int
    question: Question
    subject: Subject

    @property
    def key(self) -> tuple[int, int, str, str]:
        return self.round, self.start, self.question.name, self.subject.name


def choose_cores() -> tuple[int, int]:
    """Which serves and which asks: the last ones, for the first one serves most of a machine's interrupts."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise ServerError("the bench needs two cores: one that serves, one that asks")
    return cores[-1], cores[-2]


def check_load() -> str:
    """The load generator is checked before it is trusted: the only worker is stopped for a while; what was seen of it,
    in words. Raises ServerError if it was not: a generator that waits for an answer before it asks again would count
    one slow request instead of every client's wait."""
    loadgen.build()
    serves, asks = choose_cores()
    with Server(BY_NAME["shared listener asyncio"], workers=1, cpu=serves) as server:
        (worker,) = server.workers()
        run = loadgen.start(server.port, cpu=asks, rate=500, duration=5 * STALL_S, seed=1)
        time.sleep(1.5 * STALL_S)
        os.kill(worker, signal.SIGSTOP)
        time.sleep(STALL_S)
        os.kill(worker, signal.SIGCONT)
        answers = loadgen.answers(run)
    most_s, p90_s = answers.fast_ns("max") / 1e9, answers.fast_ns("p90") / 1e9
    said = f"a stall of {STALL_S * 1e3:.0f} ms was seen as p90 {p90_s * 1e3:.0f} ms, at most {most_s * 1e3:.0f} ms"
    if most_s < 0.9 * STALL_S or p90_s < 0.3 * STALL_S:
        raise ServerError(f"the load generator is not to be trusted: {said}")
    return said


def steps(questions: Sequence[Question], scale: Scale) -> Iterator[Step]:
    """In all the turns of a question, the order of its subjects goes once round."""
    for round_ in range(scale.rounds):
        for question in questions:
            starts = scale.starts if question.starts else 1
            subjects = question.here
            for start in range(starts):
                stride = max(1, len(subjects) // (scale.rounds * starts))
                first = (round_ * starts + start) * stride % max(1, len(subjects))
                for subject in subjects[first:] + subjects[:first]:
                    yield Step(round_, start, question, subject)


@contextlib.contextmanager
def namespace(sysctls: Mapping[str, str]) -> Iterator[None]:
    """This thread, and the processes that it starts, have a loopback of their own, with these `sysctls`
    ("net.ipv4.name": value), if there are any. Needs root; raises OSError, also for a sysctl that this kernel does not
    have."""
    if not sysctls:
        yield
        return
    with open("/proc/self/ns/net") as before:
        _call("unshare", CLONE_NEWNET)
        try:
            subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
            for name, value in sysctls.items():
                Path("/proc/sys", *name.split(".")).write_text(value)
            yield
        finally:
            _call("setns", before.fileno(), CLONE_NEWNET)


def _call(name: str, *numbers: int) -> None:
    if getattr(_libc, name)(*numbers):
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


def used_s() -> float:
    """CPU seconds of the bench and of all that it started: load generators, servers, workers."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system + Server.orphans_s


def measure(context: Context, step: Step) -> Sample:
    """Of one that cannot answer, why: the others are asked on. And how much CPU other processes had meanwhile, which
    spoils the numbers."""
    begin_s, busy_s, ours_s = time.monotonic(), procfs.machine_busy_s(), used_s()
    seed = step.round * context.scale.starts + step.start
    try:
        with namespace(dict(step.subject.sysctls)):
            values = step.question.measure(context, step.subject, seed)
    except (ServerError, OSError, subprocess.SubprocessError) as error:
        print(f"{step.subject.name}: {error}", file=sys.stderr)
        words = (str(error) or "no reason").splitlines()  # the rest is its log
        values = {"failed": f"{type(error).__name__}: {words[0]}", "errors": {}}
    others_s = procfs.machine_busy_s() - busy_s - (used_s() - ours_s)
    values["others_cpu"] = max(0.0, others_s / (time.monotonic() - begin_s))
    return Sample(step.question.name, step.subject.name, step.round, values, step.start)


def read(path: Path) -> tuple[Values, list[Sample]]:
    """The header of a run, and its samples, without a last line that a killed run did not end."""
    first, *rest = path.read_text().splitlines(keepends=True)
    return json.loads(first), [Sample(**json.loads(line)) for line in rest if line.endswith("\n")]


def resume(path: Path, header: Values) -> list[Sample]:
    """What a run that was broken off has measured; a new one is begun where there is none. Raises ServerError if it was
    not the same."""
    path.parent.mkdir(parents=True, exist_ok=True)
    before, samples = read(path) if path.exists() else (header, [])
    for name in ("commit", "machine", "kernel", "python", "versions", "scale"):
        if before.get(name) != header.get(name):
            raise ServerError(f"{path} is of another {name}: {before.get(name)}, now {header.get(name)}")
    path.write_text("".join(json.dumps(line) + "\n" for line in (before, *map(asdict, samples))))
    return samples


def run(questions: Sequence[Question], scale: Scale, keep: Path, header: Values) -> list[Sample]:
    """Measures everything, writing each sample to `keep` as it comes. A run that was broken off goes on: what is in
    `keep` is not measured again."""
    loadgen.build()
    context = Context(scale, *(choose_cores() if scale.pinned else (None, None)))
    found = resume(keep, header | {"scale": asdict(scale)})
    done = {(each.round, each.start, each.experiment, each.subject) for each in found}
    plan = [step for step in steps(questions, scale) if step.key not in done]
    begin_s = time.monotonic()
    for at, step in enumerate(plan, 1):
        found.append(measure(context, step))
        with keep.open("a") as out:
            out.write(json.dumps(asdict(found[-1])) + "\n")
        left_s = (time.monotonic() - begin_s) / at * (len(plan) - at)
        print(f"[{at}/{len(plan)}, about {left_s / 60:.1f} min left] {_brief(found[-1])}", file=sys.stderr, flush=True)
    return found


def _brief(sample: Sample) -> str:
    """Its first number, and its errors."""
    name, value = next(iter(sample.values.items()))
    number = f"{value:.5g}" if isinstance(value, float | int) else value
    errors = f", errors {sample.values['errors']}" if sample.values["errors"] else ""
    return f"round {sample.round + 1} {sample.experiment}: {sample.subject} {name} {number}{errors}"
