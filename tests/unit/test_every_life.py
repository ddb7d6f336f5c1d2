"""The supervisor itself, in every order of what may happen to it: workers that boot, answer, crash, leave or fail,
reloads or scaling, a stop, clients that wait, and time passing in between. No process is forked and no time passes: the
kernel, the core and the workers are a `World` here, whose moves are all tried, in each state that was not seen before.
The workers are event loops, whose channel is their own, or read one pool, and are pinged only where a reload wants to
know.

In each state: who is in rotation is READY, and who is READY is in rotation; a slot has one worker and at most one
successor; at most one is forked before connections are passed again; who serves is told to leave only when another, and
its whole batch, has served for min_uptime and answered a ping then; who dies young again is not replaced at once. And
from each state, when from then on all do what they are told, the server comes to rest: all slots served and nobody else
left, or all gone after a stop; and no client waits any more, unless a stop had to end a worker that was hung.
"""

from __future__ import annotations

import errno
import functools
import itertools
import logging
import os
import signal
import socket
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest

from pyfanout.config import Config
from pyfanout.core import POOL, Event, EventKind, ScoreView
from pyfanout.errors import CoreError, StuckError, WorkerError
from pyfanout.link import link, outbox
from pyfanout.link.messages import (
    WAKE,
    Drain,
    Failed,
    Ping,
    Pong,
    Ready,
    Retiring,
    Short,
    Stage,
    WantsSuccessor,
    receive,
    send,
)
from pyfanout.master import deaths, group, lifecycle, lives, respawn, roster, shutdown, spawner, supervisor, timing
from pyfanout.master.callbacks import Callbacks
from pyfanout.master.group import Group
from pyfanout.master.lifecycle import Action, State, WorkerEvent
from pyfanout.master.phase import Phase
from pyfanout.master.process import ExitReport
from pyfanout.master.readiness import Readiness
from pyfanout.master.signals import Request
from pyfanout.master.supervisor import Supervisor

REST = 200
"""Moves after which a server must have come to rest, if all do what they are told."""
PIDFDS = 1_000_000
"""Numbers that no descriptor has."""

Move = tuple[Any, ...]


class Process:
    """A worker, as the kernel and the master see it."""

    def __init__(self, world: World, pid: int, control: socket.socket) -> None:
        self.pid, self.pidfd, self.control, self._world = pid, PIDFDS + pid, control, world
        self.booting = True
        self.cut_off = False
        """Nothing can be passed to it."""
        self.told = self.deaf = self.dying = self.short = False
        self.pings: list[int] = []
        self.report: ExitReport | None = None

    def send(self, signum: int) -> None:
        self.dying = self.dying or signum == signal.SIGKILL or (signum == signal.SIGABRT and not self.deaf)
        self.told = self.told or signum != WAKE

    def abort(self, *, core: bool) -> None:
        assert not core
        self.send(signal.SIGABRT)

    def kill(self, _wait_s: float) -> bool:
        self.reap()
        return True

    def reap(self) -> ExitReport:
        if self in self._world.workers:
            self._world.workers.remove(self)
        self.control.close()
        return self.report or ExitReport(None, signal.SIGKILL)

    def listen(self) -> None:
        """What the master has said by now."""
        while True:
            try:
                message = receive(self.control)
            except OSError:
                return
            if isinstance(message, Ping):
                self.pings.append(message.number)
            elif isinstance(message, Drain):
                self.told = True
            elif message is None:
                return


class Outbox(outbox.Outbox):
    """No worker is told to leave that may not."""

    def __init__(self, world: World, sock: socket.socket) -> None:
        super().__init__(sock)
        self._world = world

    def send(self, message: Any) -> None:
        if isinstance(message, Drain):
            (member,) = [each for each in self._world.supervisor._roster.members if each.link.outbox is self]
            self._world.check_leave(member)
        super().send(message)


