"""What is said of a worker that has died: the cause in words, and the lines of the log. Decides nothing."""

from __future__ import annotations

import logging
import signal
import time

from pyfanout.link.messages import Failed
from pyfanout.master.lifecycle import State
from pyfanout.master.oom import OomKills
from pyfanout.master.process import ExitReport
from pyfanout.master.roster import WorkerHandle

log = logging.getLogger("pyfanout.master")


class Deaths:
    """Of one server's workers. Until the first worker was ready all of them fail for one reason: that is said once."""

    def __init__(self) -> None:
        self.oom_kills = OomKills()
        self._failure: Failed | None = None
        self._stacks = ""
        """The last one of each that was logged."""

    def words(self, member: WorkerHandle, report: ExitReport) -> str:
        """How it ended, and why, as far as that is known."""
        if member.verdict:
            return f"{report} ({member.verdict})"
        if report.signum == signal.SIGKILL and self.oom_kills.happened(time.monotonic_ns()):
            return f"{report} (out of memory: the kernel's OOM killer was at work)"
        if member.spent and report.code == 0:
            return f"{report} (max_requests)"
        return str(report)

    def log(
        self, member: WorkerHandle, was: State, report: ExitReport, words: str, lost: int, *, stopping: bool
    ) -> None:
        """`was`: its state. `lost`: connections in progress that ended with it."""
        # By the signal itself: one that was told to leave before it could listen.
        told = report.code == 0 or report.signum in (signal.SIGTERM, signal.SIGQUIT)
        if was in (State.DRAINING, State.STOPPING) and told and not lost:
            log.debug("%s has exited as it was told to", member)
            return
        log.log(
            logging.INFO if stopping else logging.WARNING,
            "%s %s after %.1f s, with %d connection%s in progress",
            member,
            words,
            (member.since_ns - (member.ready_ns or member.forked_ns)) / 1e9,
            lost,
            "" if lost == 1 else "s",
        )

    def log_failure(self, member: WorkerHandle, failure: Failed, *, ever_ready: bool) -> None:
        """It could not start, and has said why."""
        shown, self._failure = self._failure, failure
        new = failure.details if shown is None or failure.details != shown.details else ""
        level = logging.DEBUG if failure == shown and not ever_ready else logging.ERROR  # the last line repeats it
        log.log(level, "%s could not start: %s%s", member, failure.reason, new and f"\n{new.rstrip()}")

    def log_stacks(self, member: WorkerHandle, stacks: str, *, ever_ready: bool) -> None:
        if stacks and (ever_ready or stacks != self._stacks):
            log.error("%s: Python stacks at death:\n%s", member, stacks)
            self._stacks = stacks
