"""Pings, and the verdict on each worker. Sends pings; never touches a worker otherwise.

Asynchronous: a ping is sent every `ping_interval` to those that owe none, and nothing waits for its pong.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from pyfanout.core import ScoreView
from pyfanout.groupconfig import GroupConfig
from pyfanout.link.messages import Pong
from pyfanout.master import timing
from pyfanout.master.lifecycle import State
from pyfanout.master.roster import WorkerHandle

PAUSE_NS = 1_000_000_000
"""A loop that comes round this much later than it wanted to was not running, or had no CPU: nor had the others. Half of
`ping_timeout` if that is less, so that no verdict comes from a pause."""


class Health:
    """Of the workers that are READY."""

    def __init__(self, config: GroupConfig) -> None:
        self._interval_ns = math.ceil(config.ping_interval * 1e9)  # what is not 0 is not never
        self._ping_timeout_ns = int(config.ping_timeout * 1e9)
        self._timeout_ns = math.ceil(config.timeout * 1e9)
        self._pause_ns = min(PAUSE_NS, self._ping_timeout_ns // 2)
        self._round_ns: int | None = None
        """When the next round of pings is due; None: there are none."""
        self._resumed_ns = 0
        """When the master came back from a pause, of itself or of the whole machine."""
        self._expected_ns: int | None = None
        self._judged_ns = 0
        self._ended = False

    def begin(self, now_ns: int) -> None:
        """From now on there are workers."""
        self._round_ns = now_ns + self._interval_ns if self._interval_ns else None

    def end(self) -> None:
        """The server stops: from now on a worker has until the end of the stop, and none is judged."""
        self._ended = True

    # ---- time ---------------------------------------------------------------------------------------------------

    def sleeps_until(self, wake_ns: int | None) -> None:
        """The master wants to be awake at `wake_ns`."""
        self._expected_ns = wake_ns

    def awake(self, now_ns: int) -> None:
        """It is. What was silent or busy while we were not there is forgiven: patience begins anew."""
        if self._expected_ns is not None and now_ns > self._expected_ns + self._pause_ns:
            self._resumed_ns = now_ns

    def next_deadline_ns(self, members: Iterable[WorkerHandle]) -> int | None:
        """When to call `judge` next: when a pong is late, and then again while it is, and at each round."""
        if self._ended:
            return None
        late = [self._asked_ns(m) + self._ping_timeout_ns for m in members if self._owes(m)]
        deadlines = [each if each > self._judged_ns else self._judged_ns + self._ping_timeout_ns for each in late]
        if self._round_ns is not None:
            deadlines.append(self._round_ns)
        return min(deadlines, default=None)

    # ---- pings and verdicts -------------------------------------------------------------------------------------

    def ping(self, member: WorkerHandle, now_ns: int) -> None:
        """Now; unless it owes a pong."""
        member.link.ping(now_ns)

    def on_pong(self, member: WorkerHandle, pong: Pong, now_ns: int) -> bool:
        """Whether it answers the ping that is out; one that was asked before, or never, counts for nothing."""
        if not member.link.is_answered_by(pong):
            return False
        member.pong_ns = now_ns
        member.still_since_ns = now_ns - pong.still_ms * 1_000_000
        return True

    def is_due(self, now_ns: int, members: Iterable[WorkerHandle]) -> bool:
        deadline_ns = self.next_deadline_ns(members)
        return deadline_ns is not None and deadline_ns <= now_ns

    def judge(self, member: WorkerHandle, view: ScoreView, now_ns: int) -> str | None:
        """Why it is hung, or None."""
        return timing.hang(
            now_ns=now_ns,
            pinged_ns=self._asked_ns(member) if member.link.owes_pong else None,
            ping_timeout_ns=self._ping_timeout_ns,
            threads=member.ready.threads,
            busy_threads=view.busy_threads,
            busy_since_ns=self._since(view.busy_since_ns) if view.busy_since_ns else 0,
            still_ns=self._still_ns(member, view),
            timeout_ns=self._timeout_ns,
        )

    def next_round(self, members: Iterable[WorkerHandle], now_ns: int) -> None:
        """After the verdicts: those that are left are pinged if it is time."""
        self._judged_ns = now_ns
        if self._round_ns is not None and self._round_ns <= now_ns:
            self._round_ns = now_ns + self._interval_ns
            for member in members:
                if member.state is State.READY:
                    self.ping(member, now_ns)

    def _owes(self, member: WorkerHandle) -> bool:
        return member.state is State.READY and member.link.owes_pong

    def _asked_ns(self, member: WorkerHandle) -> int:
        """Since when it has been its turn, if it owes a pong."""
        return self._since(member.link.owed_since_ns)

    def _still_ns(self, member: WorkerHandle, view: ScoreView) -> int:
        """How long its threads had been in the same requests at its last pong. For threads of pyfanout the pong says
        only whether bytes have moved; when the last of them took a connection is on the scoreboard."""
        if member.pong_ns is None:
            return 0
        since_ns = self._since(max(member.still_since_ns, view.beat_ns if member.ready.threads else 0))
        return member.pong_ns - since_ns

    def _since(self, then_ns: int) -> int:
        return max(then_ns, self._resumed_ns)
