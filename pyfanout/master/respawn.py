"""When each slot gets its next worker. Forks none.

At once after a first death, then after growing delays; a slot whose workers die again and again is FAILED, and waits
longest. `timing` has the numbers.
"""

from __future__ import annotations

import logging
import random
import time

from pyfanout.master import timing
from pyfanout.master.roster import Roster, Slot

log = logging.getLogger("pyfanout.master")


class Respawns:
    """Of the slots of one roster: `Slot.respawn_at_ns` is set here, and cleared when the slot has its worker."""

    def __init__(self, roster: Roster, min_uptime_ns: int) -> None:
        self._roster = roster
        self._min_uptime_ns = min_uptime_ns

    def due(self, now_ns: int) -> Slot | None:
        """The slot that has waited longest for its worker, if the time of one has come."""
        waiting = [(slot.respawn_at_ns, slot.number) for slot in self._roster.slots if slot.respawn_at_ns is not None]
        at_ns, number = min(waiting, default=(now_ns + 1, 0))
        return self._roster.slots[number] if at_ns <= now_ns else None

    @property
    def pending(self) -> bool:
        """A slot waits for its next worker."""
        return any(slot.respawn_at_ns is not None for slot in self._roster.slots)

    def deadlines(self) -> list[int]:
        return [slot.respawn_at_ns for slot in self._roster.slots if slot.respawn_at_ns is not None]

    def now(self, slot: Slot) -> None:
        slot.respawn_at_ns = time.monotonic_ns()

    def later(self, slot: Slot) -> None:
        """At once after a first death, else when the delay is over."""
        delay_ns = timing.respawn_delay_ns(slot.deaths, random.random(), slot.failed)
        if delay_ns:
            log.info("%s is started again in %.1f s (death %d in a row)", slot, delay_ns / 1e9, slot.deaths)
        slot.respawn_at_ns = time.monotonic_ns() + delay_ns

    def after_failure(self, slot: Slot) -> None:
        """Its new worker could not be forked, or has failed beside one that serves: never at once."""
        slot.deaths += 1
        slot.respawn_at_ns = time.monotonic_ns() + timing.respawn_delay_ns(max(slot.deaths, 2), random.random())

    def forget(self) -> None:
        """No slot gets another worker."""
        for slot in self._roster.slots:
            slot.respawn_at_ns = None

    def count_death(self, slot: Slot, ready_ns: int | None, *, served: bool, resigned: bool) -> bool:
        """Its worker, that was ready since `ready_ns`, is lost. Whether the slot has FAILED by that."""
        now_ns = time.monotonic_ns()
        lived = timing.has_lived(None if ready_ns is None else now_ns - ready_ns, served, self._min_uptime_ns)
        slot.deaths = timing.deaths_in_a_row(slot.deaths, lived, resigned)
        if not slot.deaths:
            return False
        full_window = len(slot.died_ns) == timing.BROKEN_WINDOW
        window_ns = now_ns - slot.died_ns[0] if full_window else None
        slot.died_ns.append(now_ns)
        before, slot.failed = slot.failed, timing.is_broken(slot.deaths, window_ns, self._min_uptime_ns)
        return slot.failed and not before
