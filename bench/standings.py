"""Who stands where: each subject's answer to a question, and how the one of ours that does the same work compares.

Ratios are taken within a round. Nobody is called better unless all rounds agree, by LEAST in the median, and the worst
round of the one is better than the best of the other.
"""

from __future__ import annotations

import math
import statistics
import subprocess
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from bench.field import BY_NAME, SUBJECTS, Subject
from bench.installed import ROOT
from bench.questions import QUESTIONS, VARIANT, Column, Question
from bench.report import ROUNDS_TO_RANK
from bench.run import Sample, Values
from bench.server import ServerError

LOAD_LIMIT = 0.9
"""Of its core: a load generator that is busier than that was what limited the number."""
LEAST = 0.02
"""By so much at least somebody must be better, in the median, to be called so."""

Rounds = dict[int, Values]


def chance(rounds: int) -> int:
    """Of two equals, one is in all its rounds above the other in all of his, by chance once in so many."""
    return math.comb(2 * rounds, rounds) // 2


@dataclass(frozen=True, slots=True)
class Line:
    """One subject's answer to a question."""

    subject: str
    values: list[float]
    """One a round."""
    ratios: list[float]
    """Of the one of ours beside it, in the same round, to it; more than 1: we are better. Empty for ours, and where
    none is beside it."""
    curve: list[float]
    """Medians, at the points of the question."""
    errors: dict[str, int]
    limited: bool
    """By the load generator: it, or the one of ours that it is compared with, might have been faster."""
    load_late: float
    """How late the load generator was itself, to how long requests took."""
    beside: str = ""
    """The one of ours that it is compared with."""
    apart: bool = False
    """The spreads of the two do not overlap."""
    columns: tuple[float | None, ...] = ()
    """Medians, of the columns of the question."""

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def verdict(self) -> str:
        """How the one of ours beside it stands to it."""
        if not self.ratios:
            return ""
        if self.limited:
            return "not ranked"
        if len(self.ratios) < ROUNDS_TO_RANK:
            return "too few rounds to rank"
        if self.better_than_ours:
            return "**better than we are**"
        if not self.apart:
            return "overlap"
        better = min(self.ratios) > 1 and statistics.median(self.ratios) >= 1 + LEAST
        return "we are better" if better else "equal within 2 %"

    @property
    def better_than_ours(self) -> bool:
        enough = len(self.ratios) >= ROUNDS_TO_RANK and not self.limited and self.apart
        return enough and max(self.ratios) < 1 and statistics.median(self.ratios) <= 1 - LEAST


def lines(question: Question, samples: Sequence[Sample]) -> list[Line]:
    """Best first."""
    asked = [each for each in samples if each.experiment == question.source and question.asks(BY_NAME[each.subject])]
    by_name: dict[str, Rounds] = {}
    for each in asked:
        if "failed" not in each.values:
            by_name.setdefault(each.subject, {})[each.round] = own(question, each.values)
    lines = [_line(question, name, by_name) for name in by_name]
    return sorted(lines, key=lambda line: line.median, reverse=not question.less_is_better)


def own(question: Question, values: Values) -> Values:
    """Of a sample that answers several questions, what is this one's: its runs of the load generator, and their
    errors."""
    if question.runs is None or "load" not in values:
        return values
    runs = values["load"][slice(*question.runs)]
    errors: Counter[str] = Counter()
    for run in runs:
        errors.update({kind: count for kind, count in run.get("errors", {}).items() if count})
    return {**values, "load": runs, "errors": dict(errors)}


def _line(question: Question, name: str, by_name: dict[str, Rounds]) -> Line:
    rounds = by_name[name]
    beside = _beside(question, BY_NAME[name], by_name)
    theirs = {at: values[question.key] for at, values in rounds.items()}
    ours = {at: values[question.key] for at, values in by_name[beside].items()} if beside else {}
    errors: Counter[str] = Counter()
    for values in rounds.values():
        errors.update(values["errors"])
    return Line(
        subject=name,
        values=list(theirs.values()),
        ratios=[_ratio(question, ours[at], number) for at, number in theirs.items() if at in ours],
        curve=[statistics.median(values[key] for values in rounds.values()) for _, key in question.points],
        errors=dict(errors),
        limited=question.key == "per_s" and any(_is_limit(by_name[each]) for each in (name, beside) if each),
        load_late=statistics.median(_lateness(values, question.percentile) for values in rounds.values()),
        beside=beside,
        apart=bool(ours) and (max(ours.values()) < min(theirs.values()) or max(theirs.values()) < min(ours.values())),
        columns=tuple(_column(column, rounds, by_name) for column in question.columns),
    )


