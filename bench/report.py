"""What the samples mean: for every row of the table what was asked, what was measured, and the verdict.

A ratio is taken within a round, between runs a few seconds apart. The median and the spread (min..max) of the
rounds are shown. When the spread of a comparison reaches across "equal", nobody is called better: "overlap".
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.run import Sample, Values

BEGIN_MARK = "<!-- last full run: written by `python -m bench dispatch --write-readme` -->"
END_MARK = "<!-- end of last full run -->"

QUIET_SHARE = 0.10  # of one core; an idle machine's own housekeeping is 1 to 3 %
ROUNDS_TO_RANK = 3  # by chance alone, three rounds agree on one side one time in four


@dataclass(frozen=True, slots=True)
class Asked:
    """The bounds for the median of the rounds, and for the worst of them."""

    at_least: float | None = None
    at_most: float | None = None
    no_round_under: float | None = None
    no_round_over: float | None = None

    def met_by(self, values: Sequence[float]) -> bool:
        middle = statistics.median(values)
        return (
            (self.at_least is None or middle >= self.at_least)
            and (self.at_most is None or middle <= self.at_most)
            and (self.no_round_under is None or min(values) >= self.no_round_under)
            and (self.no_round_over is None or max(values) <= self.no_round_over)
        )

    def text(self, number: Callable[[float], str]) -> str:
        parts = []
        if self.at_least is not None:
            parts.append(f"at least {number(self.at_least)}")
        if self.at_most is not None:
            parts.append(f"at most {number(self.at_most)}")
        if self.no_round_under is not None:
            parts.append(f"no round under {number(self.no_round_under)}")
        if self.no_round_over is not None:
            parts.append(f"no round over {number(self.no_round_over)}")
        return ", ".join(parts)


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: one value per round, made of the samples of one experiment."""

    label: str
    experiment: str
    key: str  # of Sample.values
    asked: Asked
    format: str  # of one number, with its unit
    rival: str | None = None
    combine: Callable[[float, float], float] | None = None  # ours and the rival's of one round into one number
    equal: float | None = None  # what `combine` gives for two equals
    better: int = 1  # 1: more is better; -1: less is

    def number(self, value: float) -> str:
        return self.format.format(value)

    def values(self, samples: Sequence[Sample]) -> list[float]:
        """One number per round, or several where a round measured several."""
        found: dict[int, dict[str, Values]] = {}
        for sample in samples:
            if sample.experiment == self.experiment:
                found.setdefault(sample.round, {})[sample.subject] = sample.values
        if self.combine is None or self.rival is None:
            ours = [one["pyfanout"][self.key] for one in found.values() if "pyfanout" in one]
            return [v for value in ours for v in (value if isinstance(value, list) else [value])]
        return [
            self.combine(one["pyfanout"][self.key], one[self.rival][self.key])
            for one in found.values()
            if "pyfanout" in one and self.rival in one
        ]

    def rank(self, values: Sequence[float]) -> str:
        """How we stand to the rival, if there are rounds enough and they agree on it."""
        if self.equal is None:
            return ""
        if len(values) < ROUNDS_TO_RANK:
            return "too few rounds to rank"
        if min(values) <= self.equal <= max(values):
            return "overlap"
        return "better" if (values[0] > self.equal) == (self.better > 0) else "worse"


def ratio(ours: float, theirs: float) -> float:
    return ours / theirs


def difference(ours: float, theirs: float) -> float:
    return ours - theirs


def _speed(label: str, experiment: str, asked: Asked) -> Row:
    return Row(label, experiment, "per_s", asked, "{:.3f}", "reuseport", ratio, 1.0)


def _master(label: str, experiment: str) -> Row:
    return Row(label, experiment, "master_s_per_100k", Asked(at_most=0.30), "{:.3f} s")


def _tail(load: int) -> Row:
    label = f"p99 of 1 ms requests, 1 % take 100 ms, 4 blocking workers, {load} % load, to the shared listener"
    return Row(label, f"tail-{load}", "p99_ms", Asked(at_most=1.03), "{:.3f}", "shared", ratio, 1.0, -1)


def _held(label: str, experiment: str) -> Row:
    return Row(f"4,000 held, 4 asyncio workers, {label}, max/mean", experiment, "max_to_mean",
               Asked(at_most=1.01), "{:.4f}")  # fmt: skip


def _added(handler: str, rate: int, most: float) -> Row:
    label = f"p50 added to SO_REUSEPORT's, {handler}, 4 workers, {rate:,}/s"
    return Row(label, f"added-{handler}-{rate}", "p50_us", Asked(at_most=most), "{:.1f} us", "reuseport",
               difference, 0.0, -1)  # fmt: skip


def _sequence(handler: str) -> Row:
    label = f"400 one after the other, 4 idle {handler} workers: the furthest from 100"
    return Row(label, f"sequence-{handler}", "off_by", Asked(no_round_over=0), "{:.0f}")


def _idle(handler: str) -> tuple[Row, Row]:
    label = f"idle, 2 {handler} workers and master"
    none = Asked(no_round_over=0)
    return (
        Row(f"{label}: CPU", f"idle-{handler}", "idle_cpu_ns", none, "{:.0f} ns"),
        Row(f"{label}: context switches", f"idle-{handler}", "idle_wakeups", none, "{:.0f}"),
    )


