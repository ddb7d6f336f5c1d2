"""A group without processes: its core, its rotation and its fork only note what is asked of them."""

from __future__ import annotations

import os
from collections import Counter
from types import SimpleNamespace
from typing import Any

from workers import member

from pyfanout.config import Config
from pyfanout.core import ScoreView
from pyfanout.link.messages import Message
from pyfanout.master.callbacks import EVENTS, Callbacks
from pyfanout.master.group import Group
from pyfanout.master.lifecycle import State
from pyfanout.master.process import ExitReport
from pyfanout.master.roster import Roster, Slot, WorkerHandle


class Nothing:
    """An outbox in which nothing waits."""

    def __bool__(self) -> bool:
        return False

    def flush(self) -> None:
        pass


class Grouped:
    """A group of `workers` slots. `done` is what it and its rooms have asked for, in order."""

    def __init__(self, workers: int, **options: Any) -> None:
        self.config = Config(workers=workers, **options)
        self.done: list[str] = []
        self.untaken: Counter[int] = Counter()
        self.refused = 0
        """So many forks fail next."""
        self.fails_to_enter = False
        callbacks = Callbacks()
        for event in EVENTS:
            callbacks.add(event, lambda notice: self.done.append(f"{notice.event} {notice.detail}".rstrip()))
        self.run_callbacks = callbacks.run
        self.roster = Roster()
        core: Any = SimpleNamespace(
            look=lambda _: ScoreView(1, 0, 0, 0, 0, 0, 0, 0, 0),
            untaken=lambda seat: self.untaken[seat],
            end=lambda seat: self.done.append(f"end {seat}"),
            finish=lambda limit: self.done.append(f"finish {limit}"),
            stop_new=lambda number: self.done.append(f"stop_new {number}"),
        )
        self.core = core
        rotation: Any = SimpleNamespace(enter=self._enter, leave=lambda seat: self.done.append(f"leave {seat}"))
        spawner: Any = SimpleNamespace(
            fork=self._fork, unwatch=lambda _: None, unwatch_link=lambda _: None, make_room=lambda _: None
        )
        self.group = Group(
            self.config,
            core,
            self.roster,
            rotation,
            spawner,
            callbacks,
            on_ready=lambda: self.done.append("on_ready"),
            on_failed=lambda why: self.done.append(f"on_failed {why}"),
        )
        self.group.begin()

    def _enter(self, seat: int, _ready: object, _workers: int) -> OSError | None:
        if self.fails_to_enter:
            return OSError(12, "no room")
        self.done.append(f"enter {seat}")
        return None

    def _fork(self, slot: Slot, on_death: Any, on_message: Any) -> WorkerHandle:
        if self.refused:
            self.refused -= 1
            raise OSError(11, "no fork")
        seat = self.roster.free_seat(slot.seat)
        new = member(slot, state=State.BOOTING, seat=seat, generation=slot.generation + 1)
        process: Any = new.process
        link: Any = SimpleNamespace(
            send=lambda message: self.done.append(f"{type(message).__name__} to {new.process.pid}"),
            receive=lambda: [self.said.pop()],
            last_words=list,
            ping=lambda _: self.done.append(f"ping {new.process.pid}"),
            is_answered_by=lambda _: True,
            owes_pong=False,
            owed_since_ns=0,
            outbox=Nothing(),
            close=lambda: None,
        )
        new.link, new.stacks_fd = link, os.memfd_create("stacks")
        process.send = lambda signum: self.done.append(f"signal {signum} to {process.pid}")
        process.abort = lambda *, core: self.done.append(f"abort {process.pid}")
        process.reap = lambda: self.report
        self._on_message, self._on_death = on_message, on_death
        self.roster.add(new, successor=slot.member is not None)
        return new

    def start(self) -> list[WorkerHandle]:
        """Fork what is due; the new ones."""
        before = self.roster.members
        while (waiting := self.group.respawns.due(2**62)) or self.group.reloads.next():
            if waiting:
                waiting.respawn_at_ns = 0
            self.group.start_one(1)
        return [each for each in self.roster.members if each not in before]

    def say(self, worker: WorkerHandle, message: Message) -> None:
        self.said = [message]
        self._on_message(worker)

    def die(self, worker: WorkerHandle, report: ExitReport | None = None) -> None:
        self.report = report or ExitReport(0)
        self._on_death(worker)

    def news(self) -> list[str]:
        """What was done since the last call, the callbacks included."""
        self.run_callbacks()
        done, self.done = self.done, []
        return done

    def close(self) -> None:
        for worker in self.roster.members:
            worker.close()
