"""The supervisor itself, in every order of what may happen to it: two workers that boot, answer, crash or leave, one
reload or scaling, one stop, and time passing in between. No process is forked and no time passes: the kernel, the core
and the workers are a `World` here, whose moves are all tried, in each state that was not seen before.

In each state: who is in rotation is READY, and who is READY is in rotation; a slot has one worker and at most one
successor. And from each state, when from then on all do what they are told, the server comes to rest: all slots served
and nobody else left, or all gone after a stop.
"""

from __future__ import annotations

import itertools
import logging
import os
import signal
import socket
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from pyfanout.config import Config
from pyfanout.control import Ping, Pong, Ready, hear, tell
from pyfanout.core import BoardView, Event, News
from pyfanout.errors import WorkerError
from pyfanout.master import lifecycle, roster, supervisor
from pyfanout.master.callbacks import Callbacks
from pyfanout.master.lifecycle import Action, Happened, State
from pyfanout.master.process import ExitReport
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
        self.told = self.deaf = self.dying = False
        self.pings: list[int] = []
        self.report: ExitReport | None = None

    def send(self, signum: int) -> None:
        self.dying = self.dying or signum == signal.SIGKILL or (signum == signal.SIGABRT and not self.deaf)
        self.told = True

    def is_stopped(self) -> bool:
        return False

    def reap(self) -> ExitReport:
        if self in self._world.workers:
            self._world.workers.remove(self)
        self.control.close()
        return self.report or ExitReport(None, signal.SIGKILL)

    def listen(self) -> None:
        """What the master has said by now."""
        while True:
            try:
                message = hear(self.control)
            except OSError:
                return
            if isinstance(message, Ping):
                self.pings.append(message.number)
            elif message is None:
                return


