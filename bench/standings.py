"""Who stands where: each subject's answer to a question, and how the best of ours compares.

Ratios are taken within a round. Nobody is called better where the spread of the ratios reaches across 1.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from bench.field import BY_NAME, SUBJECTS
from bench.questions import QUESTIONS, Question
from bench.report import ROUNDS_TO_RANK
from bench.run import Sample, Values

OURS = "pyfanout asyncio"
"""Stands for us where servers of other languages are compared: an event loop, with the default policy."""


@dataclass(frozen=True, slots=True)
class Line:
    """One subject's answer to a question."""

    subject: str
    values: list[float]
    """One a round."""
    ratios: list[float]
    """Of the best of ours, in the same round, to it; more than 1: we are better. Empty for ours, and for
    who has no equal among us."""
    curve: list[float]
    """Medians, at the points of the question."""
    errors: dict[str, int]
    load_busy: float
    load_late: float
    """How late the load generator was itself, to how long requests took."""

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def verdict(self) -> str:
        """How the best of ours stands to it."""
        if not self.ratios:
            return ""
        if len(self.ratios) < ROUNDS_TO_RANK:
            return "too few rounds to rank"
        if min(self.ratios) > 1:
            return "we are better"
        return "**better than we are**" if self.better_than_ours else "overlap"

    @property
    def better_than_ours(self) -> bool:
        """In every round."""
        return len(self.ratios) >= ROUNDS_TO_RANK and max(self.ratios) < 1


def lines(question: Question, samples: Sequence[Sample]) -> list[Line]:
    """Best first."""
    asked = [each for each in samples if each.experiment == question.source and question.of(BY_NAME[each.subject])]
    by_name: dict[str, dict[int, Values]] = {}
    for each in asked:
        if "failed" not in each.values:
            by_name.setdefault(each.subject, {})[each.round] = each.values
    numbers = {name: {at: found[question.key] for at, found in rounds.items()} for name, rounds in by_name.items()}
    lines = [_line(question, name, rounds, numbers) for name, rounds in by_name.items()]
    return sorted(lines, key=lambda line: line.median, reverse=not question.less_is_better)


def _line(question: Question, name: str, rounds: dict[int, Values], numbers: dict[str, dict[int, float]]) -> Line:
    ours = {} if BY_NAME[name].ours else _ours_beside(question, BY_NAME[name].kind, numbers)
    errors: dict[str, int] = {}
    for values in rounds.values():
        for kind, count in values["errors"].items():
            errors[kind] = errors.get(kind, 0) + count
    return Line(
        subject=name,
        values=list(numbers[name].values()),
        ratios=[_ratio(question, ours[at], theirs) for at, theirs in numbers[name].items() if at in ours],
        curve=[statistics.median(values[key] for values in rounds.values()) for _, key in question.points],
        errors=errors,
        load_busy=statistics.median(values.get("load_busy", 0.0) for values in rounds.values()),
        load_late=statistics.median(_lateness(values, question.percentile) for values in rounds.values()),
    )


def _ours_beside(question: Question, kind: str, numbers: dict[str, dict[int, float]]) -> dict[int, float]:
    """By round, the numbers of the one of ours that somebody of this kind is compared with: of those who speak the same
    the best in the median. Where all are compared, who has no equal among ours has OURS beside him, and not the best of
    nine, which would owe much to luck. Empty if there is none."""
    alike = [rounds for name, rounds in numbers.items() if BY_NAME[name].ours and BY_NAME[name].kind == kind]
    if not alike and question.across:
        return numbers.get(OURS, {})
    pick = min if question.less_is_better else max
    return pick(alike, key=lambda rounds: statistics.median(rounds.values()), default={})


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


def losses(samples: Sequence[Sample]) -> list[tuple[Question, Line]]:
    """Who was better than ours in every round, and in what; the worst for us first."""
    found = [(question, line) for question in QUESTIONS for line in lines(question, samples) if line.better_than_ours]
    return sorted(found, key=lambda each: statistics.median(each[1].ratios))
