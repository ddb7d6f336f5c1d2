"""A rolling reload: which slots still wait for a new worker, and which new workers are on trial. Starts and stops none.

A new worker is on trial from its fork until it has been ready for `min_uptime` and then answers a ping. Meanwhile it
serves beside the old one, which stays as it is. A batch takes over as a whole: if one of its new workers dies, all of
its old ones are still there.
"""

from __future__ import annotations

from pyfanout.master.lifecycle import State
from pyfanout.master.roster import Slot, WorkerHandle


class Reload:
    """One of them, from the request until all slots have new workers, or the first new worker failed."""

    def __init__(self, slots: list[Slot], batch: int) -> None:
        self.total = len(slots)
        self.replaced = 0
        self.waiting = list(slots)
        self.trials: list[WorkerHandle] = []
        self._batch = batch

    def next(self) -> Slot | None:
        """The slot that shall get a new worker now, if any."""
        self.waiting = [slot for slot in self.waiting if not slot.retired]
        if len(self.trials) < self._batch:
            for slot in self.waiting:
                # One that boots, or is about to die, was forked before the reload was asked for: wait for its outcome.
                settled = slot.member is None or slot.member.state is State.READY
                if settled and slot.successor is None:
                    return slot
        return None

    def begin(self, member: WorkerHandle) -> None:
        """`member` is the new worker of a slot that has waited for one."""
        self.waiting.remove(member.slot)
        self.trials.append(member)

    @property
    def over(self) -> bool:
        return not self.waiting and not self.trials

    def passed(self) -> list[WorkerHandle]:
        """The workers on trial, if all of them have passed; they are on trial no longer."""
        self.trials = [member for member in self.trials if not member.slot.retired]
        if not all(member.fit for member in self.trials):
            return []
        passed, self.trials = self.trials, []
        return passed
