"""The pictures of the report, as SVG, drawn by matplotlib."""

from __future__ import annotations

import io
import statistics
from collections.abc import Sequence
from typing import Any

from bench.field import BY_NAME
from bench.questions import QUESTIONS, Question
from bench.run import Sample
from bench.standings import Line, lines

PERCENTILES = ("p50", "p90", "p99", "p999", "max")
ABOUT_OVERVIEW = (
    "Each dot is somebody, at the median of the ratios; right of 1 the best of ours is better than they are."
)
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