class World:
    """What the supervisor calls: a core, a clock, fork. It has `moves`, and `do` makes one."""

    def __init__(self, case: Case, config: Config) -> None:
        self.now_ns = 10**12
        self.workers: list[Process] = []
        self.requests, self.faults, self._kinds = list(case.requests), case.faults, case.kinds
        self._batches, self._pool, self._clients, self._slots = case.batches, case.pool, case.clients, case.slots
        self.queued = 0
        """Clients in the kernel's queue, or in the master's hands."""
        self.waiting: Counter[int] = Counter()
        """Clients that were passed and not taken, by seat, or in the POOL."""
        self._recalled: set[int] = set()
        """Places out of rotation, whose clients the master takes back."""
        self.refused: str | None = None
        """What the system has no room for, when it is asked next: a fork, or an entry into rotation."""
        self.entered: set[int] = set()
        self.open: set[int] = set()
        """Places with a channel."""
        self.finishing = self.finished = self.over = False
        self._forked = self._unseen = False
        """Since the core ran last: a worker was forked; a stop began, for which no client may wait."""
        self._watched: dict[int, int] = {}
        self._events: list[Event] = []
        self._asked: list[Request] = []
        self._pids = itertools.count(1)
        self.supervisor = Supervisor(config, [], self._worker_main, Callbacks(), self, Readiness(None))  # type: ignore[arg-type]
        self.min_uptime_ns = int(config.min_uptime * 1e9)

    @property
    def group(self) -> Group:
        return self.supervisor._group

    # ---- what the supervisor sees ------------------------------------------------------------------------------------

    def __enter__(self) -> World:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def fileno(self) -> int:
        return PIDFDS

    def hold(self) -> None:
        pass

    heard = False

    def read(self) -> list[Request]:
        asked, self._asked = self._asked, []
        return asked

    def watch(self, fd: int, token: int) -> None:
        self._watched[fd] = token

    def unwatch(self, fd: int) -> None:
        del self._watched[fd]

    def run(self, _timeout_ns: int | None) -> list[Event]:
        self._forked = self._unseen = False
        events, self._events = self._events, []
        return events

    def finish(self, _limit: int) -> None:
        self.finishing = self._unseen = True

    def begin(self, seat: int, _generation: int, _number: int) -> None:
        assert seat not in self.entered
        self.open.add(seat)

    def enter(self, seat: int, **_: object) -> None:
        assert seat in self.open
        assert seat not in self.entered
        member: Any = self.supervisor._roster.lives_in(seat)
        member.process.cut_off |= self.refused == "no entry"
        self._refuse("no entry")
        self.entered.add(seat)
        self._recalled.discard(seat)

    def leave(self, seat: int) -> None:
        self.entered.discard(seat)
        self._recalled.add(seat)

    def end(self, seat: int) -> None:
        assert seat not in self.entered
        assert not (self.finished and self.waiting[seat]), "nobody will read what waits there"
        self.open.discard(seat)
        self._recalled.add(seat)

    def look(self, seat: int) -> ScoreView:
        return ScoreView(1, 0, 0, 0, self.now_ns, 0, 0, 1, 0)

    def untaken(self, seat: int) -> int:
        return self.waiting[seat]

    lost = 0

    def spawn(self, first_steps: Any, entry: Callable[[], int]) -> Process:
        assert not self._forked, "clients wait for two forks"
        assert not self._unseen, "a worker is forked for a stop, although there may be no client for it"
        self._refuse("no fork")
        self._forked = True
        first_steps.args[2].append(None)  # the ends, which no one uses
        entry()
        return self.workers[-1]

    def _refuse(self, what: str) -> None:
        if self.refused == what:
            self.refused = None
            raise CoreError(errno.EAGAIN, what)

    def _worker_main(self, slot: int, _generation: int, _station: Any, control: socket.socket, *_: Any) -> int:
        (it,) = [each for each in self.supervisor._roster.slots if each.number == slot]
        if it.deaths > 1 and it.member is None and self.group.reloads.current is None:
            assert self.now_ns >= it.died_ns[-1] + timing.FIRST_DELAY_NS, "no back-off"
        self.workers.append(Process(self, next(self._pids), control.dup()))
        return 0

    # ---- what may happen ---------------------------------------------------------------------------------------------

    def moves(self) -> Iterator[Move]:
        """One thing, or, in some cases, two before the supervisor looks."""
        single = list(self._single_moves())
        yield from single
        if self._batches:
            yield from (("both", *two) for two in itertools.permutations(single, 2) if ("time",) not in two)

    def _single_moves(self) -> Iterator[Move]:
        for number, worker in enumerate(self.workers):
            if worker.report is not None:
                continue
            does_as_told = not (worker.deaf or worker.dying)
            if worker.booting and does_as_told:
                yield "ready", number
            if worker.pings and does_as_told:
                yield "pong", number
            if worker.short and does_as_told:
                yield "able", number
            at_the_end = self.finished and not worker.booting and not self.waiting[self.channel_of(worker)]
            if worker.dying or (does_as_told and (worker.told or at_the_end)):
                yield "exit", number
            if (
                does_as_told
                and not (worker.booting or worker.told or worker.short)
                and self.waiting[self.channel_of(worker)]
            ):
                yield "take", number
            if self.faults:
                yield from ((kind, number) for kind in self._kinds if self._may(kind, worker))
        back = [seat for seat in sorted(self._recalled) if self.waiting[seat]]
        if not self.finished and self.entered:
            yield from (("recall", seat) for seat in back)
            if self.queued:
                yield from (("pass", seat) for seat in ([POOL] if self._pool else sorted(self.entered)))
        if self._clients and not self.finishing:
            yield ("client",)
        if self.finishing and not (self.finished or self.queued or back):
            yield ("finished",)
        for number, request in enumerate(self.requests):
            if request not in self.requests[:number]:
                yield "ask", request
        if self.faults and not self.refused:
            yield from ((kind,) for kind in ("no fork", "no entry") if kind in self._kinds)
        if (deadlines := self.supervisor._deadlines()) and not self._is_patience(min(deadlines)):
            yield ("time",)

    def _is_patience(self, then_ns: int) -> bool:
        """With one that was killed, when another one is left behind already, or there are several slots: one in a world
        of one slot is enough."""
        members = self.supervisor._roster.members
        last = any(member.state is State.KILLED and member.deadline_ns == then_ns for member in members)
        return last and (self._slots > 1 or any(member.left_behind for member in members))

    def _may(self, kind: str, worker: Process) -> bool:
        """Whether this fault can happen to it."""
        match kind:
            case "crash":
                return True
            case "deaf":
                return not worker.deaf
            case "fails":
                return worker.booting and not worker.deaf
            case "spent" | "resigns" | "broken" | "short":
                return not (worker.booting or worker.deaf or worker.told or worker.short)
        return False

    def do(self, move: Move) -> None:
        if move[0] == "both":
            for each in move[1:]:
                if each in list(self._single_moves()):  # the first may have made it impossible
                    self._act(each)
        else:
            self._act(move)
        self.settle()

    def _act(self, move: Move) -> None:
        worker: Any = self.workers[move[1]] if move[0] in ON_WORKERS else None
        match move:
            case ("client" | "pass" | "recall", *seats):
                self._move_client(move[0], *seats)
            case ("take", _):
                self.waiting[self.channel_of(worker)] -= 1
            case ("ready", _):
                worker.booting = False
                self._say(worker, Ready(pool=self._pool, threads=int(self._pool)))
            case ("pong", _):
                self._say(worker, Pong(worker.pings.pop(0), 0))
            case ("exit", _):
                self._die(worker, ExitReport(None, signal.SIGKILL) if worker.dying else ExitReport(0))
            case ("crash", _):
                self.faults -= 1
                self._die(worker, ExitReport(None, signal.SIGSEGV))
            case ("deaf", _):
                self.faults -= 1
                worker.deaf = True
            case ("fails", _):
                self.faults -= 1
                self._say(worker, Failed(Stage.LOAD, "no", ""))
                self._die(worker, ExitReport(4))
            case ("spent", _):
                self.faults -= 1
                self._say(worker, WantsSuccessor())
            case ("short" | "able" as what, _):
                self.faults -= what == "short"
                worker.short = what == "short"
                self._say(worker, Short(worker.short))
            case ("resigns", _):
                self.faults -= 1
                worker.told = True
                self._say(worker, Retiring())
            case ("broken", _):
                self.faults -= 1
                worker.told = worker.cut_off = True
                self._events.append(Event(EventKind.CHANNEL_BROKEN, 0, self._member(worker).seat))
            case ("no fork" | "no entry" as what,):
                self.faults -= 1
                self.refused = what
            case ("finished",):
                self.finished = True
                self._events.append(Event(EventKind.FINISHED, 0, 0))
            case ("ask", request):
                self.requests.remove(request)
                self._asked.append(request)
                self._events.append(Event(EventKind.WATCHED, 0, self._watched[self.fileno()]))
            case ("time",):
                self.now_ns = max(self.now_ns, min(self.supervisor._deadlines()))

    def _move_client(self, how: str, seat: int = POOL) -> None:
        match how:
            case "client":
                self._clients -= 1
                self.queued += 1
            case "pass":
                self.queued -= 1
                self.waiting[seat] += 1
            case "recall":
                self.waiting[seat] -= 1
                self.queued += 1

    def settle(self) -> None:
        """The supervisor deals with it, and with what comes of that."""
        while not self.over:
            self.over = not self.supervisor.step()
            if not self._events and all(then_ns > self.now_ns for then_ns in self.supervisor._deadlines()):
                break
        if not self.over:
            self.over = not self.supervisor.step()
        for worker in self.workers:
            worker.listen()

    def _say(self, worker: Process, message: Any) -> None:
        send(worker.control, message)
        token = self._watched.get(self._member(worker).link.fileno())
        if token is not None:
            self._events.append(Event(EventKind.WATCHED, 0, token))

    def _die(self, worker: Process, report: ExitReport) -> None:
        worker.report = report
        worker.control.close()
        self._events.append(Event(EventKind.WATCHED, 0, self._watched[worker.pidfd]))

    def channel_of(self, worker: Process) -> int:
        return POOL if self._pool else self._member(worker).seat

    def _member(self, worker: Process) -> roster.WorkerHandle:
        (member,) = [each for each in self.supervisor._roster.members if each.process is worker]
        return member

    # ---- what must be ------------------------------------------------------------------------------------------------

    def check_leave(self, member: Any) -> None:
        """It is told to: who shall serve instead?"""
        if self.group.phase.is_stop or member.slot.retired or member.process.cut_off:
            return
        one = self.supervisor
        if member is member.slot.successor:
            assert member.slot.member is not None
            assert member.slot.member.state is State.READY, "nobody is left"
        elif member.ready_ns is not None:
            other = member.slot.member
            assert other is not None
            assert other is not member
            assert other.ready_ns is not None
            assert other.pong_ns is not None, "its successor has not answered a ping"
            assert other.pong_ns >= other.ready_ns + self.min_uptime_ns, "its successor is on trial"
            batch = [slot.successor for slot in one._roster.slots if slot.successor is not None]
            assert one._config.reload_batch == 1 or all(each.proved for each in batch), "its batch is on trial"

    def check(self) -> None:
        members = self.supervisor._roster.members
        serving = {member.seat for member in members if member.state is State.READY and not member.short}
        assert self.entered >= serving
        assert self.entered == serving or self.finished, "in rotation, where nothing is passed any more"
        assert {member.seat for member in members} <= self.open
        for slot in self.supervisor._roster.slots:
            assert slot.successor is None or slot.member is not None
        for member in members:
            in_its_slot = member in (member.slot.member, member.slot.successor)
            assert in_its_slot or member.state not in (State.BOOTING, State.READY) or self.finishing, member

    def key(self) -> tuple[Any, ...]:
        """States with the same key have the same future. Slots are alike, so they are in any order. Of one slot a time
        counts by how far it is away; of several by its turn, for they would be too many: that one which begins later
        might be over before one that has begun is then not seen in each of its forms."""
        one, reloads = self.supervisor, self.group.reloads
        turns = sorted(set(one._deadlines()))

        def away(then_ns: int | None) -> int | None:
            if then_ns is None:
                return None
            return then_ns - self.now_ns if len(one._roster.slots) == 1 else turns.index(then_ns)

        slots: dict[roster.Slot, list[tuple[Any, ...]]] = {slot: [] for slot in one._roster.slots}
        for member in sorted(one._roster.members, key=lambda member: member.generation):
            slot, process = member.slot, member.process
            slots.setdefault(slot, []).append(
                (
                    *(slot.member is member, slot.successor is member, member.seat == slot.seat),
                    *(member.state.name, away(member.deadline_ns), self._has_lived(member), not member.link.owes_pong),
                    *(member.seat in self.open, member.seat in self.entered, member.pong_ns is None),
                    *(self.waiting[member.seat], member.seat in self._recalled),
                    *(
                        member.resigned,
                        member.spent,
                        member.short,
                        member.proved,
                        member.verdict is None,
                        member.failure is None,
                    ),
                    *(
                        reloads.has_on_trial(member),
                        process.booting,
                        process.told,
                        process.deaf,
                        process.dying,
                        process.short,
                        process.cut_off,
                    ),
                    *(len(process.pings), str(process.report)),
                )
            )
        waiting = reloads.current.waiting if reloads.current else []
        found = sorted(
            str(
                (
                    *(slot.retired, slot in waiting, away(slot.respawn_at_ns), min(slot.deaths, 3), slot.failed),
                    *(slot.seat is not None and self.waiting[slot.seat], members),
                )
            )
            for slot, members in slots.items()
        )
        strangers = self.open - {member.seat for member in one._roster.members}
        return (
            *(str(found), len(strangers), len(self.entered), tuple(self.requests), self.faults, self.refused),
            *(self._clients, self.queued, self.waiting.total(), self.waiting[POOL]),
            *(bool(reloads.current), reloads.again is not None, away(one._shutdown.deadline_ns)),
            *(self.group.phase, self.group.ever_ready, self.finishing, self.finished, self.over),
        )

    def _has_lived(self, member: roster.WorkerHandle) -> bool | None:
        """None: it is not ready yet."""
        ready_ns = member.ready_ns
        return None if ready_ns is None else self.now_ns - ready_ns >= self.min_uptime_ns


