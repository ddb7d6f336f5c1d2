"""The report of `python -m bench peers`: one page of Markdown, and one of HTML with pictures, which needs nothing else.

Ratios are taken within a round. Nobody is called better where the spread of the ratios reaches across 1, and what is
slower than a rival is said first.
"""

from __future__ import annotations

import html
import io
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from bench.field import BY_NAME, SUBJECTS
from bench.questions import QUESTIONS, Question
from bench.report import ROUNDS_TO_RANK
from bench.run import Sample, Values

LOAD_LIMIT = 0.9
"""Of its core: a load generator that is busier than that was what limited the number."""
LATE_LIMIT = 0.1
"""Of the p99: a load generator that itself started requests later than that has added to it."""
PERCENTILES = ("p50", "p90", "p99", "p999", "max")


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
    """How late the load generator was, to how long requests took; both at p99."""

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
        return "**better than we are**" if max(self.ratios) < 1 else "overlap"


def lines(question: Question, samples: Sequence[Sample]) -> list[Line]:
    """Best first."""
    mine = [each for each in samples if each.experiment == question.source and "failed" not in each.values]
    pick = min if question.less_is_better else max
    found = []
    for name in dict.fromkeys(each.subject for each in mine):
        own = [each for each in mine if each.subject == name]
        values = [each.values[question.key] for each in own]
        ratios = []
        if not BY_NAME[name].ours and (best := _best_of_ours(question, mine, BY_NAME[name].kind)):
            for each in own:
                if each.round not in best:
                    continue
                ours, theirs = best[each.round], each.values[question.key]
                if question.less_is_better:
                    ours, theirs = theirs, ours
                ratios.append(ours / theirs if theirs else (1.0 if ours == theirs else float("inf")))
        errors: dict[str, int] = {}
        for each in own:
            for kind, count in each.values["errors"].items():
                errors[kind] = errors.get(kind, 0) + count
        curve = [statistics.median(each.values[key] for each in own) for _, key in question.points]
        busy = statistics.median(each.values.get("load_busy", 0.0) for each in own)
        late = statistics.median(_lateness(each.values) for each in own)
        found.append(Line(name, values, ratios, curve, errors, busy, late))
    return sorted(found, key=lambda line: line.median, reverse=pick is max)


def _lateness(values: Values) -> float:
    return max(
        (run["late_start_ns"]["p99"] / max(run["latency_ns"]["fast"]["p99"], 1) for run in _runs(values)), default=0
    )


def _runs(values: Values) -> list[Values]:
    """Those of the load generator."""
    return values.get("load", [])


def _best_of_ours(question: Question, samples: Sequence[Sample], kind: str) -> dict[int, float]:
    """By round, the numbers of the one of ours that somebody of this kind is compared with: whose median is best. Empty
    if there is none."""
    ours: dict[str, dict[int, float]] = {}
    for each in samples:
        subject = BY_NAME[each.subject]
        if subject.ours and (question.across or subject.kind == kind):
            ours.setdefault(each.subject, {})[each.round] = each.values[question.key]
    pick = min if question.less_is_better else max
    return pick(ours.values(), key=lambda rounds: statistics.median(rounds.values()), default={})


def failed(question: Question, samples: Sequence[Sample]) -> list[str]:
    """Who could not be measured, and why."""
    mine = [each for each in samples if each.experiment == question.source and "failed" in each.values]
    return [f"- {each.subject}, round {each.round + 1}: {each.values['failed'].splitlines()[0]}" for each in mine]


def absent() -> list[str]:
    """Who could not run, and what it needs."""
    return [f"{each.name}: not run, {missing} is not installed" for each in SUBJECTS if (missing := each.missing())]


# ---- Markdown ------------------------------------------------------------------------------------------------------


def markdown(header: Values, samples: Sequence[Sample]) -> str:
    parts = ["# pyfanout beside its peers", _about(header), _worse_first(samples)]
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
    said = []
    for question in QUESTIONS:
        for line in lines(question, samples):
            if line.verdict.startswith("**"):
                ratio = statistics.median(line.ratios)
                times = _number(1 / ratio) if ratio else "∞"
                said.append(f"- {question.name}: {line.subject}, {times} times as good")
    if not said:
        rounds = len({each.round for each in samples})
        return "Nobody was better in every round." if rounds >= ROUNDS_TO_RANK else "Too few rounds to rank anybody."
    return "\n".join(["Better than the best of ours, in every round:", "", *said])


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
    if line.load_busy > LOAD_LIMIT and question.key == "per_s":
        said.append("the load generator was the limit")
    if line.load_late > LATE_LIMIT and question.is_open:
        said.append(f"the load generator was late, {line.load_late:.0%} of the p99")
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
        f"<p>{OVERVIEW}</p>{overview(samples)}",
        _listed(_about(header)),
        _listed(_worse_first(samples)),
    ]
    for question in QUESTIONS:
        table = lines(question, samples)
        if table:
            parts.append(f"<h2>{html.escape(question.text)}</h2>{bars(question, table)}")
            if question.name.startswith("latency"):
                parts.append(percentiles(question, samples))
            if question.points:
                parts.append(curves(question, table))
            parts += [_rows(question, table), f"<p>{html.escape(question.notes)}</p>"]
            parts.append(_listed("\n".join(failed(question, samples))))
    return "\n".join(parts) + "</html>\n"


