"""The model of the bench: a question is asked of subjects; its measure starts one of them, and gives numbers, which are
a sample.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import ge, le
from statistics import median
from typing import Any

from bench.field import BY_NAME, Subject

Values = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Scale:
    """How often things are done, and how long they last."""

    rounds: int
    starts: int
    """Of each subject in a round, where its speed is asked: the same server in another start differs by 8 %."""
    pinned: bool = True
    """The server has a core, and the load generator another; else both have all."""
    each_s: float = 1.5
    """Of a closed loop, in all starts of a round."""
    tail_s: float = 2.0
    kills: int = 5
    reloads: int = 1
    idle_s: float = 2.0
    window_s: float = 10.0
    cycles: int = 20
    deaths: int = 10_000


@dataclass(frozen=True, slots=True)
class Context:
    """What the measures of one run share."""

    scale: Scale
    server: int | None
    """The core that serves; None: all do."""
    load: int | None
    """The core that asks."""

    @property
    def start_s(self) -> float:
        """Of a closed loop, in one start."""
        return self.scale.each_s / self.scale.starts


Measure = Callable[[Context, Subject, int], Values]
"""Of one start of a subject, with a seed that is the same for all that are compared."""

BOUNDS = {"at least": (median, ge), "at most": (median, le), "no round under": (min, ge), "no round over": (max, le)}


@dataclass(frozen=True, slots=True)
class Asked:
    """The bounds for the rounds."""

    number: str
    """How one is written, with its unit."""
    bounds: dict[str, float]
    of: Callable[[float, float], float] | None = None
    """What is made of pyfanout's number and of the rival's; None: it is asked of pyfanout alone."""

    def met_by(self, values: Sequence[float]) -> bool:
        return all(meets(of(values), self.bounds[word]) for word, (of, meets) in BOUNDS.items() if word in self.bounds)

    def text(self) -> str:
        return ", ".join(f"{word} {self.number.format(bound)}" for word, bound in self.bounds.items())


@dataclass(frozen=True, slots=True)
class Question:
    name: str
    text: str
    unit: str
    key: str
    """The number that is compared, of `Sample.values`."""
    measure: Measure
    subjects: tuple[str, ...]
    """Each is compared with that which stands beside it in the field, or else with the first."""
    less_is_better: bool = True
    starts: bool = False
    """Its subjects are started several times in each round."""
    asked: Asked | None = None
    across: bool = False
    """All are compared; else only those that speak the same."""
    notes: str = ""
    unasked: str = ""
    """Why the others cannot, or need not."""
    points: tuple[tuple[str, str], ...] = ()
    """Other numbers that are shown: what stands above each, and its name in `Sample.values`."""
    added_to: str = ""
    """By how much its number is more than that of this subject, in the same round, is shown, too."""
    runs: tuple[int, int] | None = None
    """Of the load generator, those that are its own, from and to, where one experiment answers several questions."""
    measured_by: str = ""
    """The question whose samples this one reads, if not its own."""

    @property
    def experiment(self) -> str:
        """The name of its samples."""
        return self.measured_by or self.name

    @property
    def percentile(self) -> str:
        """Of times that were measured from a schedule; empty: it is not about them."""
        return self.key[:3] if self.key.startswith(("p50_", "p99_")) else ""

    @property
    def here(self) -> tuple[Subject, ...]:
        """Its subjects that can run."""
        return tuple(BY_NAME[name] for name in self.subjects if BY_NAME[name].missing() is None)


@dataclass(frozen=True, slots=True)
class Sample:
    experiment: str
    subject: str
    round: int
    values: Values
    start: int = 0