@functools.cache
def config_of(case: Case) -> Config:
    return Config(
        bind="127.0.0.1:0",
        workers=case.slots,
        reload_batch=case.reload_batch,
        ping_interval=0,
        drain_timeout=5,
        boot_timeout=60,
    )


@contextmanager
def world(case: Case) -> Iterator[World]:
    """In the beginning."""
    with ExitStack() as undo:
        patched = undo.enter_context(pytest.MonkeyPatch.context())
        one = World(case, config_of(case))
        clock = SimpleNamespace(monotonic_ns=lambda: one.now_ns)
        for module in (supervisor, group, lives, respawn, shutdown, spawner, roster):
            patched.setattr(module, "time", clock)
        patched.setattr(respawn, "random", SimpleNamespace(random=lambda: 0.0))
        patched.setattr(lives, "AGAIN_NS", 10**15)  # a worker that boots is told once, for it hears
        patched.setattr(link, "Outbox", functools.partial(Outbox, one))
        patched.setattr(supervisor, "Core", lambda *_: one)
        patched.setattr(spawner, "spawn", one.spawn)
        for module in (supervisor, spawner):
            patched.setattr(module, "gc", SimpleNamespace(collect=str, freeze=int, unfreeze=int))
        patched.setattr(deaths, "OomKills", lambda: SimpleNamespace(look=id, happened=lambda _: False))
        logging.disable()
        undo.callback(logging.disable, logging.NOTSET)
        with one.supervisor:
            one.settle()
            yield one