class World:
    """What the supervisor calls: a core, a clock, fork. It has `moves`, and `do` makes one."""

    def __init__(self, requests: tuple[Request, ...], faults: int, config: Config) -> None:
        self.now_ns = 10**12
        self.workers: list[Process] = []
        self.requests, self.faults = list(requests), faults
        self.entered: set[int] = set()
        self.open: set[int] = set()
        """Places with a channel."""
        self.finishing = self.finished = self.over = False
        self._watched: dict[int, int] = {}
        self._events: list[Event] = []
        self._asked: list[Request] = []
        self._pids = itertools.count(1)
        self.supervisor = Supervisor(config, [], self._worker_main, Callbacks())

    # ---- what the supervisor sees ------------------------------------------------------------------------------------

    def __enter__(self) -> World:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def fileno(self) -> int:
        return PIDFDS

    def read(self) -> list[Request]:
        asked, self._asked = self._asked, []
        return asked

    def watch(self, fd: int, token: int) -> None:
        self._watched[fd] = token

    def unwatch(self, fd: int) -> None:
        del self._watched[fd]

    def run(self, _timeout_ns: int | None) -> list[Event]:
        events, self._events = self._events, []
        return events

    def finish(self, _limit: int) -> None:
        self.finishing = True

    def begin(self, place: int, _generation: int, _number: int) -> None:
        assert place not in self.entered
        self.open.add(place)

    def enter(self, place: int, **_: object) -> None:
        assert place in self.open
        assert place not in self.entered
        self.entered.add(place)

    def leave(self, place: int) -> None:
        self.entered.discard(place)

    def end(self, place: int) -> None:
        assert place not in self.entered
        self.open.discard(place)

    def look(self, place: int) -> BoardView:
        return BoardView(1, 0, 0, 0, self.now_ns, 0, 0, 1, 0)

    def untaken(self, _place: int) -> int:
        return 0

    def spawn(self, first_steps: Any, entry: Callable[[], int]) -> Process:
        first_steps.args[2].append(None)  # the station, which no one uses
        entry()
        return self.workers[-1]

    def _worker_main(self, _slot: int, _generation: int, _station: Any, control: socket.socket, _stacks_fd: int) -> int:
        self.workers.append(Process(self, next(self._pids), control.dup()))
        return 0

    # ---- what may happen ---------------------------------------------------------------------------------------------

    def moves(self) -> Iterator[Move]:
        for number, worker in enumerate(self.workers):
            if worker.report is not None:
                continue
            does_as_told = not (worker.deaf or worker.dying)
            if worker.booting and does_as_told:
                yield "ready", number
            if worker.pings and does_as_told:
                yield "pong", number
            if worker.dying or (does_as_told and (worker.told or (self.finished and not worker.booting))):
                yield "exit", number
            if self.faults:
                yield "crash", number
            if self.faults and not worker.deaf:
                yield "deaf", number
        if self.finishing and not self.finished:
            yield ("finished",)
        for number, request in enumerate(self.requests):
            if request not in self.requests[:number]:
                yield "ask", request
        if self.supervisor._deadlines():
            yield ("time",)

    def do(self, move: Move) -> None:
        worker: Any = self.workers[move[1]] if isinstance(move[-1], int) else None
        match move:
            case ("ready", _):
                worker.booting = False
                self._say(worker, Ready(pool=False, threads=0))
            case ("pong", _):
                self._say(worker, Pong(worker.pings.pop(0)))
            case ("exit", _):
                self._die(worker, ExitReport(None, signal.SIGKILL) if worker.dying else ExitReport(0))
            case ("crash", _):
                self.faults -= 1
                self._die(worker, ExitReport(None, signal.SIGSEGV))
            case ("deaf", _):
                self.faults -= 1
                worker.deaf = True
            case ("finished",):
                self.finished = True
                self._events.append(Event(News.FINISHED, 0, 0))
            case ("ask", request):
                self.requests.remove(request)
                self._asked.append(request)
                self._events.append(Event(News.WATCHED, 0, self._watched[self.fileno()]))
            case ("time",):
                self.now_ns = max(self.now_ns, min(self.supervisor._deadlines()))
        self.settle()

    def settle(self) -> None:
        """The supervisor deals with it, and with what comes of that."""
        while not self.over:
            self.over = not self.supervisor.step()
            if not self._events:
                break
        if not self.over:
            self.over = not self.supervisor.step()
        for worker in self.workers:
            worker.listen()

    def _say(self, worker: Process, message: Any) -> None:
        tell(worker.control, message)
        token = self._watched.get(self._member(worker).control.fileno())
        if token is not None:
            self._events.append(Event(News.WATCHED, 0, token))

    def _die(self, worker: Process, report: ExitReport) -> None:
        worker.report = report
        worker.control.close()
        self._events.append(Event(News.WATCHED, 0, self._watched[worker.pidfd]))

    def _member(self, worker: Process) -> roster.Member:
        (member,) = [each for each in self.supervisor._roster.members if each.process is worker]
        return member

    # ---- what must be ------------------------------------------------------------------------------------------------

    def check(self) -> None:
        members = self.supervisor._roster.members
        serving = {member.place for member in members if member.state is State.READY}
        assert self.entered >= serving
        assert self.entered == serving or self.finished, "in rotation, where nothing is passed any more"
        assert {member.place for member in members} <= self.open
        for slot in self.supervisor._roster.slots:
            assert slot.successor is None or slot.member is not None
        for member in members:
            in_its_slot = member in (member.slot.member, member.slot.successor)
            assert in_its_slot or member.state not in (State.BOOTING, State.READY) or self.finishing, member

    def key(self) -> tuple[Any, ...]:
        """States with the same key have the same future. Slots are alike, so they are in any order."""
        one = self.supervisor
        deadlines = sorted(set(one._deadlines()))

        def rank(deadline_ns: int | None) -> int:
            return -1 if deadline_ns is None else deadlines.index(deadline_ns)

        slots: dict[roster.Slot, list[tuple[Any, ...]]] = {slot: [] for slot in one._roster.slots}
        for member in sorted(one._roster.members, key=lambda member: member.generation):
            slot, process = member.slot, member.process
            slots.setdefault(slot, []).append(
                (
                    *(slot.member is member, slot.successor is member, member.place == slot.place),
                    *(member.state.name, rank(member.deadline_ns), member.ready_ns is None, member.pinged_ns is None),
                    *(
                        bool(one._reload) and member in one._reload.trials,
                        process.booting,
                        process.told,
                        process.deaf,
                        process.dying,
                    ),
                    *(len(process.pings), str(process.report)),
                )
            )
        waiting = one._reload.waiting if one._reload else []
        found = sorted(
            (slot.retired, slot in waiting, rank(slot.respawn_at_ns), min(slot.deaths, 3), slot.failed, members)
            for slot, members in slots.items()
        )
        return (
            *(str(found), tuple(self.requests), self.faults, bool(one._reload), rank(one._stop_deadline_ns)),
            *(one._stopping, one._ever_ready, one._finished, one._late, self.finishing, self.finished, self.over),
        )


