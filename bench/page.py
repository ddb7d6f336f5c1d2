"""The report of `python -m bench peers`: one page of Markdown, and one of HTML with pictures, which needs nothing else.
What is slower than a rival is said first.
"""

from __future__ import annotations

import html
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import replace

from bench.field import BY_NAME
from bench.pictures import ABOUT_OVERVIEW, bars, curves, overview, percentiles
from bench.questions import QUESTIONS, Question
from bench.report import ROUNDS_TO_RANK, noise
from bench.run import Sample, Values
from bench.standings import LEAST, Line, chance, failed, lines, losses, own, unasked

LATE_LIMIT = 0.1
"""Of the time that requests took: a load generator that itself started them later than that has added to it."""


# ---- Markdown ------------------------------------------------------------------------------------------------------


def markdown(header: Values, samples: Sequence[Sample]) -> str:
    parts = ["# pyfanout beside its peers", _about(header), noise(samples), _worse_first(samples)]
    for question in QUESTIONS:
        table = lines(question, samples)
        if table:
            parts += [f"## {question.text}", _table(question, table), "\n".join(failed(question, samples))]
            parts += [question.notes, *unasked(question)]
    parts += ["## How each was started", _commands(header)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _about(header: Values) -> str:
    known = [f"- {name}: {value}" for name, value in header.items() if not isinstance(value, dict | list)]
    versions = ", ".join(f"{name} {version}" for name, version in header.get("versions", {}).items())
    return "\n".join([*known, f"- versions: {versions}", *(f"- **{each}**" for each in header["absent"])])


def _commands(header: Values) -> str:
    """But for the port and the number of workers."""
    return "\n".join(f"- {name}: `{command}`" for name, command in header.get("commands", {}).items())


def _worse_first(samples: Sequence[Sample]) -> str:
    """What we lose, before what we win."""
    found = [f"- {loss(question, line)}" for question, line in losses(samples)]
    rounds = len({each.round for each in samples})
    if rounds < ROUNDS_TO_RANK:
        return "Too few rounds to rank anybody."
    rule = (
        f"by {LEAST:.0%} or more in the median, and in the worst of {rounds} rounds than the other in its best, which"
        f" comes by chance once in {chance(rounds)} where two are equal"
    )
    if found:
        return "\n".join([f"Better than the one of ours beside it ({rule}), the worst for us first:", "", *found])
    return f"Nobody was better than the one of ours beside it ({rule})."


def loss(question: Question, line: Line) -> str:
    """Who is better than ours, in what, and by how much."""
    ratio = statistics.median(line.ratios)
    times = _number(1 / ratio) if ratio else "∞"
    return f"{question.name}: {line.subject}, {times} times as good as {line.beside}"


def _table(question: Question, table: Iterable[Line]) -> str:
    titles = _titles(question)
    rows = [
        f"| who | speaks | {question.unit}: median (min..max) | ours beside it, to it |"
        f"{''.join(f' {title} |' for title in titles)} |",
        f"|---|---|---|---|{'---|' * len(titles)}---|",
    ]
    for line in table:
        name = f"**{line.subject}**" if BY_NAME[line.subject].ours else line.subject
        middle = f"{_number(line.median)} ({_number(min(line.values))}..{_number(max(line.values))})"
        more = "".join(f" {number} |" for number in _more(question, line))
        remarks = "; ".join(_remarks(question, line))
        rows.append(f"| {name} | {BY_NAME[line.subject].kind} | {middle} | {_compared(line)} |{more} {remarks} |")
    return "\n".join(rows)


def _compared(line: Line) -> str:
    """With whom, and how that stands to it."""
    return f"{line.beside}: {_number(statistics.median(line.ratios))}" if line.ratios else ""


def _titles(question: Question) -> list[str]:
    return [each.title for each in question.columns] + [f"{question.along} {point}" for point, _ in question.points]


def _more(question: Question, line: Line) -> list[str]:
    """What stands below those."""
    columns = zip(question.columns, line.columns, strict=True)
    found = [_signed(number) if column.added_to else _number(number) for column, number in columns]
    return found + [_number(number) for number in line.curve]


def _signed(value: float | None) -> str:
    return "" if value is None else f"{value:+,.0f}"


def _remarks(question: Question, line: Line) -> list[str]:
    said = [line.verdict] if line.verdict else []
    if line.errors and "lost" not in question.key:
        said.append("failed: " + ", ".join(f"{count} {kind}" for kind, count in line.errors.items()))
    if line.limited:
        said.append("the load generator was the limit, of its number or of ours")
    if line.load_late > LATE_LIMIT and question.percentile:
        said.append(f"the load generator was late, {line.load_late:.0%} of the {question.percentile}")
    return said


def _number(value: float | None) -> str:
    if value is None:
        return ""
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
                parts.append(percentiles(question, _own(question, samples)))
            if question.points:
                parts.append(curves(question, table))
            parts += [_rows(question, table), _listed("\n".join([question.notes, *unasked(question)]))]
            parts.append(_listed("\n".join(failed(question, samples))))
    parts += ["<h2>How each was started</h2>", _listed(_commands(header).replace("`", ""))]
    return "\n".join(parts) + "</html>\n"


def _own(question: Question, samples: Sequence[Sample]) -> list[Sample]:
    """With the runs of the load generator that are this question's."""
    return [replace(each, values=own(question, each.values)) for each in samples if each.experiment == question.source]


def _listed(text: str) -> str:
    """The little Markdown that we make."""
    out = []
    for line in text.replace("**", "").splitlines():
        tag = "li" if line.startswith("- ") else "p"
        if line:
            out.append(f"<{tag}>{html.escape(line.removeprefix('- '))}</{tag}>")
    return "\n".join(out)


def _rows(question: Question, table: Iterable[Line]) -> str:
    more = "".join(f"<th>{html.escape(title)}" for title in _titles(question))
    head = f"<tr><th>who<th>speaks<th>{html.escape(question.unit)}<th>min..max<th>ours beside it, to it{more}<th></tr>"
    rows = [head]
    for line in table:
        kind = " class=ours" if BY_NAME[line.subject].ours else ""
        worse = " class=worse" if line.verdict.startswith("**") else ""
        more = "".join(f"<td>{number}" for number in _more(question, line))
        remarks = html.escape("; ".join(_remarks(question, line)).replace("**", ""))
        rows.append(
            f"<tr{kind}><td>{html.escape(line.subject)}<td>{BY_NAME[line.subject].kind}<td>{_number(line.median)}"
            f"<td>{_number(min(line.values))}..{_number(max(line.values))}<td{worse}>{_compared(line)}{more}<td>{remarks}</tr>"
        )
    return f"<table>{''.join(rows)}</table>"