def come_to_rest(one: World) -> None:
    """All do what they are told, and nothing else happens."""
    one.faults = 0
    one.requests.clear()
    too_late = one.group.phase is Phase.LATE
    hung = {one.channel_of(worker) for worker in one.workers if worker.deaf}
    if any(not (worker.deaf or worker.dying or worker.told) for worker in one.workers):
        hung.discard(POOL)  # which somebody reads
    for _ in range(REST):
        moves = [move for move in one.moves() if move[0] != "time"] or list(one.moves())
        if one.over or not moves:
            break
        one.do(moves[0])
        one.check()
    members = one.supervisor._roster.members
    if one.group.phase is not Phase.AT_ONCE and not too_late:
        assert hung or one.group.phase is not Phase.LATE, "a stop waits for nobody"
        assert not one.queued
        assert {seat for seat, count in one.waiting.items() if count} <= hung, "somebody is left"
    if one.group.phase.is_stop:
        assert one.over
        assert members == []
    else:
        assert one.supervisor.settled, "a slot is not served"
        assert len(members) == len(one.supervisor._roster.slots)
        assert one.open == one.entered


def explore(case: Case) -> int:
    """Every state, breadth first, so that a failure names a shortest way to it. How many there are."""
    seen: set[tuple[Any, ...]] = set()
    paths: deque[tuple[Move, ...]] = deque([()])
    while paths:
        path = paths.popleft()
        try:
            with world(case) as one:
                try:
                    for move in path:
                        one.do(move)
                except StuckError:  # of those that were killed one is left behind
                    assert all(worker.dying for worker in one.workers), "it was not killed"
                    continue
                except WorkerError:  # it gives up, as it should if none was ever ready
                    assert not one.group.ever_ready
                    continue
                one.check()
                if one.key() in seen:
                    continue
                seen.add(one.key())
                if not one.over:
                    paths += [(*path, move) for move in one.moves()]
                come_to_rest(one)
        except WorkerError:  # the same, on the way to rest
            assert all(worker.dying for worker in one.workers), "it was not killed"
            continue
        except BaseException:
            print("after", path)
            raise
    return len(seen)


