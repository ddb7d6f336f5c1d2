"""Which workers exist: by slot, generation, pid. The only place where one is added or removed.

Owns the master's end of each control socket, and the file that a dying worker writes its stacks to. Decides nothing.

A slot has one worker, at times two: the one that serves, and its successor, which is on trial. Each has a *seat* in
the core, which is its channel and its page of the scoreboard, until it is reaped.
"""

from __future__ import annotations

import logging
import mmap
import os
import time
from collections import deque
from dataclasses import dataclass, field

from pyfanout.core import SEATS
from pyfanout.link.link import Link
from pyfanout.link.messages import Cut, Failed, Ready, Retiring, WantsSuccessor
from pyfanout.master import timing
from pyfanout.master.lifecycle import State
from pyfanout.master.process import Process

log = logging.getLogger("pyfanout.master")

STACKS_LIMIT_BYTES = 64 * 1024
"""As much as the log gets of what a worker wrote while it died; faulthandler itself stops at 100 threads."""


@dataclass(slots=True, eq=False)
class Slot:
    """One of the N of `workers=N`: has a worker, or waits for its next one."""

    number: int
    generation: int = 0
    """Of its last worker, from 1."""
    member: WorkerHandle | None = None
    """The worker that serves, or will when it has booted."""
    successor: WorkerHandle | None = None
    """The worker on trial: it gets the slot if it lives for `min_uptime`. Meanwhile it serves, too."""
    seat: int | None = None
    """Of its newest worker: what that leaves in its channel waits there for the next one."""
    deaths: int = 0
    """In a row, see timing."""
    died_ns: deque[int] = field(default_factory=lambda: deque(maxlen=timing.BROKEN_WINDOW))
    failed: bool = False
    """Too many deaths: it is tried again, but slowly."""
    respawn_at_ns: int | None = None
    """When it gets its next worker; None: it has one, or shall have none."""
    retired: bool = False
    """Scaled away."""
    restarts: int = 0
    """Workers after the first."""
    last_death: str | None = None
    """In words."""
    since_ns: int = field(default_factory=time.monotonic_ns)
    """When it was made, or lost its last worker."""

    def __str__(self) -> str:
        return f"worker={self.number}"


@dataclass(slots=True, eq=False)
class WorkerHandle:
    """One worker: a process of one generation, in one slot."""

    slot: Slot
    generation: int
    seat: int
    """Its number in the core."""
    process: Process
    link: Link
    stacks_fd: int
    """A file in memory: what faulthandler writes when it dies of a signal. Owned."""
    deadline_ns: int | None
    """CLOCK_MONOTONIC: until when it may be in its state; None: for ever."""
    forked_ns: int = field(default_factory=time.monotonic_ns)
    state: State = State.BOOTING
    since_ns: int = field(default_factory=time.monotonic_ns)
    """When it came into `state`."""
    ready_ns: int | None = None
    ready: Ready = Ready(pool=False, threads=0)  # noqa: RUF009 - a message does not change
    """What it said when it was; before that nothing reads it."""
    resigned: bool = False
    """It has said by itself that it takes no more: no death to worry about."""
    served: bool = False
    """It is dead, and had done with a connection or more; by its own word."""
    cut: int = 0
    """Connections that it has cut off when it was to stop now, by its own word."""
    spent: bool = False
    """It has had its max_requests."""
    short: bool = False
    """It cannot take connections now, and is out of rotation."""
    failure: Failed | None = None
    wake_ns: int | None = None
    """When it is signalled once more to look at its socket, after it was told to leave while it booted. None: not
    needed."""
    verdict: str | None = None
    """Why we ended it, in words."""
    pong_ns: int | None = None
    """When the last pong came."""
    proved: bool = False
    """It has answered a ping after its trial time, `min_uptime`."""
    still_since_ns: int = 0
    """Since when its threads have been in the same requests, as that pong said."""

    def __str__(self) -> str:
        return f"worker={self.slot.number} gen={self.generation} pid={self.process.pid}"

    @property
    def left_behind(self) -> bool:
        """It was sent SIGKILL and does not die."""
        return self.state is State.KILLED and self.deadline_ns is None

    @property
    def fit(self) -> bool:
        """It may take its slot over."""
        return self.state is State.READY and self.proved and not self.short

    def become(self, state: State, now_ns: int) -> None:
        """The one setter of `state`; it logs."""
        if state is not self.state:
            took_ms = (now_ns - self.since_ns) / 1e6
            log.debug("%s %s->%s after %.0fms", self, self.state.name, state.name, took_ms)
            self.state, self.since_ns = state, now_ns

    def stacks(self) -> str:
        """What it wrote when it died; empty if nothing."""
        try:
            return os.pread(self.stacks_fd, STACKS_LIMIT_BYTES, 0).decode(errors="replace").rstrip()
        except OSError as error:
            return f"(unreadable: {error.strerror})"

    def read_last_words(self) -> None:
        """What it has said before it died: its death may be reported before that."""
        for message in self.link.last_words():
            match message:
                case Failed():
                    self.failure = message
                case Retiring():
                    self.resigned = self.resigned or self.state is State.READY
                case WantsSuccessor():
                    self.spent = True
                case Cut(connections):
                    self.cut = connections

    def close(self) -> None:
        """The master's descriptors of it, but the pidfd; also in a child that has inherited them."""
        self.link.close()
        os.close(self.stacks_fd)


