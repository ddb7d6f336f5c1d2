"""What is called when something happens to the workers. A callback that raises is logged and changes nothing.

A callback may ask for a reload, another number of workers or a stop. So none is called while the master deals with an
event: what has happened waits in a queue until that is done.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from pyfanout.errors import ConfigError
from pyfanout.master.status import WorkerStatus

log = logging.getLogger("pyfanout.master")

EVENTS = {
    "fork": "a worker was forked",
    "ready": "it can take connections",
    "drain": "it takes no more, and finishes what it has begun",
    "exit": "it is dead; `detail` says how it ended",
    "hang": "it is hung, or was not ready in time; `detail` says why",
    "reload": "a reload is over; `detail` says why it failed, and is empty if it did not",
    "give_up": "a slot's workers died so often that it is FAILED, or nothing could start; `detail` says why",
    "pause": "accepting is paused by a shortage, new connections wait in the backlog; `detail` names it",
}


@dataclass(frozen=True, slots=True)
class Notice:
    """What a callback is given."""

    event: str
    """One of EVENTS."""
    worker: WorkerStatus | None
    """The worker that it is about; None: the whole server."""
    detail: str
    """In words; may be empty."""


Callback = Callable[[Notice], object]


class Callbacks:
    """By event, in the order in which they were added."""

    def __init__(self) -> None:
        self._of: dict[str, list[Callback]] = {event: [] for event in EVENTS}
        self._waiting: deque[Notice] = deque()

    def add(self, event: str, callback: Callback) -> None:
        """Raises ConfigError if there is no such event, or the callback is none."""
        if event not in EVENTS:
            raise ConfigError(f"no event is named {event!r}: {', '.join(EVENTS)}")
        if not callable(callback):
            raise ConfigError(f"on {event!r}: {callback!r} is not a function of one argument, the notice")
        self._of[event].append(callback)

    def post(self, notice: Notice) -> None:
        """It has happened: `run` calls the functions for it."""
        if self._of[notice.event]:
            self._waiting.append(notice)

    @property
    def due(self) -> bool:
        """`run` has something to do."""
        return bool(self._waiting)

    def run(self) -> None:
        """Call the functions for all that has happened, also for what happens meanwhile, in the order of the events."""
        while self._waiting:
            notice = self._waiting.popleft()
            for callback in self._of[notice.event]:
                try:
                    callback(notice)
                except Exception:
                    log.exception("a callback for %r raised an exception; the master goes on", notice.event)
