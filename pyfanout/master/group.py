"""A group: slots that run one thing, each with its worker. What a slot does when its worker dies, is spent or is
replaced; reloads and scaling.

The rooms below it: `lives` (states), `spawner` (fork), `respawn` (when), `reload` (which are on
trial), `deaths` (words).
"""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Callable

from pyfanout.core import POOL, Core
from pyfanout.errors import LoadError, WorkerError
from pyfanout.groupconfig import GroupConfig
from pyfanout.host.log import counted
from pyfanout.link.messages import (
    Cut,
    DecodeError,
    Failed,
    HasRoom,
    Message,
    Ping,
    Pong,
    Ready,
    Retiring,
    ServerStopping,
    Short,
    Stage,
    WantsSuccessor,
)
from pyfanout.master import timing
from pyfanout.master.callbacks import Callbacks, Notice
from pyfanout.master.deaths import Deaths
from pyfanout.master.lifecycle import State, WorkerEvent
from pyfanout.master.lives import Lives
from pyfanout.master.phase import Phase
from pyfanout.master.reload import Reloads
from pyfanout.master.respawn import Respawns
from pyfanout.master.roster import Roster, Slot, WorkerHandle
from pyfanout.master.rotation import Rotation, reads
from pyfanout.master.spawner import Spawner
from pyfanout.master.status import WorkerStatus, status_of
from pyfanout.options import MAX_WORKERS

log = logging.getLogger("pyfanout.master")

_READING = (State.READY, State.DRAINING)
"""In a graceful stop, of one that has its slot: it reads until the end of its channel."""