class Roster:
    """All slots, and the workers in them."""

    def __init__(self) -> None:
        self.slots: list[Slot] = []
        """Those that are wanted, by number."""
        self._by_seat: dict[int, WorkerHandle] = {}
        self.several = mmap.mmap(-1, 1)
        """A byte that the workers share, so that it changes for all of them: 1 if two slots or more are wanted."""

    @property
    def members(self) -> list[WorkerHandle]:
        """Workers that are alive, or not yet reaped; those that are about to leave included."""
        return list(self._by_seat.values())

    def lives_in(self, seat: int | None) -> WorkerHandle | None:
        """The worker in this seat."""
        return None if seat is None else self._by_seat.get(seat)

    @property
    def all_ready(self) -> bool:
        """Each slot has a worker that is READY."""
        return all(slot.member is not None and slot.member.state is State.READY for slot in self.slots)

    @property
    def all_left_behind(self) -> bool:
        """No worker is left, but those that cannot be killed."""
        return all(member.left_behind for member in self._by_seat.values())

    def free_seat(self, preferred: int | None) -> int:
        """Where in the core the next worker may live. Raises OSError if there are too many."""
        if preferred is not None and preferred not in self._by_seat:
            return preferred
        for seat in range(SEATS):
            if seat not in self._by_seat:
                return seat
        raise OSError(0, f"{SEATS} workers are alive")

    def grow(self) -> Slot:
        """One more slot."""
        self.slots.append(Slot(len(self.slots)))
        self.several[0] = len(self.slots) > 1
        return self.slots[-1]

    def shrink(self) -> Slot:
        """One less: the newest. Its workers live on."""
        slot = self.slots.pop()
        self.several[0] = len(self.slots) > 1
        slot.retired, slot.respawn_at_ns = True, None
        return slot

    def add(self, member: WorkerHandle, *, successor: bool) -> None:
        slot = member.slot
        slot.restarts += slot.generation > 0
        slot.generation, slot.respawn_at_ns, slot.seat = member.generation, None, member.seat
        self._by_seat[member.seat] = member
        if successor:
            slot.successor = member
        else:
            slot.member = member

    def promote(self, member: WorkerHandle) -> WorkerHandle | None:
        """The successor takes the slot over; the worker before it lives on without one."""
        slot = member.slot
        old, slot.member, slot.successor = slot.member, member, None
        return old

    def vacate(self, member: WorkerHandle) -> bool:
        """It lives on without a slot. Whether it had one, as its worker or as the successor."""
        slot = member.slot
        if slot.member is member:
            slot.member, slot.since_ns = None, time.monotonic_ns()
        elif slot.successor is member:
            slot.successor = None
        else:
            return False
        return True

    def remove(self, member: WorkerHandle) -> None:
        """It is dead and reaped."""
        self.vacate(member)
        del self._by_seat[member.seat]
        member.close()
