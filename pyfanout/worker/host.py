"""What the rooms of a worker ask of it. The rooms import this and not the worker, which imports them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from pyfanout.core import WorkerEnds
    from pyfanout.worker.background import Background


class Host(Protocol):
    """The worker that a room belongs to; see `worker.Worker` for each of these."""

    slot: int
    ends: WorkerEnds
    background: Background
    most: int
    forked: bool
    draining: bool

    def ended(self) -> None: ...
    def is_short(self, short: bool, of: str = ...) -> None: ...
    def short_of(self, error: int) -> None: ...
