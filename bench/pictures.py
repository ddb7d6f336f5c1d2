"""The pictures of the report, as SVG, drawn by matplotlib."""

from __future__ import annotations

import io
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bench.field import BY_NAME, SUBJECTS
from bench.questions import QUESTIONS, Question
from bench.run import Sample
from bench.standings import Line, lines

BEYOND = {"p50": 500, "p90": 100, "p99": 10, "p999": 1}
"""The percentiles that are drawn, and how many of a thousand requests lie beyond each."""
ENOUGH_BEYOND = 10
"""With fewer requests beyond it a percentile is luck, and is not drawn; the median always is."""
EDGE = 100.0
"""Where the overview ends: who lost something where we lost nothing is there."""
ABOUT_OVERVIEW = (
    "Each dot is somebody, at the median of the ratios; right of 1 ours, that does the same work, is better. Of those"
    " who were clearly better the worst for us is named. An arrowhead at the edge stands for"
    f" {EDGE:.0f} times or more."
)
MARGIN, LETTER = 1.3, 1.15
"""What the overview's axis goes on beyond a dot, and for each letter of a name to the left of it, as ratios."""
WIDE = 30.0
"""Where the longest bar is more than so many times the shortest the axis is logarithmic, or nobody sees the short."""
GREEN, RED, GREY = "#2a7f3f", "#c0392b", "#9aa5b1"
OURS = ((GREEN, "-"), ("#7cb342", "--"), ("#00695c", ":"), ("#9e9d24", "-."))
OTHERS = (
    *(("#1f77b4", "-"), ("#d62728", "--"), ("#ff7f0e", "-."), ("#7b4ab5", ":"), ("#111111", "--")),
    *(("#e377c2", "-"), ("#8c564b", "-."), ("#17a2c4", ":")),
)
"""Colour and line of those who speak the same: of ours, and of the others."""
MARKERS = "osD^vPX*"
COLUMNS = 3
"""Of panels, at most, in a picture."""


# ---- everybody, in every question ----------------------------------------------------------------------------------


def overview(samples: Sequence[Sample]) -> str:
    """Everybody, in every question, to ours that does the same work."""
    tables = [(question.name, [line for line in lines(question, samples) if line.ratios]) for question in QUESTIONS]
    asked = [(name, table) for name, table in reversed(tables) if table]
    figure, axes = _pyplot().subplots(figsize=(9, 1.2 + 0.3 * len(asked)))
    for at, (_, table) in enumerate(asked):
        _row(axes, at, table)
    axes.set_xscale("log")
    axes.set_xticks([1 / EDGE, 0.1, 1, 10, EDGE], [f"1/{EDGE:.0f}", "1/10", "1", "10", f"{EDGE:.0f}"], fontsize=9)
    axes.set_xlim(min((_left(table) for _, table in asked), default=1 / EDGE), EDGE * MARGIN)
    axes.axvline(1, color="#222", lw=1)
    axes.set_yticks(range(len(asked)), [name for name, _ in asked], fontsize=9)
    axes.set_ylim(-0.7, len(asked) - 0.3)
    axes.grid(axis="y", color="#eee", lw=0.8)
    axes.set_xlabel("how many times as good ours is", fontsize=9)
    _meanings(axes)
    return _svg(figure)


def _row(axes: Any, at: int, table: Sequence[Line]) -> None:
    """The dots of one question, and the name of the worst for us."""
    for line in table:
        colour = RED if line.better_than_ours else GREEN if line.verdict == "we are better" else GREY
        ratio = _ratio(line)
        marker = ">" if ratio == EDGE else "<" if ratio == 1 / EDGE else "o"
        axes.plot(ratio, at, marker, ms=6, color=colour, alpha=0.75, mec="none", zorder=3)
    if worst := _worst(table):
        _name(axes, at, worst, above=any(_ratio(line) < _ratio(worst) for line in table))


def _name(axes: Any, at: int, line: Line, *, above: bool) -> None:
    """Writes it to the left of the dot, or above where another dot, which is not red, is in the way."""
    look = {"color": RED, "fontsize": 8, "ha": "right", "textcoords": "offset points"}
    place = {"xytext": (3, 3), "va": "bottom"} if above else {"xytext": (-6, 0), "va": "center"}
    axes.annotate(line.subject, (_ratio(line), at), bbox={"fc": "white", "ec": "none", "pad": 0.5}, **look, **place)