ON_WORKERS = {
    *("ready", "pong", "exit", "take", "crash", "deaf", "fails", "spent", "resigns", "broken", "short", "able"),
}
"""Moves of one of them."""
DEATHS = ("crash", "deaf")
FAREWELLS = ("fails", "spent", "resigns", "broken", "no fork", "no entry")
FAREWELLS_POOL = ("fails", "spent", "resigns", "no fork", "no entry")
"""What breaks the pool is tests/core/test_channel.py's."""


@dataclass(frozen=True)
class Case:
    """What may happen in it."""

    slots: int
    requests: tuple[Request, ...] = ()
    faults: int = 0
    """How many, of these kinds."""
    kinds: tuple[str, ...] = DEATHS
    batches: bool = False
    """Two things happen before the supervisor looks."""
    clients: int = 0
    pool: bool = False
    """They wait in one channel, that all workers read."""
    reload_batch: int = 1


SHORT = {
    "deaths": Case(1, faults=2),
    "reload, fault": Case(1, (Request.RELOAD,), 1),
    "reload, farewell": Case(1, (Request.RELOAD,), 1, FAREWELLS),
    "reload, stop": Case(1, (Request.RELOAD, Request.STOP)),
    "reload, stop, at once": Case(1, (Request.RELOAD, Request.STOP), batches=True),
    "fewer, more": Case(2, (Request.FEWER, Request.MORE)),
    "stop, fault": Case(2, (Request.STOP,), 1),
    "stop, fault, client": Case(1, (Request.STOP,), 1, clients=1),
    "stop, fault, pool": Case(1, (Request.STOP,), 1, clients=1, pool=True),
    "reload, fault, pool": Case(1, (Request.RELOAD,), 1, clients=1, pool=True),
    "short": Case(2, (Request.STOP,), 1, ("short",), clients=1),
    "reload, short": Case(1, (Request.RELOAD,), 1, ("short",), clients=1),
    "reload, both": Case(2, (Request.RELOAD,), reload_batch=2),
}
LONG = {
    **SHORT,
    "stop, faults": Case(2, (Request.STOP,), 2),
    "stop, farewell": Case(2, (Request.STOP,), 1, FAREWELLS),
    "stop, fault, at once": Case(2, (Request.STOP,), 1, batches=True),
    "fast stops, fault": Case(2, (Request.STOP, Request.STOP_NOW, Request.STOP_NOW), 1),
    "reload, fault, two": Case(2, (Request.RELOAD,), 1),
    "reload, both, fault": Case(2, (Request.RELOAD,), 1, reload_batch=2),
    "reload, farewells, at once": Case(1, (Request.RELOAD,), 1, (*DEATHS, *FAREWELLS), batches=True),
    "reload, stop, fault": Case(2, (Request.RELOAD, Request.STOP), 1),
    "reloads, fault": Case(1, (Request.RELOAD, Request.RELOAD), 1),
    "fewer, reload": Case(2, (Request.FEWER, Request.RELOAD)),
    "reload, more": Case(1, (Request.RELOAD, Request.MORE)),
    "reload, stop, crash, client": Case(1, (Request.RELOAD, Request.STOP), 1, ("crash",), clients=1),
    "stop, spent, crash, client": Case(1, (Request.STOP,), 2, ("spent", "crash"), clients=1),
    "stop, crash, client, at once": Case(1, (Request.STOP,), 1, ("crash",), batches=True, clients=1),
    "stop, crash, client, pool, at once": Case(1, (Request.STOP,), 1, ("crash",), batches=True, clients=1, pool=True),
    "stop, fault, client, two": Case(2, (Request.STOP,), 1, clients=1),
    "stop, faults, client, two, pool": Case(2, (Request.STOP,), 2, ("crash",), clients=1, pool=True),
    "stop, farewell, client": Case(2, (Request.STOP,), 1, FAREWELLS, clients=1),
    "stop, farewell, client, pool": Case(2, (Request.STOP,), 1, FAREWELLS_POOL, clients=1, pool=True),
    "reload, stop, client": Case(2, (Request.RELOAD, Request.STOP), clients=1),
    "reload, fault, two, pool": Case(2, (Request.RELOAD,), 1, clients=1, pool=True),
    "fewer, fault, client": Case(2, (Request.FEWER,), 1, clients=1),
}
CASES = LONG if os.environ.get("FAULTS") == "all" else SHORT


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_every_life(case: Case) -> None:
    states = explore(case)
    print(f"{states:,} states")
    assert states >= 50


