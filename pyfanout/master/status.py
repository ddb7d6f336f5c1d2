"""What `Master.workers` and callbacks show of a worker: a copy, made when asked for."""

from __future__ import annotations

from dataclasses import dataclass

from pyfanout.core import ScoreView
from pyfanout.master.lifecycle import State
from pyfanout.master.roster import Slot, WorkerHandle


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """One worker, or a slot without one, at one moment."""

    slot: int
    """From 0."""
    pid: int | None
    """None: the slot has no worker now."""
    generation: int
    """Counts the workers of this slot, from 1; 0: it never had one."""
    state: str
    """BOOTING, READY, DRAINING, STOPPING, HUNG, KILLED, GONE; without a worker WAITING for its next one, or FAILED: it
    has died so often that the next try is seconds away."""
    since: float
    """Seconds for which it has been in that state."""
    in_flight: int
    """Connections that it has taken and not closed, by its own word. GONE: those that were lost with it."""
    last_pong: float | None
    """Seconds since it last answered a ping; None: it never has."""
    restarts: int
    """Workers of this slot after the first."""
    last_death: str | None
    """How this slot's worker ended last, in words; None: none ever has."""


def status_of(slot: Slot, member: WorkerHandle | None, view: ScoreView | None, now_ns: int) -> WorkerStatus:
    """Of a slot's worker, or of the slot if `member` is None."""
    if member is None or view is None:
        state, since_ns, pong_ns, in_flight = "FAILED" if slot.failed else "WAITING", slot.since_ns, None, 0
    else:
        state, since_ns, pong_ns = member.state.name, member.since_ns, member.pong_ns
        in_flight = view.in_hands if member.state is State.GONE else view.taken - view.done
    return WorkerStatus(
        slot=slot.number,
        pid=member.process.pid if member else None,
        generation=member.generation if member else slot.generation,
        state=state,
        since=(now_ns - since_ns) / 1e9,
        in_flight=in_flight,
        last_pong=None if pong_ns is None else (now_ns - pong_ns) / 1e9,
        restarts=slot.restarts,
        last_death=slot.last_death,
    )