def _worst(table: Sequence[Line]) -> Line | None:
    """Of those who were clearly better: who is furthest to the left."""
    return min((line for line in table if line.better_than_ours), key=_ratio, default=None)


def _left(table: Sequence[Line]) -> float:
    """How far to the left the dots and the name go."""
    worst = _worst(table)
    name = _ratio(worst) / LETTER ** len(worst.subject) if worst else 1.0
    return min(name, *map(_ratio, table)) / MARGIN


def _ratio(line: Line) -> float:
    """Where its dot is."""
    return min(max(statistics.median(line.ratios), 1 / EDGE), EDGE)


def _meanings(axes: Any) -> None:
    """The legend, above all dots."""
    words = {
        ("o", RED): "better than ours",
        ("o", GREY): "equal, overlap or not ranked",
        ("o", GREEN): "ours is better",
        (">", "#222"): f"{EDGE:.0f} times or more",
    }
    for (marker, colour), text in words.items():
        axes.plot([], [], marker, ms=6, color=colour, mec="none", label=text)
    place = {"loc": "lower right", "bbox_to_anchor": (1, 1), "handletextpad": 0.1, "columnspacing": 1.2}
    axes.legend(fontsize=8, ncols=len(words), frameon=False, **place)


# ---- one question --------------------------------------------------------------------------------------------------


def bars(question: Question, table: Sequence[Line], number: Callable[[float], str]) -> str:
    """A bar for each, with the spread of the rounds and its median as the page writes a `number`."""
    figure, axes = _pyplot().subplots(figsize=(9, 0.6 + 0.26 * len(table)))
    start = _scale(axes, question, [line.median for line in table])
    for at, line in enumerate(reversed(table)):
        low, middle, high = (max(value, start) for value in (min(line.values), line.median, max(line.values)))
        colour = GREEN if BY_NAME[line.subject].ours else GREY
        spread = [[middle - low], [high - middle]]
        axes.barh(at, middle - start, left=start, color=colour, xerr=spread, error_kw={"lw": 1})
        beside = {"xytext": (4, 0), "textcoords": "offset points"}
        axes.annotate(number(line.median), (high, at), va="center", fontsize=8, **beside)
    axes.set_xlim(left=start)
    axes.set_ylim(-0.6, len(table) - 0.4)
    axes.set_yticks(range(len(table)), [line.subject for line in reversed(table)], fontsize=8)
    axes.set_xlabel(f"{question.unit} (bar and number: the median of the rounds; line: their spread)", fontsize=9)
    return _svg(figure)


def _scale(axes: Any, question: Question, medians: Sequence[float]) -> float:
    """Chooses the axis of the bars, and returns where they start: 0, or a power of ten where there is none."""
    some = [value for value in medians if value > 0]
    start = 0.0
    if not some or max(some) <= WIDE * min(some):
        axes.set_xscale("linear")
    elif "lost" in question.key:  # to lose none is what matters, and a log axis has no place for 0
        axes.set_xscale("symlog", linthresh=1)
    else:
        axes.set_xscale("log")
        start = 10.0 ** math.floor(math.log10(0.8 * min(some)))
    axes.xaxis.set_major_formatter(_plain)
    return start


def _plain(value: float, _: int) -> str:
    """Beside a tick: no powers of ten."""
    return f"{value:,.7g}"


def curves(question: Question, table: Sequence[Line]) -> str:
    """What becomes of the number along the points of the question."""
    points = [point for point, _ in question.points]
    return _panels({line.subject: line.curve for line in table}, points, question.along, question.unit)


def percentiles(question: Question, samples: Sequence[Sample]) -> str:
    """Latency by percentile: the median of the rounds."""
    runs: dict[str, list[dict[str, int]]] = {}
    for each in samples:
        if each.experiment == question.source and "failed" not in each.values:
            runs.setdefault(each.subject, []).append(each.values["load"][0]["latency_ns"]["fast"])
    series = {name: _latencies_us(mine) for name, mine in runs.items()}
    drawn = max(map(len, series.values()), default=0)
    return _panels(series, [f"p{100 - beyond / 10:g}" for beyond in BEYOND.values()][:drawn], "", "us")