FIRST = [("ready", 0), ("client",), ("pass", 0)]
FOUND = {
    "a reload": [*FIRST, ("ask", Request.RELOAD), ("ask", Request.STOP), ("finished",), ("crash", 0)],
    "max_requests": [*FIRST, ("spent", 0), ("ask", Request.STOP), ("finished",), ("crash", 0)],
    "the next one": [
        *(("ready", 0), ("spent", 0), ("ready", 1), ("client",), ("pass", 1)),
        *(("ask", Request.STOP), ("finished",), ("crash", 1)),
    ],
}


@pytest.mark.parametrize("path", FOUND.values(), ids=FOUND.keys())
def test_who_waits_for_one_of_two_in_a_slot_is_not_left(path: list[Move]) -> None:
    """The master looked after the channel of the slot's last worker only."""
    with world(Case(1, (Request.RELOAD, Request.STOP), 2, ("spent", "crash"), clients=1)) as one:
        for move in path:
            possible = move in list(one.moves())
            assert possible or move == ("finished",), "it is not, while somebody is recalled"
            if possible:
                one.do(move)
            one.check()
        come_to_rest(one)


def test_nothing_is_forked_for_a_death_that_is_reported_together_with_a_stop() -> None:
    """The core has not looked for a client since: it was believed to have, because it ran before the stop was read."""
    with world(Case(1, (Request.STOP,), 1, ("crash",), batches=True)) as one:
        one.do(("ready", 0))
        one.do(("both", ("crash", 0), ("ask", Request.STOP)))
        come_to_rest(one)


