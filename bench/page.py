"""The report of `python -m bench peers`: one page of Markdown, and one of HTML with pictures, which needs nothing else.
What is slower than a rival is said first.
"""

from __future__ import annotations

import html
import statistics
from collections.abc import Iterable, Sequence

from bench.field import BY_NAME
from bench.pictures import ABOUT_OVERVIEW, bars, curves, overview, percentiles
from bench.questions import QUESTIONS, Question
from bench.report import ROUNDS_TO_RANK, noise
from bench.run import Sample, Values
from bench.standings import Line, failed, lines, losses

LATE_LIMIT = 0.1
"""Of the time that requests took: a load generator that itself started them later than that has added to it."""


# ---- Markdown ------------------------------------------------------------------------------------------------------


def markdown(header: Values, samples: Sequence[Sample]) -> str:
    parts = ["# pyfanout beside its peers", _about(header), noise(samples), _worse_first(samples)]
    for question in QUESTIONS:
        table = lines(question, samples)
        if table:
            parts += [f"## {question.text}", _table(question, table), "\n".join(failed(question, samples))]
            if question.notes:
                parts.append(question.notes)
    return "\n\n".join(part for part in parts if part) + "\n"


def _about(header: Values) -> str:
    known = [f"- {name}: {value}" for name, value in header.items() if not isinstance(value, dict | list)]
    versions = ", ".join(f"{name} {version}" for name, version in header.get("versions", {}).items())
    return "\n".join([*known, f"- versions: {versions}", *(f"- **{each}**" for each in header["absent"])])


def _worse_first(samples: Sequence[Sample]) -> str:
    """What we lose, before what we win."""
    found = [f"- {loss(question, line)}" for question, line in losses(samples)]
    rounds = len({each.round for each in samples})
    if found:
        chance = f"where two are equal, all {rounds} rounds agree by chance once in {2 ** (rounds - 1)}"
        return "\n".join([f"Better than ours in every round ({chance}), the worst for us first:", "", *found])
    return "Nobody was better in every round." if rounds >= ROUNDS_TO_RANK else "Too few rounds to rank anybody."


def loss(question: Question, line: Line) -> str:
    """Who is better than ours, in what, and by how much."""
    ratio = statistics.median(line.ratios)
    times = _number(1 / ratio) if ratio else "∞"
    return f"{question.name}: {line.subject}, {times} times as good"


def _table(question: Question, table: Iterable[Line]) -> str:
    points = "".join(f" {question.along} {point} |" for point, _ in question.points)
    rows = [
        f"| who | speaks | {question.unit}: median (min..max) | the best of ours to it |{points} |",
        f"|---|---|---|---|{'---|' * len(question.points)}---|",
    ]
    for line in table:
        name = f"**{line.subject}**" if BY_NAME[line.subject].ours else line.subject
        middle = f"{_number(line.median)} ({_number(min(line.values))}..{_number(max(line.values))})"
        ratio = f"{_number(statistics.median(line.ratios))}" if line.ratios else ""
        curve = "".join(f" {_number(value)} |" for value in line.curve)
        remarks = "; ".join(_remarks(question, line))
        rows.append(f"| {name} | {BY_NAME[line.subject].kind} | {middle} | {ratio} |{curve} {remarks} |")
    return "\n".join(rows)


def _remarks(question: Question, line: Line) -> list[str]:
    said = [line.verdict] if line.verdict else []
    if line.errors and "lost" not in question.key:
        said.append("failed: " + ", ".join(f"{count} {kind}" for kind, count in line.errors.items()))
    if line.limited:
        said.append("the load generator was the limit, of its number or of ours")
    if line.load_late > LATE_LIMIT and question.percentile:
        said.append(f"the load generator was late, {line.load_late:.0%} of the {question.percentile}")
    return said


def _number(value: float) -> str:
    if value == float("inf"):
        return "∞"
    if value == int(value) and abs(value) < 1e6:
        return f"{value:,.0f}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


# ---- HTML ----------------------------------------------------------------------------------------------------------

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 64rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; width: 100%; margin: 1rem 0; font-size: 14px; }
td, th { text-align: left; padding: .2rem .6rem; border-bottom: 1px solid #ddd; }
tr.ours { background: #eef6ee; font-weight: 600; } td.worse { color: #a00; font-weight: 600; } svg { max-width: 100%; }
"""


def page(header: Values, samples: Sequence[Sample]) -> str:
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><title>pyfanout beside its peers</title>",
        f"<style>{STYLE}</style><h1>pyfanout beside its peers</h1>",
        f"<p>{ABOUT_OVERVIEW}</p>{overview(samples)}",
        _listed(_about(header)),
        _listed(noise(samples)),
        _listed(_worse_first(samples)),
    ]
    for question in QUESTIONS:
        table = lines(question, samples)
        if table:
            parts.append(f"<h2>{html.escape(question.text)}</h2>{bars(question, table, _number)}")
            if question.name.startswith("latency"):
                parts.append(percentiles(question, samples))
            if question.points:
                parts.append(curves(question, table))
            parts += [_rows(question, table), f"<p>{html.escape(question.notes)}</p>"]
            parts.append(_listed("\n".join(failed(question, samples))))
    return "\n".join(parts) + "</html>\n"


def _listed(text: str) -> str:
    """The little Markdown that we make."""
    out = []
    for line in text.replace("**", "").splitlines():
        tag = "li" if line.startswith("- ") else "p"
        if line:
            out.append(f"<{tag}>{html.escape(line.removeprefix('- '))}</{tag}>")
    return "\n".join(out)


def _rows(question: Question, table: Iterable[Line]) -> str:
    points = "".join(f"<th>{question.along} {point}" for point, _ in question.points)
    head = (
        f"<tr><th>who<th>speaks<th>{html.escape(question.unit)}<th>min..max<th>the best of ours to it{points}<th></tr>"
    )
    rows = [head]
    for line in table:
        kind = " class=ours" if BY_NAME[line.subject].ours else ""
        worse = " class=worse" if line.verdict.startswith("**") else ""
        ratio = _number(statistics.median(line.ratios)) if line.ratios else ""
        curve = "".join(f"<td>{_number(value)}" for value in line.curve)
        remarks = html.escape("; ".join(_remarks(question, line)).replace("**", ""))
        rows.append(
            f"<tr{kind}><td>{html.escape(line.subject)}<td>{BY_NAME[line.subject].kind}<td>{_number(line.median)}"
            f"<td>{_number(min(line.values))}..{_number(max(line.values))}<td{worse}>{ratio}{curve}<td>{remarks}</tr>"
        )
    return f"<table>{''.join(rows)}</table>"
