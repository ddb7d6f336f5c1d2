"""`pyfanout.Worker`: what an application sees of the worker that its process is."""

from __future__ import annotations

from typing import Protocol


class Inside(Protocol):
    """What a face shows of a `WorkerProcess`."""

    slot: int
    generation: int
    pid: int
    draining: bool

    def retire(self) -> None: ...


class Worker:
    """The worker that this process is: `pyfanout.current_worker()` returns it, and hooks are called with it."""

    __slots__ = ("_inside",)

    def __init__(self, inside: Inside) -> None:
        self._inside = inside

    def __repr__(self) -> str:
        return f"<Worker slot={self.slot} generation={self.generation} pid={self.pid}>"

    @property
    def slot(self) -> int:
        """From 0 to workers - 1; its replacement has the same."""
        return self._inside.slot

    @property
    def generation(self) -> int:
        """Counts the workers of this slot, from 1."""
        return self._inside.generation

    @property
    def pid(self) -> int:
        return self._inside.pid

    @property
    def draining(self) -> bool:
        """It takes no more connections, and exits when those that it has are done."""
        return self._inside.draining

    def retire(self) -> None:
        """Serve on until nothing comes to this worker any more, then drain and exit: the master starts a successor
        first, a dispatcher passes new connections to others. May be called again, and from a signal handler."""
        self._inside.retire()
