"""The picture of a report, as SVG, drawn by matplotlib."""

from __future__ import annotations

import io
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from bench.model import Question, Sample
from bench.standings import Line, lines

EDGE = 100.0
"""Where the overview ends: who lost something where we lost nothing is there."""
ABOUT_OVERVIEW = (
    "Each dot is somebody, at the median of the ratios; right of 1 ours, that does the same work, is better. Of those"
    " who were clearly better the worst for us is named. An arrowhead at the edge stands for"
    f" {EDGE:.0f} times or more."
)
MARGIN, LETTER = 1.3, 1.15
"""What the axis goes on beyond a dot, and for each letter of a name to the left of it, as ratios."""
GREEN, RED, GREY = "#2a7f3f", "#c0392b", "#9aa5b1"
MEANINGS = {RED: "better than ours", GREY: "equal, overlap or not ranked", GREEN: "ours is better"}


def overview(questions: Iterable[Question], samples: Sequence[Sample]) -> str:
    """Everybody, in every question, to ours that does the same work."""
    tables = [(each.name, [line for line in lines(each, samples) if line.pairs]) for each in questions]
    rows = [(name, table) for name, table in reversed(tables) if table]
    figure, axes = _pyplot().subplots(figsize=(9, 1.2 + 0.3 * len(rows)))
    left = min([1.0, *(_row(axes, at, table) for at, (_, table) in enumerate(rows))])
    axes.set_xscale("log")
    axes.set_xticks([1 / EDGE, 0.1, 1, 10, EDGE], [f"1/{EDGE:.0f}", "1/10", "1", "10", f"{EDGE:.0f}"], fontsize=9)
    axes.set_xlim(left / MARGIN, EDGE * MARGIN)
    axes.axvline(1, color="#222", lw=1)
    axes.set_yticks(range(len(rows)), [name for name, _ in rows], fontsize=9)
    axes.set_ylim(-0.7, len(rows) - 0.3)
    axes.grid(axis="y", color="#eee", lw=0.8)
    axes.set_xlabel("how many times as good ours is", fontsize=9)
    marks = [axes.plot([], [], "o", color=colour, mec="none")[0] for colour in MEANINGS]
    place = {"loc": "lower right", "bbox_to_anchor": (1, 1), "handletextpad": 0.1, "columnspacing": 1.2}
    axes.legend(marks, MEANINGS.values(), fontsize=8, ncols=len(marks), frameon=False, **place)
    return _svg(figure)


def _row(axes: Any, at: int, table: Sequence[Line]) -> float:
    """The dots of one question, and the name of the worst for us; how far they go to the left."""
    for line in table:
        colour = RED if line.better_than_ours else GREEN if line.verdict == "we are better" else GREY
        marker = ">" if _ratio(line) == EDGE else "<" if _ratio(line) == 1 / EDGE else "o"
        axes.plot(_ratio(line), at, marker, ms=6, color=colour, alpha=0.75, mec="none", zorder=3)
    least = min(map(_ratio, table))
    worst = min((line for line in table if line.better_than_ours), key=_ratio, default=None)
    if worst is None:
        return least
    _name(axes, at, worst, above=least < _ratio(worst))
    return min(least, _ratio(worst) / LETTER ** len(worst.subject))


def _ratio(line: Line) -> float:
    """Where its dot is."""
    return min(max(statistics.median(line.ratios), 1 / EDGE), EDGE)


def _name(axes: Any, at: int, line: Line, *, above: bool) -> None:
    """Writes it to the left of the dot, or above where another dot, which is not red, is in the way."""
    look = {"color": RED, "fontsize": 8, "ha": "right", "textcoords": "offset points"}
    place = {"xytext": (3, 3), "va": "bottom"} if above else {"xytext": (-6, 0), "va": "center"}
    axes.annotate(line.subject, (_ratio(line), at), bbox={"fc": "white", "ec": "none", "pad": 0.5}, **look, **place)


def _pyplot() -> Any:
    import matplotlib  # noqa: PLC0415 - an extra, and only for the picture

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