def _latencies_us(runs: Sequence[Mapping[str, int]]) -> list[float]:
    """At those of the percentiles, from the median on, that enough requests of each run lie beyond."""
    count = min(run["count"] for run in runs)
    enough = [name for name, beyond in BEYOND.items() if name == "p50" or count * beyond >= ENOUGH_BEYOND * 1000]
    return [statistics.median(run[name] for run in runs) / 1e3 for name in enough]


def _panels(series: Mapping[str, Sequence[float]], ticks: Sequence[str], along: str, unit: str) -> str:
    """Lines on a log axis that all share, a panel for those who speak the same: 29 in one nobody can tell apart."""
    kinds = [kind for kind in dict.fromkeys(each.kind for each in SUBJECTS) if _of(kind, series)]
    rows = max(1, math.ceil(len(kinds) / COLUMNS))
    columns = max(1, math.ceil(len(kinds) / rows))
    shape = {"sharey": True, "squeeze": False, "figsize": (3.2 * columns, 4.3 * rows)}
    figure, grid = _pyplot().subplots(rows, columns, **shape)
    for axes in grid.flat[len(kinds) :]:
        axes.remove()
    for axes, kind in zip(grid.flat, kinds, strict=False):
        for name in sorted(_of(kind, series), key=lambda name: -series[name][-1]):  # as they end, so is the legend
            axes.plot(series[name], label=name, ms=4, **_look(name))
        _around(axes, kind, ticks, along)
    for axes in grid[:, 0]:
        axes.set_ylabel(unit)
    _log(grid[0, 0])
    return _svg(figure)


def _around(axes: Any, kind: str, ticks: Sequence[str], along: str) -> None:
    """What stands around the lines of a panel; the legend below, where it covers none."""
    axes.set_title(kind, fontsize=10)
    axes.set_xticks(range(len(ticks)), ticks, fontsize=8)
    axes.set_xlabel(along, fontsize=8)
    axes.grid(color="#eee", lw=0.8)
    below = (-0.03, -0.22 if along else -0.12)
    axes.legend(fontsize=7.5, frameon=False, loc="upper left", bbox_to_anchor=below, handlelength=3.5)


def _of(kind: str, series: Mapping[str, Sequence[float]]) -> list[str]:
    return [name for name in series if BY_NAME[name].kind == kind]


def _look(name: str) -> dict[str, Any]:
    """The same in all pictures. Ours are thick and below, so that a thin one upon them is still seen."""
    mine = BY_NAME[name]
    alike = [each.name for each in SUBJECTS if (each.kind, each.ours) == (mine.kind, mine.ours)]
    looks, at = OURS if mine.ours else OTHERS, alike.index(name)
    colour, style = looks[at % len(looks)]
    width = {"lw": 3, "zorder": 2} if mine.ours else {"lw": 1.2, "zorder": 3}
    return {"color": colour, "ls": style, "marker": MARKERS[at % len(MARKERS)], **width}


def _log(axes: Any) -> None:
    """Of the y axis; with 2 and 5 between the powers of ten where there are few of these."""
    axes.set_yscale("log", nonpositive="mask")
    low, high = axes.get_ylim()
    axes.yaxis.get_major_locator().set_params(subs=(1, 2, 5) if high < 1e3 * low else (1,))
    axes.yaxis.set_major_formatter(_plain)
    axes.yaxis.set_minor_formatter("")


# ---- matplotlib ----------------------------------------------------------------------------------------------------


def _pyplot() -> Any:
    import matplotlib  # noqa: PLC0415 - an extra, and only for the report

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "pyfanout"  # the same picture from the same samples
    matplotlib.rcParams["svg.fonttype"] = "none"  # letters, not their outlines
    matplotlib.rcParams["axes.spines.top"] = matplotlib.rcParams["axes.spines.right"] = False
    from matplotlib import pyplot  # noqa: PLC0415 - after its backend is chosen

    return pyplot


def _svg(figure: Any) -> str:
    out = io.StringIO()
    figure.tight_layout()
    figure.savefig(out, format="svg", metadata={"Date": None})
    _pyplot().close(figure)
    text = out.getvalue()
    return text[text.index("<svg") :]
