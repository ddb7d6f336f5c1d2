"""The stop of a server: graceful, then with less and less patience, or at once. Each step is one of `Phase`.

Graceful: accept and pass on what is queued, end the channels, wait for the workers; after `drain_timeout` they stop
now, and what does not stop is killed (`lives` has these deadlines).
"""

from __future__ import annotations

import logging
import time

from pyfanout.config import Config
from pyfanout.core import Core
from pyfanout.host.log import counted
from pyfanout.link.messages import ServerStopping
from pyfanout.master.endpoints import Endpoint
from pyfanout.master.group import Group
from pyfanout.master.lifecycle import State, WorkerEvent
from pyfanout.master.phase import Phase
from pyfanout.master.timing import GRACE_NS

log = logging.getLogger("pyfanout.master")


class Shutdown:
    """Of one server."""

    def __init__(self, config: Config, core: Core, endpoints: list[Endpoint], group: Group) -> None:
        self._config = config
        self._core = core
        self._endpoints = endpoints
        self._group = group
        self.deadline_ns: int | None = None
        """When a graceful stop becomes a fast one."""
        self.core_has_looked = True
        """The core has run since the stop began: if no client waits, it has said that it has finished. Before that no
        worker is forked: there may be no client for it."""

    def stop(self, *, at_once: bool = False) -> None:
        """As SIGTERM; `at_once`: as SIGINT."""
        if at_once or not self._group.ever_ready:
            if self._group.phase is not Phase.AT_ONCE:
                log.info("stopping now: workers are sent SIGQUIT and have %g s to exit", GRACE_NS / 1e9)
                self._begin(Phase.AT_ONCE)
                self._stop_workers()
        elif self._group.phase is Phase.SERVING:
            self._stop_gracefully()

    def stop_now(self) -> None:
        """As SIGINT: what is asked once more is meant."""
        if self._group.phase is Phase.AT_ONCE:
            left = len(self._group.roster.members)
            are = "is" if left == 1 else "are"
            log.warning("asked once more to stop now: %s that %s left %s killed", counted(left), are, are)
            self._group.lives.kill_all()
        else:
            self.stop(at_once=True)

    def keep_time(self, now_ns: int) -> None:
        if self.deadline_ns is not None and self.deadline_ns <= now_ns:
            log.warning(
                "drain_timeout of %g s is over: the remaining workers stop now; their connections are cut off",
                self._config.drain_timeout,
            )
            self._group.phase = Phase.LATE
            self._stop_workers()

    def on_finished(self) -> None:
        """The core has passed on all that was queued, and has ended the channels."""
        if self._group.phase is Phase.FINISHING:
            self._group.phase = Phase.FINISHED
        self._group.on_finished()

    @property
    def over(self) -> bool:
        """No worker is left that could end, and none is to be started."""
        group = self._group
        if not group.phase.is_stop or not group.roster.all_left_behind:
            return False
        return group.phase is Phase.AT_ONCE or not group.respawns.pending

    def _stop_gracefully(self) -> None:
        log.info("graceful stop: workers have %g s to finish (drain_timeout)", self._config.drain_timeout)
        self._begin(Phase.FINISHING)
        for member in self._group.roster.members:
            if member.state is State.READY:
                member.link.send(ServerStopping())
        for number, endpoint in enumerate(self._endpoints):
            if endpoint.can_stop_new:
                self._core.stop_new(number)
        self._core.finish(self._config.backlog + 1)
        self.core_has_looked = False
        self.deadline_ns = time.monotonic_ns() + int(self._config.drain_timeout * 1e9)

    def _begin(self, phase: Phase) -> None:
        group = self._group
        group.phase = phase
        group.lives.health.end()
        for slot in group.roster.slots:
            # No successor any more, and no additional worker, as long as there is one.
            if slot.member is not None or (not slot.generation and group.roster.members):
                slot.respawn_at_ns = None
        # Socket files go first: while the socket is open, its inode cannot be another file's.
        for endpoint in self._endpoints:
            endpoint.unlink()
        group.reloads.stop()
        for slot in group.roster.slots:
            if slot.successor is not None:  # its channel would be forgotten
                group.dismiss(slot.successor)

    def _stop_workers(self) -> None:
        """No slot gets another worker, and those that are left stop now."""
        self.deadline_ns = None
        self._group.respawns.forget()
        self._group.lives.happened_to_all(WorkerEvent.TOLD_TO_STOP)
