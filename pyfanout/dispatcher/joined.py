"""The dispatcher's process: it passes connections to workers that another program forks and that join it.

Decides when a worker is in rotation, and nothing about its life: that is its parent's affair. `owner` is the other
side. As `supervisor` and `group`, but without processes: a worker is there while its control socket is open, and
`lifecycle` has its states.
"""

from __future__ import annotations

import functools
import logging
import math
import socket
import time
from collections import Counter
from dataclasses import dataclass, field

from pyfanout.config import Config
from pyfanout.core import SEATS, Core, Event, EventKind
from pyfanout.dispatcher import joining
from pyfanout.dispatcher.joining import NoRequest
from pyfanout.dispatcher.lifecycle import Action, JoinedEvent, Obstacle, State, step
from pyfanout.errors import FanoutError
from pyfanout.host.log import counted_are
from pyfanout.limits import ANY, OpenFiles
from pyfanout.link.link import Link
from pyfanout.link.messages import (
    DecodeError,
    Drain,
    Failed,
    Message,
    Pong,
    Ready,
    Retiring,
    ServerStopping,
    Short,
    WantsSuccessor,
)
from pyfanout.link.outbox import AGAIN_NS
from pyfanout.master.endpoints import Endpoint
from pyfanout.master.listening import Listening
from pyfanout.master.rotation import Rotation, reads
from pyfanout.master.watches import Watches

log = logging.getLogger("pyfanout.master")

RELEASE_NS = 1_000_000_000
"""How long the last one in rotation waits for others before it may leave. A program that stops all of its
processes at once stops their parent, too, and the parent's message comes sooner."""


@dataclass(slots=True, eq=False)
class JoinedWorker:
    """One worker."""

    seat: int
    """Its number in the core."""
    generation: int
    pid: int
    link: Link
    state: State = State.JOINED
    since_ns: int = 0
    """When it came into `state`."""
    ready: Ready | None = None
    """What it said when it was."""
    obstacles: set[Obstacle] = field(default_factory=set)
    """What keeps it out of rotation for a while."""
    entered: bool = False
    """It is in rotation."""

    def __str__(self) -> str:
        return f"worker={self.seat} gen={self.generation} pid={self.pid}"

    @property
    def wanted(self) -> bool:
        """It shall be in rotation."""
        return self.state in (State.READY, State.SPENT) and self.ready is not None and not self.obstacles


