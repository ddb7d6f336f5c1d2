"""Who stands where: each subject's answer to a question, and how the one of ours that does the same work compares.

Of the starts of a round the median counts. Ratios are taken within a round. Nobody is called better unless all rounds
agree, by LEAST in the median, and the worst round of the one is better than the best of the other.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bench.field import BY_NAME
from bench.model import Question, Sample, Values

LOAD_LIMIT = 0.9
"""Of its core: a load generator that is busier than that was what limited the number."""
LEAST = 0.02
"""By so much at least somebody must be better, in the median, to be called so."""
ROUNDS_TO_RANK = 3
VARIANT = "asked only where what they differ in may matter"

Rounds = dict[int, list[Values]]
"""What one subject said: its starts in each round."""


def chance(rounds: int) -> int:
    """Of two equals, one is in all its rounds above the other in all of his, by chance once in so many."""
    return math.comb(2 * rounds, rounds) // 2


def _numbers(rounds: Rounds, key: str) -> dict[int, float]:
    return {at: statistics.median(values[key] for values in starts) for at, starts in rounds.items()}


def _is_limit(rounds: Rounds) -> bool:
    """Whether the load generator was what limited it."""
    busy = [values.get("load_busy", 0.0) for starts in rounds.values() for values in starts]
    return statistics.median(busy or [0.0]) > LOAD_LIMIT


@dataclass(frozen=True, slots=True)
class Line:
    """One subject's answer to a question."""

    question: Question
    subject: str
    rounds: Rounds
    beside: str
    """The one of ours that it is compared with, if there is one."""
    ours: Rounds
    """What that one said."""
    base: Rounds
    """What that one said which the question counts from."""

    @property
    def values(self) -> list[float]:
        """One a round."""
        return [*_numbers(self.rounds, self.question.key).values()]

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def points(self) -> list[float]:
        """Medians."""
        return [statistics.median(_numbers(self.rounds, key).values()) for _, key in self.question.points]

    def _beside(self, other: Rounds) -> list[tuple[float, float]]:
        """Of each round that both have, the number of the other, and its own."""
        theirs, own = _numbers(other, self.question.key), _numbers(self.rounds, self.question.key)
        return [(theirs[at], number) for at, number in own.items() if at in theirs]

    @property
    def pairs(self) -> list[tuple[float, float]]:
        """What the one of ours has, and what it has itself."""
        return self._beside(self.ours)

    @property
    def ratios(self) -> list[float]:
        """More than 1: ours is better."""
        pairs = [(theirs, ours) if self.question.less_is_better else (ours, theirs) for ours, theirs in self.pairs]
        return [more / less if less else (1.0 if more == less else math.inf) for more, less in pairs]

    @property
    def added(self) -> float | None:
        """By how much it has more than the base; None: there is nothing to subtract."""
        added = [own - base for base, own in self._beside(self.base)]
        return statistics.median(added) if added else None

    @property
    def said(self) -> list[Values]:
        return [values for starts in self.rounds.values() for values in starts]

    @property
    def errors(self) -> dict[str, int]:
        return _errors(values["errors"] for values in self.said)

    @property
    def limited(self) -> bool:
        """By the load generator: it, or the one of ours that it is compared with, might have been faster."""
        return self.question.key == "per_s" and (_is_limit(self.rounds) or _is_limit(self.ours))

    @property
    def late(self) -> float:
        """How late the load generator was, to how long requests took. 0: requests did not come by a schedule."""
        percentile = self.question.percentile
        runs = [values.get("load", []) if percentile else [] for values in self.said]
        late = [
            [run["late_start_ns"][percentile] / max(run["latency_ns"]["fast"][percentile], 1) for run in each]
            for each in runs
        ]
        return statistics.median(max(each, default=0.0) for each in late)

    @property
    def verdict(self) -> str:
        """How the one of ours beside it stands to it."""
        if not self.pairs:
            return ""
        if self.limited:
            return "not ranked"
        if len(self.pairs) < ROUNDS_TO_RANK:
            return "too few rounds to rank"
        ours, theirs = zip(*self.pairs, strict=True)
        if max(ours) >= min(theirs) and max(theirs) >= min(ours):
            return "overlap"
        middle = statistics.median(self.ratios)
        if max(self.ratios) < 1 and middle <= 1 - LEAST:
            return "**better than we are**"
        return "we are better" if min(self.ratios) > 1 and middle >= 1 + LEAST else "equal within 2 %"

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
    found = []
    for name, rounds in said.items():
        beside = _beside(question, name)
        ours, base = said.get(beside, {}), said.get(question.added_to, {})
        found.append(Line(question, name, rounds, beside if ours else "", ours, base))
    return sorted(found, key=lambda line: line.median, reverse=not question.less_is_better)


def own(question: Question, values: Values) -> Values:
    """Of a sample that answers several questions, what is this one's: its runs of the load generator, and their
    errors."""
    if question.runs is None or "load" not in values:
        return values
    runs = values["load"][slice(*question.runs)]
    return {**values, "load": runs, "errors": _errors(run.get("errors", {}) for run in runs)}


def _errors(counts: Iterable[dict[str, int]]) -> dict[str, int]:
    """All of them, by kind."""
    found: Counter[str] = Counter()
    for each in counts:
        found.update({kind: count for kind, count in each.items() if count})
    return dict(found)


def _beside(question: Question, name: str) -> str:
    """Servers in another language are only compared where their speed is not what is asked."""
    subject = BY_NAME[name]
    if subject.ours or (subject.kind == "another language" and not question.across):
        return ""
    return subject.beside if subject.beside in question.subjects else question.subjects[0]


def failed(question: Question, samples: Iterable[Sample]) -> list[str]:
    """Who could not be measured, and why."""
    mine = [each for each in samples if each.experiment == question.experiment and "failed" in each.values]
    return [f"- {each.subject}, round {each.round + 1}: {each.values['failed']}" for each in mine]


def unasked(question: Question, questions: Iterable[Question]) -> list[str]:
    """Who is asked others of these questions, but not this one, and why."""
    rest = dict.fromkeys(name for each in questions for name in each.subjects if name not in question.subjects)
    groups = {
        question.unasked: [name for name in rest if not BY_NAME[name].asked],
        VARIANT: [name for name in rest if BY_NAME[name].asked],
    }
    return [f"Not asked: {'; '.join(names)}: {why}." for why, names in groups.items() if names]


def losses(questions: Iterable[Question], samples: Sequence[Sample]) -> list[tuple[Question, Line]]:
    """Who was better than the one of ours beside it, and in what; the worst for us first."""
    found = [(question, line) for question in questions for line in lines(question, samples) if line.better_than_ours]
    return sorted(found, key=lambda each: statistics.median(each[1].ratios))
