"""Which workers exist: by slot, generation, pid. The only place where one is added or removed.

Owns the master's end of each control socket. Decides nothing.
"""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from pyfanout.control import Failed
from pyfanout.master.lifecycle import State
from pyfanout.master.process import Process

log = logging.getLogger("pyfanout.master")


@dataclass(slots=True, eq=False)
class Member:
    """One worker: a process of one generation, in one slot."""

    slot: int
    generation: int
    process: Process
    control: socket.socket
    boot_deadline_ns: int | None
    """CLOCK_MONOTONIC; None when it is ready."""
    forked_ns: int = field(default_factory=time.monotonic_ns)
    state: State = State.BOOTING
    since_ns: int = field(default_factory=time.monotonic_ns)
    """When it came into `state`."""
    ready_ns: int | None = None
    pool: bool = False
    """It reads from the pool channel."""
    threads: int = 0
    """Of it that take connections; 0: an event loop does."""
    retiring: bool = False
    """It announced its exit: no death to worry about."""
    failure: Failed | None = None
    tokens: dict[int, int] = field(default_factory=dict)
    """What is watched of it: token by descriptor."""

    def __str__(self) -> str:
        return f"worker={self.slot} gen={self.generation} pid={self.process.pid}"

    def become(self, state: State, now_ns: int) -> None:
        """The one setter of `state`; it logs."""
        if state is not self.state:
            took_ms = (now_ns - self.since_ns) / 1e6
            log.debug("%s %s->%s after %.0fms", self, self.state.name, state.name, took_ms)
            self.state, self.since_ns = state, now_ns


@dataclass(slots=True, eq=False)
class Slot:
    """A place for a worker; outlives it."""

    number: int
    generation: int = 0
    """Of its last worker, from 1."""
    member: Member | None = None
    deaths: int = 0
    """In a row, see policy."""
    respawn_at_ns: int | None = None
    """When it gets its next worker; None: it has one, or shall have none."""


class Roster:
    """All slots, and who is in them."""

    def __init__(self, slots: int) -> None:
        self.slots = [Slot(number) for number in range(slots)]

    @property
    def members(self) -> Iterator[Member]:
        """Who is alive, or not yet reaped."""
        return (slot.member for slot in self.slots if slot.member is not None)

    def of_state(self, state: State) -> int:
        return sum(member.state is state for member in self.members)

    def add(self, member: Member) -> None:
        slot = self.slots[member.slot]
        slot.member, slot.generation, slot.respawn_at_ns = member, member.generation, None

    def remove(self, member: Member) -> Slot:
        """Close its control socket; the slot is empty."""
        slot = self.slots[member.slot]
        slot.member = None
        member.control.close()
        return slot
