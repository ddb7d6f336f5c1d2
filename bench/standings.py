"""Each subject's answer to a question, and how the subject of pyfanout that does the same work compares.

Of the starts of a round the median counts. Ratios are taken within a round. None is called better unless all rounds
agree, by LEAST in the median, and the worst round of the one is better than the best of the other.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from statistics import median

from bench.field import BY_NAME
from bench.model import Question, Sample, Values

LOAD_LIMIT = 0.9
"""Of its core: a load generator that is busier than that was what limited the number."""
LEAST = 0.02
"""By so much at least a subject must be better, in the median, to be called so."""
ROUNDS_TO_RANK = 3

Rounds = dict[int, list[Values]]
"""What one subject said: its starts in each round."""


def chance(rounds: int) -> int:
    """Of two equals, one is in all its rounds above the other in all of its own, by chance once in so many."""
    return math.comb(2 * rounds, rounds) // 2


def _numbers(rounds: Rounds, key: str) -> dict[int, float]:
    return {at: median(values[key] for values in starts) for at, starts in rounds.items()}


@dataclass(frozen=True, slots=True)
class Line:
    """One subject's answer to a question."""

    question: Question
    subject: str
    said: list[Values]
    values: list[float]
    """One a round."""
    points: list[float]
    """Medians."""
    beside: str
    """The subject of pyfanout that it is compared with, if there is one."""
    pairs: list[tuple[float, float]]
    """What that one has, and what it has itself, in each round that both have."""
    added: float | None
    """By how much it has more than what the question counts from; None: there is nothing to subtract."""
    limited: bool
    """By the load generator: it, or the one that it is compared with, might have been faster."""

    @property
    def ratios(self) -> list[float]:
        """More than 1: pyfanout is better."""
        pairs = [(theirs, ours) if self.question.less_is_better else (ours, theirs) for ours, theirs in self.pairs]
        return [more / less if less else (1.0 if more == less else math.inf) for more, less in pairs]

    @property
    def ratio(self) -> float:
        return median(self.ratios)

    @property
    def errors(self) -> dict[str, int]:
        return _errors(values["errors"] for values in self.said)

    @property
    def late(self) -> float:
        """How late the load generator was, to how long requests took. 0: requests did not come by a schedule."""
        at = self.question.percentile
        late = (
            [run["late_start_ns"][at] / max(run["latency_ns"]["fast"][at], 1) for run in values.get("load", []) if at]
            for values in self.said
        )
        return median(max(each, default=0.0) for each in late)

    @property
    def verdict(self) -> str:
        """How the subject of pyfanout beside it stands to it."""
        if not self.pairs:
            return ""
        if self.limited:
            return "not ranked"
        if len(self.pairs) < ROUNDS_TO_RANK:
            return "too few rounds to rank"
        ours, theirs = zip(*self.pairs, strict=True)
        if max(ours) >= min(theirs) and max(theirs) >= min(ours):
            return "overlap"
        if max(self.ratios) < 1 and self.ratio <= 1 - LEAST:
            return "**better than pyfanout**"
        return "pyfanout is better" if min(self.ratios) > 1 and self.ratio >= 1 + LEAST else "equal within 2 %"

    @property
    def better_than_ours(self) -> bool:
        return self.verdict.startswith("**")


def lines(question: Question, samples: Iterable[Sample]) -> list[Line]:
    """Best first."""
    said: dict[str, Rounds] = {}
    for each in samples:
        mine = each.experiment == question.experiment and each.subject in question.subjects
        if mine and "failed" not in each.values:
            rounds = said.setdefault(each.subject, {})
            rounds.setdefault(each.round, []).append(own(question, each.values))
    found = [_line(question, name, said) for name in said]
    return sorted(found, key=lambda line: median(line.values), reverse=not question.less_is_better)


def _line(question: Question, name: str, said: dict[str, Rounds]) -> Line:
    rounds, beside = said[name], _beside(question, name)
    numbers, ours, base = (_numbers(said.get(each, {}), question.key) for each in (name, beside, question.added_to))
    starts = {each: [*chain.from_iterable(said[each].values())] for each in (name, beside) if each in said}
    busy = [[values.get("load_busy", 0.0) for values in each] for each in starts.values()]
    return Line(
        question,
        name,
        starts[name],
        [*numbers.values()],
        [median(_numbers(rounds, key).values()) for _, key in question.points],
        beside if ours else "",
        [(ours[at], number) for at, number in numbers.items() if at in ours],
        median([number - base[at] for at, number in numbers.items() if at in base]) if base else None,
        question.key == "per_s" and any(median(each) > LOAD_LIMIT for each in busy),
    )


def own(question: Question, values: Values) -> Values:
    """Of a sample that answers several questions, what is this one's: its runs of the load generator, and their
    errors."""
    if question.runs is None or "load" not in values:
        return values
    runs = values["load"][slice(*question.runs)]
    return {**values, "load": runs, "errors": _errors(run.get("errors", {}) for run in runs)}


def _errors(counts: Iterable[dict[str, int]]) -> dict[str, int]:
    """All of them, by kind."""
    return dict(sum(map(Counter, counts), Counter[str]()))


def _beside(question: Question, name: str) -> str:
    """Servers in another language are only compared where their speed is not what is asked."""
    subject = BY_NAME[name]
    if subject.ours or (subject.kind == "another language" and not question.across):
        return ""
    return subject.beside if subject.beside in question.subjects else question.subjects[0]


def unasked(question: Question, questions: Iterable[Question]) -> list[str]:
    """Which subjects are asked others of these questions, but not this one, and why."""
    rest = dict.fromkeys(name for each in questions for name in each.subjects if name not in question.subjects)
    groups = {
        question.unasked: [name for name in rest if not BY_NAME[name].asked],
        "asked only where what they differ in may matter": [name for name in rest if BY_NAME[name].asked],
    }
    return [f"Not asked: {'; '.join(names)}: {why}." for why, names in groups.items() if names]


def losses(questions: Iterable[Question], samples: Sequence[Sample]) -> list[Line]:
    """Rivals that were better than pyfanout beside them; the worst for pyfanout first."""
    found = [line for question in questions for line in lines(question, samples) if line.better_than_ours]
    return sorted(found, key=lambda line: line.ratio)
