"""The life of each worker: an event in, `lifecycle.step`, actions out. What its slot does without it is the group's
affair, by the callback `replace`.

Owns the workers' deadlines. Never forks, and removes no worker.
"""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Callable

from pyfanout.core import Core
from pyfanout.groupconfig import GroupConfig
from pyfanout.link.messages import WAKE, Drain, ServerStopping
from pyfanout.link.outbox import AGAIN_NS
from pyfanout.master.callbacks import Callbacks, Notice
from pyfanout.master.deaths import Deaths
from pyfanout.master.health import Health
from pyfanout.master.lifecycle import Action, State, WorkerEvent, step
from pyfanout.master.roster import Roster, WorkerHandle
from pyfanout.master.rotation import Rotation
from pyfanout.master.status import status_of
from pyfanout.master.timing import GRACE_NS

log = logging.getLogger("pyfanout.master")

_NOTICES = {State.READY: "ready", State.DRAINING: "drain", State.HUNG: "hang"}
"""Which callbacks are called for a new state. The one for the end is given its cause, by the group."""


class Lives:
    """Of the workers of one roster."""

    def __init__(
        self,
        config: GroupConfig,
        core: Core,
        roster: Roster,
        rotation: Rotation,
        deaths: Deaths,
        callbacks: Callbacks,
        replace: Callable[[WorkerHandle], None],
        on_trial: Callable[[WorkerHandle], bool],
    ) -> None:
        """`replace` is called with a worker that does not serve its slot any more; `on_trial` says whether a worker
        that is ready has to serve for `min_uptime` before it counts."""
        self._config = config
        self._core = core
        self._roster = roster
        self._rotation = rotation
        self._deaths = deaths
        self._callbacks = callbacks
        self._replace = replace
        self._on_trial = on_trial
        self.health = Health(config)

    # ---- states and actions -------------------------------------------------------------------------------------

    def happened(self, member: WorkerHandle, happened: WorkerEvent) -> None:
        state, actions = step(member.state, happened)
        changed = state is not member.state
        if changed:
            now_ns = time.monotonic_ns()
            member.become(state, now_ns)
            member.deadline_ns = self._deadline_of(member, now_ns)
        for action in actions:
            self._perform(action, member)
        if changed and state in _NOTICES and state is member.state:  # an action may have failed, and led on
            self.notify(_NOTICES[state], member, member.verdict or "")

    def happened_to_all(self, happened: WorkerEvent) -> None:
        """It has happened to each worker."""
        for member in self._roster.members:
            self.happened(member, happened)

    def notify(self, event: str, member: WorkerHandle, detail: str = "") -> None:
        """The callbacks for `event`, when what is under way is done with."""
        status = status_of(member.slot, member, self._core.look(member.seat), time.monotonic_ns())
        self._callbacks.post(Notice(event, status, detail))

    def _deadline_of(self, member: WorkerHandle, now_ns: int) -> int | None:
        match member.state:
            case State.READY if self._on_trial(member):
                return now_ns + int(self._config.min_uptime * 1e9)
            case State.DRAINING:
                return now_ns + int(self._config.drain_timeout * 1e9)
            case State.STOPPING | State.HUNG | State.KILLED:
                return now_ns + GRACE_NS
        return None

    def _perform(self, action: Action, member: WorkerHandle) -> None:
        match action:
            case Action.ENTER:
                self._enter(member)
            case Action.LEAVE:
                self._rotation.leave(member.seat)
            case Action.CLOSE:
                member.link.send(ServerStopping())
            case Action.DRAIN:
                member.link.send(Drain())
                if member.ready_ns is None:
                    self._wake(member, time.monotonic_ns())
            case Action.QUIT:
                member.process.send(signal.SIGQUIT)
            case Action.ABORT:
                member.process.abort(core=self._config.core_dumps)
            case Action.KILL:
                member.process.send(signal.SIGKILL)
            case Action.REPLACE:
                self._replace(member)

    def _wake(self, member: WorkerHandle, now_ns: int) -> None:
        """A worker that boots looks at its socket. Repeated at growing intervals: the message may not have been sent
        yet, and a signal that reaches a thread on its way into a call is lost."""
        member.wake_ns = now_ns + max(AGAIN_NS, now_ns - member.since_ns)
        member.process.send(WAKE)

    def _enter(self, member: WorkerHandle) -> None:
        if member.short:
            return
        if error := self._rotation.enter(member.seat, member.ready, len(self._roster.slots)):
            log.error(
                "%s cannot be given connections (%s); it drains, and is replaced unless the server stops",
                member,
                error.strerror,
            )
            self.happened(member, WorkerEvent.NOT_ENTERED)

    def be_short(self, member: WorkerHandle, *, short: bool) -> None:
        """A worker cannot take connections, and others get them; or it can again."""
        member.short = short
        if member.state is not State.READY:
            return
        if short:
            self._rotation.leave(member.seat)
        else:
            self._enter(member)

    # ---- time ---------------------------------------------------------------------------------------------------

    def deadlines(self) -> list[int]:
        """When to call `keep_time`."""
        members = self._roster.members
        found = [ns for member in members for ns in (member.deadline_ns, member.wake_ns) if ns is not None]
        if any(member.link.outbox for member in members):
            found.append(time.monotonic_ns() + AGAIN_NS)
        if (health_ns := self.health.next_deadline_ns(members)) is not None:
            found.append(health_ns)
        return found

    def keep_time(self, now_ns: int) -> None:
        """All that is to be done by the clock."""
        for member in self._roster.members:
            member.link.outbox.flush()
            if member.wake_ns is not None and member.wake_ns <= now_ns:
                self._wake(member, now_ns)
        for member in self._roster.members:
            if member.deadline_ns is not None and member.deadline_ns <= now_ns:
                self._time_is_up(member)
        if self.health.is_due(now_ns, self._roster.members):
            self._judge(now_ns)

    def _time_is_up(self, member: WorkerHandle) -> None:
        member.deadline_ns = None
        match member.state:
            case State.READY:  # on trial until it answers
                self.health.ping(member, time.monotonic_ns())
                return
            case State.BOOTING:
                member.verdict = f"not ready after {self._config.boot_timeout:g} s"
                log.error(
                    "%s is %s (boot_timeout); it is killed, which counts as a failed start", member, member.verdict
                )
            case State.DRAINING:
                log.warning(
                    "%s has not finished after %g s (drain_timeout); it is sent SIGQUIT, what is left is cut off",
                    member,
                    self._config.drain_timeout,
                )
            case State.STOPPING:
                member.verdict = member.verdict or "it did not stop"
                log.warning("%s does not stop within %g s of SIGQUIT and is killed", member, GRACE_NS / 1e9)
            case State.KILLED:
                member.slot.last_death = "cannot be killed"
                log.critical(
                    "%s does not die of SIGKILL within %g s; it is left behind, and reaped if it dies later",
                    member,
                    GRACE_NS / 1e9,
                )
        self.happened(member, WorkerEvent.TIME_IS_UP)

    def _judge(self, now_ns: int) -> None:
        """A worker that is hung leaves; the others are pinged."""
        for member in self._roster.members:
            if member.state is not State.READY:
                continue
            reason = self.health.judge(member, self._core.look(member.seat), now_ns)
            if reason is not None:
                member.verdict = f"hung: {reason}"
                log.error("%s is %s; it is killed, and what follows is as after a crash", member, member.verdict)
                self.happened(member, WorkerEvent.FOUND_HUNG)
        self.health.next_round(self._roster.members, now_ns)
        self._deaths.oom_kills.look(now_ns)

    def kill_all(self) -> None:
        """Wait for none any longer."""
        for member in self._roster.members:
            if member.state is not State.KILLED:
                member.verdict = member.verdict or "it did not stop"
                self.happened(member, WorkerEvent.TIME_IS_UP)
