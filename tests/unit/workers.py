"""Workers without processes, for tests of what the master does with them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from pyfanout.link.link import Link
from pyfanout.master.lifecycle import State
from pyfanout.master.roster import Slot, WorkerHandle


def member(
    slot: Slot, control: Any = None, state: State = State.READY, *, seat: int | None = None, generation: int = 1
) -> WorkerHandle:
    """By default its seat in the core has the number of its slot, as the first worker's has."""
    process: Any = SimpleNamespace(pid=1000 * slot.number + generation)
    made = WorkerHandle(slot, generation, slot.number if seat is None else seat, process, Link(control), -1, None)
    made.state = state
    return made