ROWS = (
    _speed("conn/s, blocking, 2 workers, one core, to SO_REUSEPORT", "throughput-blocking-one-core",
           Asked(at_least=1.05, no_round_under=0.95)),
    _speed("conn/s, asyncio streams, 2 workers, one core, to SO_REUSEPORT", "throughput-asyncio-one-core",
           Asked(at_least=1.00)),
    _speed("conn/s, asyncio streams, 2 workers, core each, to SO_REUSEPORT", "throughput-asyncio-core-each",
           Asked(at_least=1.00)),
    _master("master CPU per 100,000 connections, blocking, one core", "throughput-blocking-one-core"),
    _master("master CPU per 100,000 connections, asyncio, one core", "throughput-asyncio-one-core"),
    _tail(50),
    _tail(70),
    _tail(85),
    _held("round-robin at 2,000/s", "hold-round-robin-2000"),
    _held("least-connections at 2,000/s", "hold-least-connections-2000"),
    _held("least-connections all at once", "hold-least-connections-at-once"),
    _sequence("blocking"),
    _sequence("asyncio"),
    _added("blocking", 500, 75),
    _added("blocking", 5000, 30),
    _added("asyncio", 500, 75),
    _added("asyncio", 5000, 30),
    Row("from SIGKILL of the only worker to the first answer of its replacement", "respawn", "respawn_ms",
        Asked(at_most=3.0), "{:.2f} ms"),
    *_idle("blocking"),
    *_idle("asyncio"),
)  # fmt: skip


def table(samples: Sequence[Sample]) -> str:
    """Markdown, one line for every row that has samples."""
    lines = [
        "| what | asked | median (min..max) | n | verdict |",
        "|---|---|---|---|---|",
    ]
    for row in ROWS:
        values = row.values(samples)
        if not values:
            continue
        measured = f"{row.number(statistics.median(values))} ({row.number(min(values))}..{row.number(max(values))})"
        lines.append(
            f"| {row.label} | {row.asked.text(row.number)} | {measured} | {len(values)} "
            f"| {verdict(row, values, samples)} |"
        )
    return "\n".join(lines)


def verdict(row: Row, values: Sequence[float], samples: Sequence[Sample]) -> str:
    """Reached or missed, how we stand to the rival, and every error there was."""
    parts = ["reached" if row.asked.met_by(values) else "**missed**"]
    if rank := row.rank(values):
        parts.append(rank)
    for subject, kinds in errors(row.experiment, samples).items():
        parts.append(f"errors of {subject}: " + ", ".join(f"{n} {kind}" for kind, n in kinds.items()))
    return "; ".join(parts)


def errors(experiment: str, samples: Sequence[Sample]) -> dict[str, dict[str, int]]:
    """By subject and kind, over all rounds of an experiment."""
    found: dict[str, dict[str, int]] = {}
    for sample in samples:
        if sample.experiment == experiment:
            for kind, count in sample.values["errors"].items():
                kinds = found.setdefault(sample.subject, {})
                kinds[kind] = kinds.get(kind, 0) + count
    return found


def absolutes(samples: Sequence[Sample]) -> str:
    """The plain numbers behind the ratios: median of the rounds for every experiment and subject."""
    lines = [
        "| experiment | subject | median (min..max) | load generator busy | CPU of others |",
        "|---|---|---|---|---|",
    ]
    groups: dict[tuple[str, str], list[Values]] = {}
    for sample in samples:
        groups.setdefault((sample.experiment, sample.subject), []).append(sample.values)
    for (experiment, subject), rounds in groups.items():
        key = next(iter(rounds[0]))
        numbers = [v for one in rounds for v in (one[key] if isinstance(one[key], list) else [one[key]])]
        busy = f"{statistics.median(one['load_busy'] for one in rounds):.0%}" if "load_busy" in rounds[0] else ""
        lines.append(
            f"| {experiment} | {subject} | {key} {statistics.median(numbers):,.5g} "
            f"({min(numbers):,.5g}..{max(numbers):,.5g}) | {busy} "
            f"| {max(one['others_cpu'] for one in rounds):.0%} |"
        )
    return "\n".join(lines)


def noise(samples: Sequence[Sample]) -> str:
    """A warning when others had so much of the machine that the numbers mean little; else nothing."""
    loud: dict[str, set[str]] = {}
    for one in samples:
        if one.values.get("others_cpu", 0.0) > QUIET_SHARE:
            loud.setdefault(one.experiment, set()).add(one.subject)
    if not loud:
        return ""
    most = max(one.values.get("others_cpu", 0.0) for one in samples)
    hit = ", ".join(f"{experiment} ({'; '.join(sorted(subjects))})" for experiment, subjects in sorted(loud.items()))
    return f"**The machine was not quiet**: others used up to {most:.0%} of a core, during {hit}. Measure again."


def write_block(readme: Path, block: str) -> None:
    """Replaces what stands between the two marks of bench/README.md."""
    text = readme.read_text()
    before, begin, rest = text.partition(BEGIN_MARK)
    _, end, after = rest.partition(END_MARK)
    if not begin or not end:
        raise ValueError(f"{readme} has lost its marks: {BEGIN_MARK} ... {END_MARK}")
    readme.write_text(f"{before}{begin}\n\n{block}\n\n{end}{after}")