@contextmanager
def world(path: tuple[Move, ...], slots: int, requests: tuple[Request, ...], faults: int) -> Iterator[World]:
    """After these moves."""
    config = Config(bind="127.0.0.1:0", workers=slots, ping_interval=0, drain_timeout=5, boot_timeout=60)
    with ExitStack() as undo:
        patched = undo.enter_context(pytest.MonkeyPatch.context())
        one = World(requests, faults, config)
        clock = SimpleNamespace(monotonic_ns=lambda: one.now_ns)
        for module in (supervisor, roster):
            patched.setattr(module, "time", clock)
        patched.setattr(supervisor, "random", SimpleNamespace(random=lambda: 0.0))
        patched.setattr(supervisor, "Signals", lambda: one)
        patched.setattr(supervisor, "Core", lambda *_: one)
        patched.setattr(supervisor, "spawn", one.spawn)
        patched.setattr(supervisor, "gc", SimpleNamespace(collect=int, freeze=int, unfreeze=int))
        one.supervisor._oom_kills = SimpleNamespace(look=id, happened=lambda _: False)  # type: ignore[assignment]
        logging.disable()
        undo.callback(logging.disable, logging.NOTSET)
        with one.supervisor:
            one.settle()
            for move in path:
                one.do(move)
            yield one


def come_to_rest(one: World) -> None:
    """All do what they are told, and nothing else happens."""
    one.faults = 0
    one.requests.clear()
    for _ in range(REST):
        moves = [move for move in one.moves() if move[0] != "time"] or list(one.moves())
        if one.over or not moves:
            break
        one.do(moves[0])
        one.check()
    members = one.supervisor._roster.members
    if one.supervisor._stopping is not None:
        assert one.over
        assert members == []
    else:
        assert one.supervisor.settled, "a slot is not served"
        assert len(members) == len(one.supervisor._roster.slots)
        assert one.open == one.entered


def explore(slots: int, requests: tuple[Request, ...], faults: int) -> int:
    """Every state, breadth first, so that a failure names a shortest way to it. How many there are."""
    seen: set[tuple[Any, ...]] = set()
    paths: deque[tuple[Move, ...]] = deque([()])
    while paths:
        path = paths.popleft()
        try:
            with world(path, slots, requests, faults) as one:
                one.check()
                if one.key() in seen:
                    continue
                seen.add(one.key())
                if not one.over:
                    paths += [(*path, move) for move in one.moves()]
                come_to_rest(one)
        except WorkerError:
            continue  # none was ever ready: it gives up, as it should
        except BaseException:
            print("after", path)
            raise
    return len(seen)


SHORT = {
    "reload, fault": (1, (Request.RELOAD,), 1),
    "reload, stop": (1, (Request.RELOAD, Request.STOP), 0),
    "fewer, more": (2, (Request.FEWER, Request.MORE), 0),
    "stop, fault": (2, (Request.STOP,), 1),
}
LONG = {
    "stop, faults": (2, (Request.STOP,), 2),
    "fast stop, fault": (2, (Request.STOP, Request.STOP_NOW), 1),
    "reload, fault": (2, (Request.RELOAD,), 1),
    "reload, stop, fault": (2, (Request.RELOAD, Request.STOP), 1),
    "reloads, fault": (1, (Request.RELOAD, Request.RELOAD), 1),
    "fewer, reload, more": (2, (Request.FEWER, Request.RELOAD, Request.MORE), 0),
}
CASES = LONG if os.environ.get("FAULTS") == "all" else SHORT


@pytest.mark.parametrize(("slots", "requests", "faults"), CASES.values(), ids=CASES.keys())
def test_every_life(slots: int, requests: tuple[Request, ...], faults: int) -> None:
    states = explore(slots, requests, faults)
    print(f"{states:,} states")
    assert states > 50


WITHOUT = [
    (State.READY, Happened.DIED, Action.LEAVE),
    (State.READY, Happened.DIED, Action.REPLACE),
    (State.READY, Happened.FOUND_HUNG, Action.LEAVE),
    (State.BOOTING, Happened.SAID_READY, Action.ENTER),
    (State.STOPPING, Happened.TIME_IS_UP, Action.KILL),
]


@pytest.mark.parametrize(("state", "happened", "action"), WITHOUT, ids=lambda value: value.name)
def test_without_it_something_is_wrong(
    monkeypatch: pytest.MonkeyPatch, state: State, happened: Happened, action: Action
) -> None:
    """Else nothing was shown."""
    after, actions = lifecycle.TRANSITIONS[state, happened]
    left = tuple(each for each in actions if each is not action)
    monkeypatch.setitem(lifecycle.TRANSITIONS, (state, happened), lifecycle.Step(after, left))
    with pytest.raises(AssertionError):
        [explore(*case) for case in SHORT.values()]
