"""The picture of a report, as SVG, drawn by matplotlib, and its page."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from typing import Any

from bench.model import Question, Sample
from bench.standings import Line, lines

EDGE = 100.0
"""Where the overview ends: a rival that lost something where pyfanout lost nothing is there."""
MARGIN, LETTER = 1.3, 1.15
"""What the axis goes on beyond a dot, and for each letter of a name to the left of it, as ratios."""
GREEN, RED, GREY = "#2a7f3f", "#c0392b", "#9aa5b1"
MEANINGS = {RED: "better than pyfanout", GREY: "equal, overlap or not ranked", GREEN: "pyfanout is better"}
SETTINGS = {
    "svg.hashsalt": "pyfanout",  # the same picture from the same samples
    "svg.fonttype": "none",  # letters, not their outlines
    "axes.spines.top": False,
    "axes.spines.right": False,
}
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 64rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; width: 100%; margin: 1rem 0; font-size: 14px; }
td, th { text-align: left; padding: .2rem .6rem; border-bottom: 1px solid #ddd; } svg { max-width: 100%; }
"""


def overview(questions: Iterable[Question], samples: Sequence[Sample]) -> str:
    """Every rival, in every question, to pyfanout doing the same work."""
    import matplotlib  # noqa: PLC0415 - an extra, and only for the picture
    from matplotlib.figure import Figure  # noqa: PLC0415 - the same

    tables = [(each.name, [line for line in lines(each, samples) if line.pairs]) for each in questions]
    rows = [(name, table) for name, table in reversed(tables) if table]
    out = io.StringIO()
    with matplotlib.rc_context(SETTINGS):
        figure = Figure(figsize=(9, 1.2 + 0.3 * len(rows)))
        axes = figure.add_subplot()
        left = min([1.0, *(_row(axes, at, table) for at, (_, table) in enumerate(rows))])
        axes.set_xscale("log")
        axes.set_xticks([1 / EDGE, 0.1, 1, 10, EDGE], [f"1/{EDGE:.0f}", "1/10", "1", "10", f"{EDGE:.0f}"], fontsize=9)
        axes.set_xlim(left / MARGIN, EDGE * MARGIN)
        axes.axvline(1, color="#222", lw=1)
        axes.set_yticks(range(len(rows)), [name for name, _ in rows], fontsize=9)
        axes.set_ylim(-0.7, len(rows) - 0.3)
        axes.grid(axis="y", color="#eee", lw=0.8)
        axes.set_xlabel("how many times as good pyfanout is", fontsize=9)
        marks = [axes.plot([], [], "o", color=colour, mec="none")[0] for colour in MEANINGS]
        place = {"loc": "lower right", "bbox_to_anchor": (1, 1), "handletextpad": 0.1, "columnspacing": 1.2}
        axes.legend(marks, MEANINGS.values(), fontsize=8, ncols=len(marks), frameon=False, **place)
        figure.tight_layout()
        figure.savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue()[out.getvalue().index("<svg") :]


def _row(axes: Any, at: int, table: Sequence[Line]) -> float:
    """The dots of one question, and the name of the worst for pyfanout; how far left they go. The name is left of its
    dot, or above where another dot, which is not red, is in the way."""
    dots = [(line, min(max(line.ratio, 1 / EDGE), EDGE)) for line in table]
    for line, ratio in dots:
        colour = RED if line.better_than_ours else GREEN if line.verdict == "pyfanout is better" else GREY
        marker = ">" if ratio == EDGE else "<" if ratio == 1 / EDGE else "o"
        axes.plot(ratio, at, marker, ms=6, color=colour, alpha=0.75, mec="none", zorder=3)
    least = min(ratio for _, ratio in dots)
    red = [(ratio, line.subject) for line, ratio in dots if line.better_than_ours]
    if not red:
        return least
    worst, name = min(red)
    look = {"color": RED, "fontsize": 8, "ha": "right", "textcoords": "offset points"}
    place = {"xytext": (3, 3), "va": "bottom"} if least < worst else {"xytext": (-6, 0), "va": "center"}
    axes.annotate(name, (worst, at), bbox={"fc": "white", "ec": "none", "pad": 0.5}, **look, **place)
    return min(least, worst / LETTER ** len(name))


def page(report: str, overview: str) -> str:
    """A report as one page of HTML with its picture, which needs nothing else."""
    import markdown  # noqa: PLC0415 - an extra, and only for the page

    title, _, rest = report.removeprefix("# ").partition("\n")
    head = f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title><style>{STYLE}</style>"
    body = markdown.markdown(rest, extensions=["tables"])
    return f"{head}<h1>{title}</h1>\n{overview}\n{body}\n</html>\n"
