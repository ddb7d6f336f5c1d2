"""Who stands where: each subject's answer to a question, and how the best of ours compares.

Ratios are taken within a round. Nobody is called better where the spread of the ratios reaches across 1.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from bench.field import BY_NAME, SUBJECTS, Subject
from bench.questions import QUESTIONS, Question
from bench.report import ROUNDS_TO_RANK
from bench.run import Sample, Values

LOAD_LIMIT = 0.9
"""Of its core: a load generator that is busier than that was what limited the number."""
LEAST = 0.02
"""By so much at least somebody must be better, in the median, to be called so."""
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
    limited: bool
    """By the load generator: it, or the one of ours that it is compared with, might have been faster."""
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
        if self.limited:
            return "not ranked"
        if len(self.ratios) < ROUNDS_TO_RANK:
            return "too few rounds to rank"
        if self.better_than_ours:
            return "**better than we are**"
        if min(self.ratios) > 1:
            return "we are better" if statistics.median(self.ratios) >= 1 + LEAST else "equal within 2 %"
        return "equal within 2 %" if max(self.ratios) < 1 else "overlap"

    @property
    def better_than_ours(self) -> bool:
        """In every round, and by LEAST."""
        enough = len(self.ratios) >= ROUNDS_TO_RANK and not self.limited
        return enough and max(self.ratios) < 1 and statistics.median(self.ratios) <= 1 - LEAST


def lines(question: Question, samples: Sequence[Sample]) -> list[Line]:
    """Best first."""
    asked = [each for each in samples if each.experiment == question.source and question.of(BY_NAME[each.subject])]
    by_name: dict[str, dict[int, Values]] = {}
    for each in asked:
        if "failed" not in each.values:
            by_name.setdefault(each.subject, {})[each.round] = each.values
    numbers = {name: {at: found[question.key] for at, found in rounds.items()} for name, rounds in by_name.items()}
    lines = [_line(question, name, by_name, numbers) for name in by_name]
    return sorted(lines, key=lambda line: line.median, reverse=not question.less_is_better)


def _line(
    question: Question, name: str, by_name: dict[str, dict[int, Values]], numbers: dict[str, dict[int, float]]
) -> Line:
    rounds = by_name[name]
    beside = None if BY_NAME[name].ours else _ours_beside(question, BY_NAME[name], numbers)
    ours = numbers[beside] if beside else {}
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
        limited=question.key == "per_s" and any(_is_limit(by_name[each]) for each in (name, beside) if each),
        load_late=statistics.median(_lateness(values, question.percentile) for values in rounds.values()),
    )


def _is_limit(rounds: dict[int, Values]) -> bool:
    """Whether the load generator was what limited them."""
    return statistics.median(values.get("load_busy", 0.0) for values in rounds.values()) > LOAD_LIMIT


def _ours_beside(question: Question, subject: Subject, numbers: dict[str, dict[int, float]]) -> str | None:
    """Which one of ours it is compared with: of those who speak the same, with as many threads, the best in the median.
    Where all are compared, who has no equal among ours has OURS beside him: the best of all of ours would owe much to
    luck. None if there is none."""
    ours = [BY_NAME[name] for name in numbers if BY_NAME[name].ours]
    alike = [each.name for each in ours if (each.kind, each.threads) == (subject.kind, subject.threads)]
    if not alike and question.across:
        return OURS if OURS in numbers else None
    pick = min if question.less_is_better else max
    return pick(alike, key=lambda name: statistics.median(numbers[name].values()), default=None)


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