WITHOUT = [
    (State.READY, WorkerEvent.DIED, Action.LEAVE),
    (State.READY, WorkerEvent.DIED, Action.REPLACE),
    (State.READY, WorkerEvent.FOUND_HUNG, Action.LEAVE),
    (State.BOOTING, WorkerEvent.SAID_READY, Action.ENTER),
    (State.STOPPING, WorkerEvent.TIME_IS_UP, Action.KILL),
]


@pytest.mark.parametrize(("state", "happened", "action"), WITHOUT, ids=lambda value: value.name)
def test_without_it_something_is_wrong(
    monkeypatch: pytest.MonkeyPatch, state: State, happened: WorkerEvent, action: Action
) -> None:
    """Else nothing was shown."""
    after, actions = lifecycle.TRANSITIONS[state, happened]
    left = tuple(each for each in actions if each is not action)
    monkeypatch.setitem(lifecycle.TRANSITIONS, (state, happened), lifecycle.Step(after, left))
    with pytest.raises(AssertionError):
        [explore(case) for case in SHORT.values()]


def promote_at_ready(one: Group, member: roster.WorkerHandle, ready: Ready) -> None:
    """Its old one is told to leave before it has answered a ping."""
    on_ready(one, member, ready)
    member.proved = True
    one._promote(member)