class Group:
    """One for each thing that workers run."""

    def __init__(
        self,
        config: GroupConfig,
        core: Core,
        roster: Roster,
        rotation: Rotation,
        spawner: Spawner,
        callbacks: Callbacks,
        on_ready: Callable[[], None],
        on_failed: Callable[[str], None],
    ) -> None:
        """`on_ready` is called when a worker has become ready, or fewer are wanted; `on_failed`, with why, when the
        workers of a slot die again and again."""
        self._config = config
        self._core = core
        self.roster = roster
        self._rotation = rotation
        self._spawner = spawner
        self._callbacks = callbacks
        self._on_ready = on_ready
        self._on_failed = on_failed
        self._deaths = Deaths()
        self.lives = Lives(config, core, roster, rotation, self._deaths, callbacks, self._on_lost, self._is_on_trial)
        self.reloads = Reloads(roster, config.reload_batch, callbacks, self._promote, self.dismiss)
        self.respawns = Respawns(roster, int(config.min_uptime * 1e9))
        self.phase = Phase.SERVING
        """Of the server's stop, which `shutdown` sets."""
        self.ever_ready = False
        self._first_failure: Failed | None = None
        self.cut = 0
        """Connections that were cut off since the stop began."""

    def begin(self) -> None:
        """Each slot wants a worker."""
        for _ in range(self._config.workers):
            self.respawns.now(self.roster.grow())
        self.lives.health.begin(time.monotonic_ns())

    # ---- forks --------------------------------------------------------------------------------------------------

    def start_one(self, now_ns: int) -> None:
        """Fork the worker that has waited longest for its start, if any; at most one each time the loop comes round,
        because no client is served during a fork."""
        if slot := self.respawns.due(now_ns):
            self._spawn(slot)
        elif slot := self.reloads.next():
            slot.respawn_at_ns = None
            self.reloads.begin(slot, self._spawn(slot))

    def _spawn(self, slot: Slot) -> WorkerHandle | None:
        """A new worker for it: its only one, or the successor of the one that serves. None: not now, but later."""
        try:
            member = self._spawner.fork(slot, self._on_death, self._on_message)
        except OSError as error:
            slot.respawn_at_ns = None
            if slot.member is not None and not slot.member.spent:  # of a reload
                log.error("%s cannot be started: %s; its old worker serves on", slot, error.strerror)
                return None
            log.error("%s cannot be started: %s; it counts as a failed start", slot, error.strerror)
            self.respawns.after_failure(slot)
            if not self.ever_ready:  # as one that died before it was ready
                slot.respawn_at_ns = None
            return None
        self.lives.notify("fork", member)
        return member

    # ---- what workers say ---------------------------------------------------------------------------------------

    def _on_message(self, member: WorkerHandle) -> None:
        try:
            for message in member.link.receive():
                self._on_word(member, message)
        except DecodeError as error:
            member.verdict = f"protocol error on its control socket: {error}"
            log.error(
                "%s: protocol error on its control socket (%s); it is killed, and what follows is as after a crash",
                member,
                error,
            )
            self._spawner.unwatch_link(member)
            member.process.send(signal.SIGKILL)

    def _on_word(self, member: WorkerHandle, message: Message | None) -> None:
        match message:
            case None:  # it closed its end; most likely it is about to die
                self._spawner.unwatch_link(member)
            case Ping():
                raise DecodeError("a ping from a worker")
            case Ready():
                self._on_worker_ready(member, message)
            case Failed():
                member.failure = message
            case Pong():
                self._on_pong(member, message)
            case WantsSuccessor():
                self._on_spent(member)
            case Retiring():
                member.resigned = member.state is State.READY
                self.lives.happened(member, WorkerEvent.SAID_RETIRING)
            case HasRoom():
                pass  # it has woken the core, which looks at the scoreboard by itself
            case Short(short) if member.short is not short:
                self.lives.be_short(member, short=short)
                self._promote_if_fit(member)
            case Cut(connections):
                member.cut = connections

    def _on_worker_ready(self, member: WorkerHandle, ready: Ready) -> None:
        if member.state is State.BOOTING:
            member.ready, member.ready_ns = ready, time.monotonic_ns()
        member.wake_ns = None
        self.lives.happened(member, WorkerEvent.SAID_READY)
        if member.state is not State.READY:
            return
        if not self.ever_ready:
            self.ever_ready = True
            self._respawn_those_that_failed()
        if self.phase.is_stop:
            member.link.send(ServerStopping())
        self._on_ready()

    def _respawn_those_that_failed(self) -> None:
        """Until the first worker was ready no worker was replaced: it might have been for ever."""
        for slot in self.roster.slots:
            if slot.member is None and slot.respawn_at_ns is None and not self.phase.is_stop:
                self.respawns.later(slot)

    def _on_pong(self, member: WorkerHandle, pong: Pong) -> None:
        answered = self.lives.health.on_pong(member, pong, time.monotonic_ns())
        if answered and member.state is State.READY:
            member.proved = member.deadline_ns is None
            self._promote_if_fit(member)

    def _on_spent(self, member: WorkerHandle) -> None:
        """It has had its max_requests: its successor boots while it serves on."""
        member.spent = True
        slot = member.slot
        if not self.phase.is_stop and slot.member is member and slot.successor is None and not slot.retired:
            self.respawns.now(slot)

    # ---- successors ---------------------------------------------------------------------------------------------

    def _is_on_trial(self, member: WorkerHandle) -> bool:
        return member.slot.successor is member or self.reloads.has_on_trial(member)

    def _promote_if_fit(self, member: WorkerHandle) -> None:
        """One of a reload is promoted with its batch."""
        if not self.reloads.has_on_trial(member):
            self._promote(member)

    def _promote(self, member: WorkerHandle) -> WorkerHandle | None:
        """`member` has passed its trial and takes its slot over; the old worker finishes what it has begun. Returns the
        old one."""
        if member.slot.successor is not member or not member.fit:
            return None  # it has had the slot since the old one died; or it is told to leave
        old = self._hand_over(member)
        if old is not None:
            self.dismiss(old)
        return old

    def _hand_over(self, successor: WorkerHandle) -> WorkerHandle | None:
        """Give the slot to its successor; returns the worker that had it."""
        old = self.roster.promote(successor)
        if successor.spent:  # by now
            self._on_spent(successor)
        return old

    def dismiss(self, member: WorkerHandle) -> None:
        """It is told to leave: another has its slot, or none is wanted."""
        self.lives.happened(member, WorkerEvent.TOLD_TO_DRAIN)

    # ---- deaths -------------------------------------------------------------------------------------------------

    def _on_death(self, member: WorkerHandle) -> None:
        self._spawner.unwatch(member)
        member.read_last_words()
        report, was, view = member.process.reap(), member.state, self._core.look(member.seat)
        words = self._deaths.words(member, report)
        stacks = member.stacks() if report.signum is not None else ""
        if member.failure and self._first_failure is None:
            self._first_failure = member.failure
        member.slot.last_death, member.served = words, view.done > 0
        if self.phase.is_stop:
            # Some of those that it has told of may not have been done when it exited.
            self.cut += max(member.cut, view.in_hands)
        self.lives.happened(member, WorkerEvent.DIED)
        if member.slot.retired or member.slot.seat != member.seat:
            self._core.end(member.seat)
        if member.failure:
            self._deaths.log_failure(member, member.failure, ever_ready=self.ever_ready)
        else:
            self._deaths.log(member, was, report, words, view.in_hands, stopping=self.phase.is_stop)
        self._deaths.log_stacks(member, stacks, ever_ready=self.ever_ready)
        self._callbacks.post(Notice("exit", status_of(member.slot, member, view, time.monotonic_ns()), words))
        self.reloads.count_out(member, member.failure.reason if member.failure else f"{member} {words}")

    def start_error(self) -> WorkerError:
        """Every worker died before it was ready, and none ever was: why."""
        failure = self._first_failure
        reason = failure.reason if failure else "see the log for how they ended"
        kind = LoadError if failure and failure.stage is Stage.LOAD else WorkerError
        return kind(f"no worker could start: {reason}")

    def _on_lost(self, member: WorkerHandle) -> None:
        """It does not serve its slot any more."""
        self._replace(member)
        if member.left_behind:
            self.reloads.count_out(member, f"{member} cannot be killed")

    def _replace(self, member: WorkerHandle) -> None:
        """It has no slot any more. If it had, that gets another worker, now or later."""
        slot = member.slot
        if self.phase.is_stop and member.state not in (State.GONE, State.KILLED):
            return  # it may have found the end of its channel: what is left of it is seen when it is gone
        if member.state is State.KILLED and not self.phase.is_stop and self._is_one_too_many(member):
            return
        held = self.roster.vacate(member)
        if member.state is State.GONE:
            self.roster.remove(member)
        if not held or slot.retired:
            return
        if slot.member is not None:
            self._on_lost_successor(slot.member)
            return
        successor = slot.successor
        if successor is not None and successor.state in (State.BOOTING, State.READY):
            self._hand_over(successor)  # it was to take its place anyway
            return
        if successor is not None:  # told to leave
            self.roster.vacate(successor)
            slot.seat = member.seat  # where a client may wait
        self._count_death(slot, member)
        if self.wants_another(slot):
            self.respawns.later(slot)

    def _is_one_too_many(self, member: WorkerHandle) -> bool:
        """Its slot has left one worker behind already: the cause may block every new one, without an end. The slot gets
        its next worker when this one is dead."""
        return any(each.left_behind and each.slot is member.slot for each in self.roster.members if each is not member)

    def _on_lost_successor(self, old: WorkerHandle) -> None:
        """The old worker serves on. One that has had its max_requests still wants a successor; a reload is over."""
        old.slot.seat = old.seat
        if old.spent and not self.phase.is_stop:
            self.respawns.after_failure(old.slot)

    def _count_death(self, slot: Slot, member: WorkerHandle) -> None:
        served = member.served or (member.resigned and self._core.look(member.seat).done > 0)
        failed = self.respawns.count_death(slot, member.ready_ns, served=served, resigned=member.resigned)
        if failed and self.ever_ready and not self.phase.is_stop:
            detail = f"{slot} has died {slot.deaths} times in a row, the last time it {slot.last_death}"
            later = f"the next start is tried in {timing.LONGEST_DELAY_NS / 1e9:g} s at most"
            log.error("%s: FAILED; %s", detail, "the server stops (fail_fast)" if self._config.fail_fast else later)
            self._callbacks.post(Notice("give_up", None, detail))
            self._on_failed(detail)

    def wants_another(self, slot: Slot) -> bool:
        """Whether it gets another worker, now that it has none."""
        if self.phase is Phase.SERVING:
            return self.ever_ready
        if self.phase in (Phase.LATE, Phase.AT_ONCE):
            return False
        if self.phase is Phase.FINISHING:
            return True
        # Others read what waits in the pool; what waits in its own channel waits for its seat alone.
        pooled = any(
            each.state is State.BOOTING or (each.ready.pool and each.slot.member is each and each.state in _READING)
            for each in self.roster.members
        )
        left = slot.seat is not None and self._core.untaken(slot.seat) > 0
        return left or (not pooled and self._core.untaken(POOL) > 0)

    # ---- channels -----------------------------------------------------------------------------------------------

    def on_broken(self, seat: int) -> None:
        """A worker has shut down a channel: its readers see end-of-file and leave by themselves."""
        for member in self.roster.members:
            if member.state is State.READY and reads(member.seat, member.ready, seat):
                log.error(
                    "%s: a worker has shut down the channel that this one reads; it drains, and is replaced unless the"
                    " server stops",
                    member,
                )
                self.lives.happened(member, WorkerEvent.CHANNEL_BROKEN)

    def on_finished(self) -> None:
        """In a graceful stop: all that was queued is in channels, and these end."""
        for slot in self.roster.slots:
            if slot.respawn_at_ns is not None and not self.wants_another(slot):
                slot.respawn_at_ns = None
        for member in self.roster.members:
            waited_for = self._core.untaken(member.seat) > 0 or self._core.untaken(POOL) > 0
            needless = member.state is State.BOOTING and not waited_for
            self.lives.happened(member, WorkerEvent.TOLD_TO_DRAIN if needless else WorkerEvent.CHANNELS_ENDED)

    # ---- scale, status ------------------------------------------------------------------------------------------

    def scale(self, workers: int) -> None:
        """From now on so many workers, at least 1 and at most `options.MAX_WORKERS`. No-op while stopping."""
        slots = self.roster.slots
        workers = min(max(workers, 1), MAX_WORKERS)
        if self.phase.is_stop or workers == len(slots):
            return
        log.info("scaling from %d to %s", len(slots), counted(workers))
        self._spawner.make_room(workers)
        while len(slots) < workers:
            self.respawns.now(self.roster.grow())
        while len(slots) > workers:
            slot = self.roster.shrink()
            for member in (slot.successor, slot.member):
                if member is not None:
                    self.dismiss(member)
            if slot.seat is not None and self.roster.lives_in(slot.seat) is None:
                self._core.end(slot.seat)
        self._on_ready()

    @property
    def settled(self) -> bool:
        """Every slot has a worker that is ready, and those of slots that are not wanted any more are gone."""
        return self.roster.all_ready and not any(member.slot.retired for member in self.roster.members)

    @property
    def held_back(self) -> str | None:
        """A slot whose workers die, and which waits for its next one, in words; None if there is none."""
        now_ns = time.monotonic_ns()
        for slot in self.roster.slots:
            if slot.member is None and slot.respawn_at_ns is not None and slot.respawn_at_ns > now_ns:
                return f"{slot}: its last worker {slot.last_death or 'could not be forked'}"
        return None

    def workers(self) -> list[WorkerStatus]:
        """All workers, also those that are about to leave, and the slots without one; by slot, then generation."""
        now_ns = time.monotonic_ns()
        found = [status_of(m.slot, m, self._core.look(m.seat), now_ns) for m in self.roster.members]
        found += [status_of(slot, None, None, now_ns) for slot in self.roster.slots if slot.member is None]
        return sorted(found, key=lambda status: (status.slot, status.generation))
