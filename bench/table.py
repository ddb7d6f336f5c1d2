"""What a run found, in Markdown: where pyfanout is slower first, then what was asked for, then a table a question."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from statistics import median

from bench.field import BY_NAME
from bench.model import Question, Sample, Values
from bench.standings import LEAST, ROUNDS_TO_RANK, Line, chance, lines, losses, unasked

LATE_LIMIT = 0.1
"""Of the time that requests took: a load generator that itself started them later than that has added to it."""
QUIET_SHARE = 0.10
"""Of one core; an idle machine's own housekeeping is 1 to 3 %."""


def report(header: Values, questions: Sequence[Question], samples: Sequence[Sample]) -> str:
    parts = ["# pyfanout beside its peers", _about(header), noise(samples), _worse_first(questions, samples)]
    parts.append(_table(["what", "asked", "median (min..max)", "n", "verdict"], bounds(questions, samples)))
    for question in questions:
        if found := lines(question, samples):
            parts += [f"## {question.text}", _answers(question, found)]
            mine = [each for each in samples if each.experiment == question.experiment and "failed" in each.values]
            parts.append(
                "\n".join(f"- {each.subject}, round {each.round + 1}: {each.values['failed']}" for each in mine)
            )
            parts += [question.notes, *unasked(question, questions)]
    commands = [f"- {name}: `{command}`" for name, command in header.get("commands", {}).items()]
    return "\n\n".join(part for part in (*parts, "## How each was started", "\n".join(commands)) if part) + "\n"


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Empty, if there are none."""
    head, *body = [f"| {' | '.join(row)} |" for row in (titles, *rows)]
    return "\n".join([head, "|" + "---|" * len(titles), *body]) if body else ""


def _about(header: Values) -> str:
    known = [f"- {name}: {value}" for name, value in header.items() if not isinstance(value, dict | list)]
    versions = ", ".join(f"{name} {version}" for name, version in header.get("versions", {}).items())
    return "\n".join([*known, f"- versions: {versions}", *(f"- **{each}**" for each in header["absent"])])


def noise(samples: Iterable[Sample]) -> str:
    """A warning when other processes had so much of the machine that the numbers mean little; else nothing."""
    loud = [each for each in samples if each.values.get("others_cpu", 0.0) > QUIET_SHARE]
    hit: dict[str, set[str]] = {}
    for each in loud:
        hit.setdefault(each.experiment, set()).add(each.subject)
    most = max((each.values["others_cpu"] for each in loud), default=0.0)
    during = ", ".join(f"{experiment} ({'; '.join(sorted(subjects))})" for experiment, subjects in sorted(hit.items()))
    warning = f"**The machine was not quiet**: other processes used up to {most:.0%} of a core, during {during}."
    return f"{warning} Measure again." if loud else ""


def _worse_first(questions: Sequence[Question], samples: Sequence[Sample]) -> str:
    """What pyfanout loses, before what it wins."""
    rounds = len({each.round for each in samples})
    if rounds < ROUNDS_TO_RANK:
        return "Too few rounds for a ranking."
    rule = (
        f"by {LEAST:.0%} or more in the median, and in the worst of {rounds} rounds than the other in its best, which"
        f" comes by chance once in {chance(rounds)} where two are equal"
    )
    found = [f"- {loss(line)}" for line in losses(questions, samples)]
    if found:
        return "\n".join([f"Better than pyfanout at the same work ({rule}), the worst for pyfanout first:", "", *found])
    return f"No rival was better than pyfanout at the same work ({rule})."


def loss(line: Line) -> str:
    """Which rival is better, in what, and by how much."""
    times = number(1 / line.ratio if line.ratio else math.inf)
    return f"{line.question.name}: {line.subject}, {times} times as good as {line.beside}"


def bounds(questions: Iterable[Question], samples: Sequence[Sample]) -> list[list[str]]:
    """What was asked for: a row for each question with bounds, or for each of the rivals in it. It was reached or
    missed; how pyfanout stands to the rival, what failed of the two, and what happened in the last round."""
    rows = []
    for question in questions:
        asked = question.asked
        found = {line.subject: line for line in lines(question, samples)} if asked else {}
        for line in found.values():
            values = [asked.of(*pair) for pair in line.pairs] if asked.of else line.values
            if not values:
                continue
            name = f"{question.text}: {line.subject}" if len(question.subjects) > 2 else question.text
            missed = dict.fromkeys(each["missed"] for each in line.said if each.get("missed"))
            words = ["reached" if asked.met_by(values) and not missed else "**missed**", *missed, line.verdict]
            both = [line, found[line.beside]] if line.pairs else [line]
            words += [f"failed of {each.subject}: {_kinds(each)}" for each in both if each.errors]
            said = "; ".join(word for word in (*words, line.said[-1].get("detail", "")) if word)
            rows.append([name, asked.text(), spread(values, asked.number.format), f"{len(values)}", said])
    return rows


def _answers(question: Question, found: Iterable[Line]) -> str:
    titles = [f"added to {question.added_to}"] if question.added_to else []
    titles += [title for title, _ in question.points]
    rows = []
    for line in found:
        name = f"**{line.subject}**" if BY_NAME[line.subject].ours else line.subject
        compared = f"{line.beside}: {number(line.ratio)}" if line.pairs else ""
        added = ["" if line.added is None else f"{line.added:+,.0f}"] if question.added_to else []
        rows.append([name, BY_NAME[line.subject].kind, spread(line.values, number), compared, *added])
        rows[-1] += [*map(number, line.points), "; ".join(_remarks(question, line))]
    measured = f"{question.unit}: median (min..max)"
    return _table(["subject", "speaks", measured, "pyfanout beside it, to it", *titles, ""], rows)


def _remarks(question: Question, line: Line) -> list[str]:
    late = f"the load generator was late, {line.late:.0%} of the {question.percentile}"
    remarks = {
        line.verdict: True,
        f"failed: {_kinds(line)}": line.errors and "lost" not in question.key,
        "the load generator was the limit, of its number or of pyfanout's": line.limited,
        late: line.late > LATE_LIMIT,
    }
    return [words for words, said in remarks.items() if words and said]


def _kinds(line: Line) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in line.errors.items())


def spread(values: Sequence[float], text: Callable[[float], str]) -> str:
    return f"{text(median(values))} ({text(min(values))}..{text(max(values))})"


def number(value: float) -> str:
    if value == math.inf:
        return "∞"
    whole = abs(value) >= 1000 or value == int(value)
    return f"{value:,.0f}" if whole else f"{value:.3g}"
