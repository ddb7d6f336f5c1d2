"""Forks a worker, and in its process lets go of all that is the master's. Decides nothing: which slot gets a worker,
and when, is the group's affair.

The only room where a worker's process, its control socket and its seat in the core are made; if one of them cannot be,
nothing of it is left.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import logging
import mmap
import os
import signal
import socket
import time
from collections.abc import Callable

from pyfanout.core import Core, WorkerEnds
from pyfanout.groupconfig import GroupConfig
from pyfanout.host import stdio
from pyfanout.limits import OpenFiles
from pyfanout.link.link import Link
from pyfanout.master import timing
from pyfanout.master.process import file_for_stacks, spawn
from pyfanout.master.roster import Roster, Slot, WorkerHandle
from pyfanout.master.watches import Watches

log = logging.getLogger("pyfanout.master")

WorkerMain = Callable[[int, int, WorkerEnds, socket.socket, int, mmap.mmap], int]
"""What a worker does, given its slot, its generation, its ends, its end of the control socket, the descriptor to
write its stacks to if it dies of a signal, and `Roster.several`; its exit code."""

OnWorker = Callable[[WorkerHandle], None]
"""Called with the worker that something has happened to."""


class Spawner:
    """Of one roster, whose workers live in one core."""

    def __init__(
        self,
        config: GroupConfig,
        core: Core,
        roster: Roster,
        watches: Watches,
        open_files: OpenFiles,
        forget: Callable[[], None],
        worker_main: WorkerMain,
    ) -> None:
        """`forget` is called first in each child: it lets go of what its caller has for the master alone."""
        self._config = config
        self._core = core
        self._roster = roster
        self._watches = watches
        self._open_files = open_files
        self._forget = forget
        self._worker_main = worker_main

    def fork(self, slot: Slot, on_death: OnWorker, on_message: OnWorker) -> WorkerHandle:
        """A new worker for the slot: its only one, or the successor of the one that serves. `on_death` is called when
        it is to be reaped, `on_message` when its control socket is readable. Raises OSError."""
        with contextlib.ExitStack() as undo:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            undo.callback(ours.close)
            with theirs:
                ours.setblocking(False)
                stacks_fd = file_for_stacks()
                undo.callback(os.close, stacks_fd)
                generation = slot.generation + 1
                seat = self._roster.free_seat(slot.seat)
                self._core.begin(seat, generation, slot.number)
                if seat != slot.seat:  # else what waits in it waits for the next one
                    undo.callback(self._core.end, seat)
                ends: list[WorkerEnds] = []
                start_read, start_write = os.pipe()
                undo.callback(os.close, start_write)
                undo.callback(os.close, start_read)
                gc.collect(1)  # garbage is not copied to the child, and is collected before there is more
                process = spawn(
                    functools.partial(self._first_steps, seat, ours, ends, start_read, start_write),
                    lambda: self._worker_main(
                        slot.number, generation, ends[0], theirs, stacks_fd, self._roster.several
                    ),
                )
            boot_deadline_ns = time.monotonic_ns() + int(self._config.boot_timeout * 1e9)
            member = WorkerHandle(slot, generation, seat, process, Link(ours), stacks_fd, boot_deadline_ns)
            try:
                self._watches.add(process.pidfd, functools.partial(on_death, member))
                self._watches.add(ours.fileno(), functools.partial(on_message, member))
            except OSError:
                self.unwatch(member)
                process.kill(timing.GRACE_NS / 1e9)
                raise
            self._roster.add(member, successor=slot.member is not None)
            undo.pop_all()
            os.close(start_read)
            os.close(start_write)
            return member

    def _first_steps(
        self, seat: int, ours: socket.socket, ends: list[WorkerEnds], start_read: int, start_write: int
    ) -> None:
        """In the child, signals blocked: let go of all that is the master's, in this order. Then wait until the master
        has closed its `start_write`: before that it may be refused what it needs to learn of this child's death, and
        kill it, which must not have a client by then."""
        self._forget()
        ends.append(self._core.abandon(seat))
        ours.close()
        for member in self._roster.members:
            os.close(member.process.pidfd)
            member.close()
        self._open_files.restore()
        stdio.occupy()
        os.close(start_write)
        os.read(start_read, 1)
        os.close(start_read)

    def make_room(self, workers: int) -> None:
        """Raise the limit of descriptors as far as so many workers need."""
        self._open_files.raise_to(timing.open_files(workers, self._config.threads))

    def unwatch_link(self, member: WorkerHandle) -> None:
        """Nothing that it says is read any more."""
        self._watches.remove(member.link.fileno())

    def unwatch(self, member: WorkerHandle) -> None:
        """Nor is its death seen."""
        self._watches.remove(member.process.pidfd)
        self.unwatch_link(member)

    def bury(self) -> None:
        """Kill and reap all that are left: no process stays behind, whatever happened."""
        for member in self._roster.members:
            member.process.send(signal.SIGKILL)
        end_ns = time.monotonic_ns() + timing.GRACE_NS
        for member in self._roster.members:
            if not member.process.kill(0 if member.left_behind else max(0, end_ns - time.monotonic_ns()) / 1e9):
                log.critical("%s cannot be killed; the master ends and leaves it behind", member)
            self._roster.remove(member)