OVERVIEW = "Each dot is somebody, at the median of the ratios; right of 1 the best of ours is better than they are."
EDGE = 100.0
"""Where the picture ends: who lost something where we lost nothing is there."""


def overview(samples: Sequence[Sample]) -> str:
    """Everybody, in every question, to the best of ours."""
    pyplot = _pyplot()
    tables = [(question, lines(question, samples)) for question in QUESTIONS]
    asked = [(question, table) for question, table in tables if any(line.ratios for line in table)]
    figure, axes = pyplot.subplots(figsize=(9, 1 + 0.3 * len(asked)))
    for at, (_, table) in enumerate(reversed(asked)):
        for line in table:
            if line.ratios:
                ratio = min(max(statistics.median(line.ratios), 1 / EDGE), EDGE)
                colour = {"we are better": "#2a7f3f", "**better than we are**": "#c0392b"}.get(line.verdict, "#9aa5b1")
                axes.plot(ratio, at, "o", ms=5, color=colour, alpha=0.75, mec="none")
    axes.set_xscale("log")
    axes.axvline(1, color="#222", lw=1)
    axes.set_yticks(range(len(asked)), [question.name for question, _ in reversed(asked)], fontsize=8)
    axes.set_xlabel("worse than a peer in every round (red) | spreads overlap (grey) | better in every round (green)")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return _svg(figure)


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


def bars(question: Question, table: Sequence[Line]) -> str:
    """A bar for each, with the spread of the rounds."""
    pyplot = _pyplot()
    figure, axes = pyplot.subplots(figsize=(9, 0.6 + 0.26 * len(table)))
    for at, line in enumerate(reversed(table)):
        middle = line.median
        colour = "#2a7f3f" if BY_NAME[line.subject].ours else "#9aa5b1"
        spread = [[middle - min(line.values)], [max(line.values) - middle]]
        axes.barh(at, middle, color=colour, xerr=spread, error_kw={"lw": 1})
    axes.set_yticks(range(len(table)), [line.subject for line in reversed(table)], fontsize=8)
    axes.set_xlabel(question.unit)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return _svg(figure)


def curves(question: Question, table: Sequence[Line]) -> str:
    """What becomes of the number along the points of the question."""
    pyplot = _pyplot()
    figure, axes = pyplot.subplots(figsize=(9, 4.5))
    for line in table:
        ours = BY_NAME[line.subject].ours
        axes.plot(line.curve, label=line.subject, lw=2.2 if ours else 1, ls="-" if ours else "--", marker=".")
    axes.set_yscale("log")
    axes.set_xticks(range(len(question.points)), [point for point, _ in question.points])
    axes.set_xlabel(question.along)
    axes.set_ylabel(question.unit)
    axes.legend(fontsize=6, ncols=2)
    return _svg(figure)


def percentiles(question: Question, samples: Sequence[Sample]) -> str:
    """Latency by percentile, on log axes: the median of the rounds."""
    pyplot = _pyplot()
    figure, axes = pyplot.subplots(figsize=(9, 4.5))
    mine = [each for each in samples if each.experiment == question.source and "failed" not in each.values]
    for name in dict.fromkeys(each.subject for each in mine):
        runs = [each.values["load"][0]["latency_ns"]["fast"] for each in mine if each.subject == name]
        points = [statistics.median(run[percentile] for run in runs) / 1e3 for percentile in PERCENTILES]
        ours = BY_NAME[name].ours
        axes.plot(range(len(PERCENTILES)), points, label=name, lw=2.2 if ours else 1, ls="-" if ours else "--")
    axes.set_yscale("log")
    axes.set_xticks(range(len(PERCENTILES)), PERCENTILES)
    axes.set_ylabel("us")
    axes.legend(fontsize=6, ncols=2)
    return _svg(figure)


def _pyplot() -> Any:
    import matplotlib  # noqa: PLC0415 - an extra, and only for the report

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "pyfanout"  # the same picture from the same samples
    matplotlib.rcParams["svg.fonttype"] = "none"  # letters, not their outlines
    from matplotlib import pyplot  # noqa: PLC0415 - after its backend is chosen

    return pyplot


def _svg(figure: Any) -> str:
    out = io.StringIO()
    figure.tight_layout()
    figure.savefig(out, format="svg", metadata={"Date": None})
    _pyplot().close(figure)
    text = out.getvalue()
    return text[text.index("<svg") :]
