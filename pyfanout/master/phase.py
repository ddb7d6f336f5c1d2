"""How far a server's stop has come: read by all that decides what a worker's end means."""

from __future__ import annotations

from enum import Enum, auto


class Phase(Enum):
    """Of one server; it only moves downwards."""

    SERVING = auto()
    FINISHING = auto()
    """Graceful stop: the core accepts and passes on what is queued."""
    FINISHED = auto()
    """All of that is passed on: workers read what is left in their channels, then their end."""
    LATE = auto()
    """The drain timeout of a graceful stop is over: workers stop now, and none is started any more."""
    AT_ONCE = auto()
    """Fast stop: as LATE, and whatever waits for a worker is given up."""

    @property
    def is_stop(self) -> bool:
        return self is not Phase.SERVING
