"""Rolling reloads: which slots still wait for a new worker, and which new workers are on trial. Forks none.

A new worker is on trial from its fork until it has been ready for `min_uptime` and then answers a ping. Meanwhile it
serves beside the old one, which stays as it is. A batch takes over as a whole: if one of its new workers dies, all of
its old ones are still there.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from pyfanout.host.log import counted, counted_are
from pyfanout.master.callbacks import Callbacks, Notice
from pyfanout.master.lifecycle import State
from pyfanout.master.roster import Roster, Slot, WorkerHandle

log = logging.getLogger("pyfanout.master")

WhenReloaded = Callable[[str], object]
"""Called at the end of a reload: why it failed, or nothing."""


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


class Reloads:
    """Of one roster, one at a time: all requests that come while one is under way are one more reload after it."""

    def __init__(
        self,
        roster: Roster,
        batch: int,
        callbacks: Callbacks,
        promote: Callable[[WorkerHandle], WorkerHandle | None],
        dismiss: Callable[[WorkerHandle], None],
    ) -> None:
        """`promote` gives a worker its slot and returns the old worker, if there was one; `dismiss` tells a new worker
        to leave."""
        self._roster = roster
        self._batch = batch
        self._callbacks = callbacks
        self._promote = promote
        self._dismiss = dismiss
        self.current: Reload | None = None
        self.replaced: set[WorkerHandle] = set()
        """Old workers that have not exited yet."""
        self._when_over: list[WhenReloaded] = []
        self.again: list[WhenReloaded] | None = None
        """Of the requests that came meanwhile; None: none did."""
        self._stopping = False

    def ask(self, when_over: WhenReloaded | None = None) -> None:
        """Replace every worker, one after the other; `when_over` is called when that is done or has failed."""
        when = [] if when_over is None else [when_over]
        if self._stopping:
            _call(when, "the server stops")
        elif self.current:
            self.again = (self.again or []) + when
        else:
            log.info("reloading %s", counted(len(self._roster.slots)))
            self.current, self._when_over = Reload(self._roster.slots, self._batch), when

    def stop(self) -> None:
        """The server stops: so does the one that is under way, and no other begins."""
        self._stopping = True
        if self.current:
            self.end("the server stops")

    def next(self) -> Slot | None:
        """The slot that shall get a new worker now, if any."""
        return self.current.next() if self.current else None

    def begin(self, slot: Slot, member: WorkerHandle | None) -> None:
        """`member` is the new worker of a slot that was next; None: none can be forked, which ends the reload."""
        assert self.current is not None
        if member is not None:
            self.current.begin(member)
        else:
            self.end(f"{slot} cannot be started")

    def has_on_trial(self, member: WorkerHandle) -> bool:
        return self.current is not None and member in self.current.trials

    def go_on(self) -> None:
        """Replace the old workers of a batch that has passed; end the reload that has replaced all."""
        if reload := self.current:
            for passed in reload.passed():
                reload.replaced += 1
                if old := self._promote(passed):
                    self.replaced.add(old)
        if self.current and self.current.over:
            self.end("")

    def end(self, error: str) -> None:
        """`error` is empty if all went well. Else the old workers that are left stay."""
        reload, when, again = self.current, self._when_over, self.again
        assert reload is not None
        self.current, self.again = None, None
        if error:
            level, total = logging.INFO if self._stopping else logging.ERROR, counted_are(reload.total)
            log.log(level, "reload aborted, %d of %s new, the rest not replaced: %s", reload.replaced, total, error)
            for member in reload.trials:
                old = member.slot.member
                if member.slot.successor is member and old is not None and old.state is State.READY:
                    self._dismiss(member)
        else:
            left = len(self.replaced)
            begun = "1 old finishes what it has begun" if left == 1 else f"{left} old finish what they have begun"
            log.info("reloaded: %s new; %s", counted_are(reload.replaced), begun)
        if reload.replaced:
            self._log_if_replaced_are_gone()
        self._callbacks.post(Notice("reload", None, error))
        _call(when, error)
        if again is not None:
            self.ask(lambda error: _call(again, error))

    def count_out(self, member: WorkerHandle, reason: str) -> None:
        """`member` is dead, or cannot be killed: no reload waits for it any more, and the one that had it on trial has
        failed for this reason."""
        if self.current and member in self.current.trials:
            self.current.trials.remove(member)
            if not member.slot.retired:
                self.end(reason)
        if member in self.replaced:
            self.replaced.remove(member)
            self._log_if_replaced_are_gone()

    def _log_if_replaced_are_gone(self) -> None:
        if self.current is None and not self.replaced:
            log.info("the last worker that was replaced has exited")


def _call(when_over: list[WhenReloaded], error: str) -> None:
    for each in when_over:
        each(error)