def _column(column: Column, rounds: Rounds, by_name: dict[str, Rounds]) -> float | None:
    """None: there is nothing to subtract."""
    if not column.added_to:
        return statistics.median(values[column.key] for values in rounds.values())
    base = by_name.get(column.added_to, {})
    added = [values[column.key] - base[at][column.key] for at, values in rounds.items() if at in base]
    return statistics.median(added) if added else None


def _beside(question: Question, subject: Subject, by_name: dict[str, Rounds]) -> str:
    """Which one of ours it is compared with; empty: none. Servers in another language are only compared where their
    speed is not what is asked."""
    if subject.kind == "another language" and not question.across:
        return ""
    return subject.beside if subject.beside in by_name else ""


def _is_limit(rounds: dict[int, Values]) -> bool:
    """Whether the load generator was what limited them."""
    return statistics.median(values.get("load_busy", 0.0) for values in rounds.values()) > LOAD_LIMIT


def _ratio(question: Question, ours: float, theirs: float) -> float:
    """More than 1: ours is better."""
    more, less = (theirs, ours) if question.less_is_better else (ours, theirs)
    return more / less if less else (1.0 if more == less else float("inf"))


def _lateness(values: Values, percentile: str) -> float:
    """How late the load generator was, to how long requests took. 0: requests did not come by a schedule."""
    runs = values.get("load", []) if percentile else []
    late = (run["late_start_ns"][percentile] / max(run["latency_ns"]["fast"][percentile], 1) for run in runs)
    return max(late, default=0.0)


def failed(question: Question, samples: Sequence[Sample]) -> list[str]:
    """Who could not be measured, and why."""
    mine = [each for each in samples if each.experiment == question.source and "failed" in each.values]
    return [f"- {each.subject}, round {each.round + 1}: {each.values['failed']}" for each in mine]


def absent() -> list[str]:
    """Who could not run, and what it needs."""
    return [f"{each.name}: not run, {missing} is not installed" for each in SUBJECTS if (missing := each.missing())]


def unasked(question: Question) -> list[str]:
    """Who is not asked it, and why."""
    able = {each.name: question.of(each) for each in SUBJECTS}
    groups = {
        question.unasked: [name for name in able if not able[name]],
        VARIANT: [name for name in able if able[name] and not question.asks(BY_NAME[name])],
    }
    return [f"Not asked: {'; '.join(names)}: {why}." for why, names in groups.items() if names]


def losses(samples: Sequence[Sample]) -> list[tuple[Question, Line]]:
    """Who was better than the one of ours beside it, and in what; the worst for us first."""
    found = [(question, line) for question in QUESTIONS for line in lines(question, samples) if line.better_than_ours]
    return sorted(found, key=lambda each: statistics.median(each[1].ratios))


MEASURES = (
    *("bench/field.py", "bench/questions.py", "bench/clients.py", "bench/server.py", "bench/loadgen.py"),
    *("bench/load.c", "bench/histogram.h", "bench/netns.py", "bench/procfs.py", "bench/run.py", "bench/workloads.py"),
    *("bench/subjects.py", "bench/peers", "bench/rivals", "pyfanout", "csrc"),
)
"""A change in these may have changed the samples, or what is said of them."""


def doubt(commit: str, *, refuse: bool) -> str:
    """What is to be said of samples that this commit has measured. Raises ServerError, to `refuse` them, if it measured
    otherwise than the work tree does."""
    known = commit.removesuffix("-dirty")
    command = ["git", "diff", "--quiet", known, "--", *MEASURES]
    code = subprocess.run(command, cwd=ROOT, capture_output=True, check=False).returncode
    if known != commit:
        return ", and what was not committed: nobody can tell whether it measures the same now"
    if code > 1:
        return ", which is not known here: nobody can tell whether it measured the same as it does now"
    if code and refuse:
        raise ServerError(f"measured by {commit}, which measures otherwise than what is here: check that out")
    return ", and the work tree was changed while it ran" if code else ""
