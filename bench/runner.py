"""The one run of the bench. In every round each question is asked of each of its subjects, and where speed is asked of
several starts of each. They take turns, in an order that rotates: what drifts on the machine drifts for all.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from bench import loadgen, netns, procfs, samples
from bench.field import Subject
from bench.model import Context, Question, Sample, Scale, Values
from bench.server import Server, ServerError


@dataclass(frozen=True, slots=True)
class Step:
    """One start of one subject."""

    round: int
    start: int
    question: Question
    subject: Subject


def choose_cores() -> tuple[int, int]:
    """Which serves and which asks: the last ones, for the first one serves most of a machine's interrupts."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise ServerError("the bench needs two cores: one that serves, one that asks")
    return cores[-1], cores[-2]


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


def used_s() -> float:
    """CPU seconds of the bench and of all that it started: load generators, servers, workers."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system + Server.orphans_s


def measure(context: Context, step: Step) -> Sample:
    """Of one that cannot answer, why: the others are asked on. And how much CPU went to others meanwhile, who spoil the
    numbers."""
    begin_s, busy_s, ours_s = time.monotonic(), procfs.machine_busy_s(), used_s()
    seed = step.round * context.scale.starts + step.start
    try:
        with netns.namespace(dict(step.subject.sysctls)):
            values = step.question.measure(context, step.subject, seed)
    except (ServerError, OSError, subprocess.SubprocessError) as error:
        print(f"{step.subject.name}: {error}", file=sys.stderr)
        words = (str(error) or "no reason").splitlines()  # the rest is its log
        values = {"failed": f"{type(error).__name__}: {words[0]}", "errors": {}}
    others_s = procfs.machine_busy_s() - busy_s - (used_s() - ours_s)
    values["others_cpu"] = max(0.0, others_s / (time.monotonic() - begin_s))
    return Sample(step.question.name, step.subject.name, step.round, values, step.start)


def run(questions: Sequence[Question], scale: Scale, keep: Path, header: Values) -> list[Sample]:
    """Measures everything, writing each sample to `keep` as it comes. A run that was broken off goes on: what is in
    `keep` is not measured again."""
    loadgen.build()
    context = Context(scale, *(choose_cores() if scale.pinned else (None, None)))
    found = samples.resume(keep, header | {"scale": asdict(scale)})
    done = {(each.round, each.start, each.experiment, each.subject) for each in found}
    plan = [
        step
        for step in steps(questions, scale)
        if (step.round, step.start, step.question.name, step.subject.name) not in done
    ]
    begin_s = time.monotonic()
    for at, step in enumerate(plan, 1):
        found.append(measure(context, step))
        samples.append(keep, found[-1])
        left_s = (time.monotonic() - begin_s) / at * (len(plan) - at)
        print(f"[{at}/{len(plan)}, about {left_s / 60:.1f} min left] {_brief(found[-1])}", file=sys.stderr, flush=True)
    return found


def _brief(sample: Sample) -> str:
    """Its first number, and its errors."""
    name, value = next(iter(sample.values.items()))
    number = f"{value:.5g}" if isinstance(value, float | int) else value
    errors = f", errors {sample.values['errors']}" if sample.values["errors"] else ""
    return f"round {sample.round + 1} {sample.experiment}: {sample.subject} {name} {number}{errors}"