def promote_at_once(one: Group, member: roster.WorkerHandle, pong: Pong) -> None:
    """At any answer, whatever the state of the others of its batch."""
    on_pong(one, member, pong)
    one._promote(member)


def forget_queue(one: Group, slot: roster.Slot) -> bool:
    return one.phase is not Phase.FINISHED and wants_another(one, slot)


on_ready, on_pong, wants_another = Group._on_worker_ready, Group._on_pong, Group.wants_another


@pytest.mark.parametrize(
    ("case", "owner", "name", "instead"),
    [
        ("reload, fault", Group, "_on_worker_ready", promote_at_ready),
        ("reload, both", Group, "_on_pong", promote_at_once),
        ("deaths", timing, "respawn_delay_ns", lambda *_: 0),
        ("reload, fault", Group, "_on_lost_successor", lambda *_: None),
        ("stop, fault, client", Group, "wants_another", forget_queue),
        (
            *("stop, fault, client", Group, "wants_another"),
            lambda one, slot: not one.phase.is_stop and wants_another(one, slot),
        ),
    ],
    ids=[
        "promoted without a ping",
        "promoted before its batch",
        "no back-off",
        "no successor",
        "who waits is forgotten",
        "who is queued is forgotten",
    ],
)
def test_with_it_something_is_wrong(
    monkeypatch: pytest.MonkeyPatch, case: str, owner: Any, name: str, instead: Any
) -> None:
    """Found by this case; the others before it took 1 to 5 minutes."""
    monkeypatch.setattr(owner, name, instead)
    with pytest.raises(AssertionError):
        explore(SHORT[case])