class JoinedWorkers:
    """`JoinedWorkers(...).run()`, once."""

    def __init__(self, config: Config, endpoints: list[Endpoint], join_socket: socket.socket, owner_fd: int) -> None:
        """Takes over the endpoints' descriptors, `join_socket`, and `owner_fd`, the pidfd of the owner: the join
        socket does not show its end, because other processes that it has forked may hold that open."""
        self._config = config
        self._endpoints = endpoints
        self._join_socket = join_socket
        self._owner_fd = owner_fd
        self._open_files = OpenFiles()
        self._workers: dict[int, JoinedWorker] = {}
        """By seat."""
        self._generations: Counter[int] = Counter()
        self._interval_ns = math.ceil(config.ping_interval * 1e9)  # what is not 0 is not never
        self._timeout_ms = math.ceil(config.timeout * 1e3)
        self._patience_ns = int(config.ping_timeout * 1e9)
        self._round_ns: int | None = None
        """When the next round of pings is due; None: there are none."""
        self._end_ns: int | None = None
        """The owner has stopped, or is gone: until when joined workers may finish what they have."""

    def run(self) -> int:
        """Until the owner and all joined workers are gone. The exit code."""
        try:
            self._run()
        except FanoutError as error:
            log.critical("the dispatcher exits: %s; its owner may start it again", error)
            return error.exit_code
        return 0

    def _run(self) -> None:
        self._open_files.raise_to(ANY)  # any number of joined workers; no program is executed here
        with Core(SEATS, self._config.policy) as self._core:
            self._core.share()
            self._rotation = Rotation(self._core, self._open_files)
            self._watches = Watches(self._core)
            self._listening = Listening(self._core, self._endpoints)
            self._watches.add(self._join_socket.fileno(), self._on_request)
            self._watches.add(self._owner_fd, self._stop)
            log.info("accepting on %s for workers that join, policy %s", self._listening.addresses, self._config.policy)
            if self._interval_ns:
                self._round_ns = time.monotonic_ns() + self._interval_ns
            while not self._over():
                self._step()

    def _over(self) -> bool:
        if self._end_ns is None:
            return False
        if self._workers and time.monotonic_ns() >= self._end_ns:
            log.warning(
                "drain_timeout of %g s is over: %s not finished; the dispatcher exits, and they go on",
                self._config.drain_timeout,
                counted_are(len(self._workers)),
            )
            return True
        return not self._workers

    def _step(self) -> None:
        late_ns = [worker.link.owed_since_ns + self._patience_ns for worker in self._debtors()]
        release_ns = [worker.since_ns + RELEASE_NS for worker in self._waiting()]
        undone = any(worker.link.outbox or worker.wanted != worker.entered for worker in self._workers.values())
        again_ns = time.monotonic_ns() + AGAIN_NS if undone else None
        deadlines_ns = late_ns + release_ns
        deadlines_ns += [ns for ns in (self._round_ns, self._end_ns, again_ns) if ns is not None]
        timeout_ns = min(deadlines_ns) - time.monotonic_ns() if deadlines_ns else None
        events = self._core.run(timeout_ns)
        for event in events:
            self._on_event(event)
        if not events:  # else an answer may wait among those that were not read yet
            self._ask_and_judge()
        self._release()
        for worker in self._workers.values():  # what the system had no room for
            worker.link.outbox.flush()
            self._arrange(worker)
        self._listening.look()

    # ---- events -------------------------------------------------------------------------------------------------

    def _on_event(self, event: Event) -> None:
        match event.kind:
            case EventKind.WATCHED:
                self._watches.call(event.token)
            case EventKind.CHANNEL_BROKEN:
                for worker in list(self._workers.values()):
                    if worker.entered and worker.ready and reads(worker.seat, worker.ready, event.token):
                        log.error(
                            "%s: a worker has shut down the channel that this one reads; it drains and exits", worker
                        )
                        self._happened(worker, JoinedEvent.CHANNEL_BROKEN)
            case _:
                self._listening.on_event(event)

    def _happened(self, worker: JoinedWorker, happened: JoinedEvent) -> None:
        before = worker.state
        worker.state, actions = step(before, happened)
        if worker.state is not before:
            worker.since_ns = time.monotonic_ns()
        if Action.REENTER in actions and worker.entered:
            worker.entered = False
            self._rotation.leave(worker.seat)
        self._arrange(worker)
        if Action.DRAIN in actions:
            worker.link.send(Drain())
        if Action.FORGET in actions:
            self._forget(worker)

    def _on_request(self) -> bool:
        """Whether there was a request."""
        try:
            found = joining.answer(self._join_socket)
        except OSError as error:
            log.error(
                "a worker could not join: %s; it gets no connections, and its call of join raises an exception",
                error.strerror,
            )
            return True
        if isinstance(found, socket.socket):
            try:
                self._admit(found)
            except OSError as error:
                log.error(
                    "a worker could not join: %s; it gets no connections, and its call of join raises an exception",
                    error.strerror,
                )
                found.close()
        elif found is NoRequest.STOP:
            self._stop()
        return found is not NoRequest.NONE

    def _admit(self, their_control: socket.socket) -> None:
        seat = next((each for each in range(SEATS) if each not in self._workers), None)
        if seat is None:
            raise OSError(0, f"all {SEATS} seats are taken")
        generation = self._generations[seat] + 1
        worker = JoinedWorker(seat, generation, joining.pid_of(their_control), Link(their_control))
        self._core.begin(seat, generation, seat)
        try:
            self._watches.add(their_control.fileno(), functools.partial(self._on_message, worker))
            joining.welcome(their_control, seat, generation, self._core.ends(seat))
        except OSError:
            self._watches.remove(their_control.fileno())
            self._core.end(seat)
            raise
        self._generations[seat] = generation
        self._workers[seat] = worker
        log.debug("%s has joined the dispatcher", worker)

    def _stop(self) -> None:
        """Pass on what is queued, end the channels; no worker joins any more."""
        self._end_ns = time.monotonic_ns() + int(self._config.drain_timeout * 1e9)
        self._round_ns = None
        self._watches.remove(self._owner_fd)
        self._watches.remove(self._join_socket.fileno())
        self._join_socket.close()  # a worker that is about to join sees the end
        for worker in self._workers.values():
            worker.link.send(ServerStopping())
        self._core.finish(self._config.backlog + 1)

    def _on_message(self, worker: JoinedWorker) -> None:
        try:
            for message in worker.link.receive():
                self._on_word(worker, message)
        except DecodeError as error:
            log.error("%s: protocol error on its control socket (%s); it gets no more connections", worker, error)
            self._happened(worker, JoinedEvent.CLOSED)

    def _on_word(self, worker: JoinedWorker, message: Message | None) -> None:
        match message:
            case None:
                self._happened(worker, JoinedEvent.CLOSED)
            case Ready():
                if worker.ready is None:
                    log.debug("%s is ready", worker)
                    if self._end_ns is not None:
                        worker.link.send(ServerStopping())
                worker.ready = message
                self._happened(worker, JoinedEvent.SAID_READY)
            case Failed(_, reason, details):
                log.error("%s could not start: %s%s", worker, reason, details and f"\n{details.rstrip()}")
            case Short(short):
                self._hinder(worker, Obstacle.SHORT, short)
            case Retiring():
                self._happened(worker, JoinedEvent.SAID_RETIRING)
            case WantsSuccessor():
                self._happened(worker, JoinedEvent.WANTS_SUCCESSOR)
                for _ in range(SEATS):  # the owner may have said before that it stops
                    if self._end_ns is not None or not self._on_request():
                        break
            case Pong() if worker.link.is_answered_by(message):
                if self._hinder(worker, Obstacle.SILENT, False):
                    log.info("%s answers pings again", worker)
                self._on_still(worker, message.still_ms)

    def _on_still(self, worker: JoinedWorker, still_ms: int) -> None:
        stuck = 0 < self._timeout_ms <= still_ms
        if not self._hinder(worker, Obstacle.STUCK, stuck):
            return
        if stuck:
            what = "every thread has been in the same request for %.1f s (timeout); it gets no more until one ends"
            log.warning("%s: " + what, worker, still_ms / 1e3)
        else:
            log.info("%s: a thread makes progress again", worker)

    def _waiting(self) -> list[JoinedWorker]:
        """Those that want to leave, and may not yet. After a stop of the owner all stay until their channel ends."""
        if self._end_ns is not None:
            return []
        return [worker for worker in self._workers.values() if worker.state is State.SPENT]

    def _release(self) -> None:
        """Those that others can stand in for, or that have waited long enough for others."""
        for worker in self._waiting():
            others = any(each.entered for each in self._workers.values() if each is not worker)
            if worker.entered and not others and time.monotonic_ns() < worker.since_ns + RELEASE_NS:
                continue
            self._happened(worker, JoinedEvent.RELEASED)

    def _forget(self, worker: JoinedWorker) -> None:
        lost = self._core.look(worker.seat).in_hands
        self._core.end(worker.seat)
        self._watches.remove(worker.link.fileno())
        worker.link.close()
        del self._workers[worker.seat]
        level, plural = (logging.WARNING if lost else logging.DEBUG), "" if lost == 1 else "s"
        log.log(level, "%s is no longer joined, with %d connection%s in progress", worker, lost, plural)

    # ---- rotation -----------------------------------------------------------------------------------------------

    def _arrange(self, worker: JoinedWorker) -> None:
        """In rotation or out of it, as it should be."""
        ready = worker.ready
        if worker.wanted == worker.entered:
            return
        if ready is None or not worker.wanted:
            worker.entered = False
            self._rotation.leave(worker.seat)
        elif error := self._rotation.enter(worker.seat, ready, len(self._workers)):
            log.error(
                "%s cannot be given connections now (%s); this is tried again every %g s",
                worker,
                error.strerror,
                AGAIN_NS / 1e9,
            )
        else:
            worker.entered = True

    def _hinder(self, worker: JoinedWorker, obstacle: Obstacle, there: bool) -> bool:
        """An obstacle is there, or is not: whether that is new."""
        if (obstacle in worker.obstacles) is there:
            return False
        (worker.obstacles.add if there else worker.obstacles.remove)(obstacle)
        self._arrange(worker)
        return True

    def _debtors(self) -> list[JoinedWorker]:
        """Those that owe a pong, and are not known for it yet. In a stop none is judged."""
        if self._end_ns is not None:
            return []
        return [
            worker
            for worker in self._workers.values()
            if worker.link.owes_pong and Obstacle.SILENT not in worker.obstacles
        ]

    def _ask_and_judge(self) -> None:
        """A worker that reads from the pool is not asked: nothing waits for it alone."""
        now_ns = time.monotonic_ns()
        for worker in self._debtors():
            silent_ns = now_ns - worker.link.owed_since_ns
            if silent_ns >= self._patience_ns:
                log.warning(
                    "%s: no answer to a ping for %.1f s (ping_timeout); it gets no connections until it answers",
                    worker,
                    silent_ns / 1e9,
                )
                self._hinder(worker, Obstacle.SILENT, True)
        if self._round_ns is not None and now_ns >= self._round_ns:
            self._round_ns = now_ns + self._interval_ns
            for worker in self._workers.values():
                if (worker.entered or Obstacle.STUCK in worker.obstacles) and worker.ready and not worker.ready.pool:
                    worker.link.ping(now_ns)
