"""The master: one event in, `lifecycle.step`, actions out. Read the life of a server here, top to bottom.

Owns the core, the roster and the deadlines. Sees no connection: those are the core's. One thread.
"""

from __future__ import annotations

import functools
import gc
import logging
import os
import random
import resource
import signal
import socket
import time
from collections import deque
from collections.abc import Callable

from pyfanout import control
from pyfanout.config import Config
from pyfanout.control import PACKET_BYTES, DecodeError, Failed, Ready, Retiring, Roomy, Stage
from pyfanout.core import POOL, BoardView, Core, Event, News, Station
from pyfanout.errors import LoadError, WorkerError
from pyfanout.master import policy
from pyfanout.master.lifecycle import Action, Happened, State, step
from pyfanout.master.listeners import Endpoint
from pyfanout.master.process import ExitReport, spawn
from pyfanout.master.roster import Member, Roster, Slot
from pyfanout.master.signals import Request, Signals

log = logging.getLogger("pyfanout.master")

WorkerMain = Callable[[int, int, Station, socket.socket], int]
"""What a worker does, given its slot, its generation, its station and its end of the control socket; its exit code."""

GRACE_NS = 2_000_000_000
"""From "stop now" to SIGKILL: long enough for an exit hook, short for who presses ^C."""

ASYNCIO_SIZE = 8
"""Messages in an event loop's channel: refilled at one. With 32, refilled at seven, the master was woken for each of
the first seven clients, into the loop's work: measured on 2026-11-22, conn/s to SO_REUSEPORT 1.00 and 1.02 (one core,
core each) with 32, 1.04 and 1.16 with 8, on the machine of bench/README.md."""

SIZE_PER_THREAD = 4
"""Messages per blocking thread in its channel: refilled at one, so nobody waits for the master."""


def raise_descriptor_limit() -> int:
    """Raise the soft RLIMIT_NOFILE to the hard one: a server needs many, and a select() that needs few is not here.

    Returns the limit.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


class Supervisor:
    """Keeps `config.workers` workers alive behind the endpoints until it is asked to stop.

    `run` blocks. Everything it opens it closes; the endpoints' descriptors are the core's as soon as it runs.
    """

    def __init__(self, config: Config, endpoints: list[Endpoint], worker_main: WorkerMain) -> None:
        self._config = config
        self._endpoints = endpoints
        self._worker_main = worker_main
        self._roster = Roster(config.workers)
        self._callbacks: dict[int, Callable[[], None]] = {}
        self._next_token = 0
        self._ever_ready = False
        self._told_ready = False
        self._stopping: Request | None = None
        self._finished = False
        self._late = False
        """The drain timeout of a graceful stop is over."""
        self._short = False
        """The log says that accepting rests."""
        self._shortage_told_ns = -1_000_000_000
        self._ladder: deque[tuple[int, Callable[[], None]]] = deque()
        """Deadlines (ns) of a stop, and what is done when one passes."""
        self._first_failure: Failed | None = None
        self._shown_details: str | None = None

    def run(self) -> None:
        """Serve until stopped. Raises WorkerError or LoadError if no worker ever becomes ready."""
        limit = raise_descriptor_limit()
        # The kernel bounds the descriptors in flight per user by the same limit (unix(7), ETOOMANYREFS).
        self._most_in_channel = max(limit // 4 // self._config.workers, 1)
        gc.collect()  # what is garbage now would be frozen, and kept, at the first fork
        try:
            with Signals() as self._signals, Core(self._config.workers, self._config.policy) as self._core:
                self._open()
                try:
                    self._loop()
                finally:
                    self._bury()
        finally:
            gc.unfreeze()

    def _open(self) -> None:
        for endpoint in self._endpoints:
            self._core.listen(endpoint.sock.fileno())
            endpoint.detach()
        self._watch(self._signals.fileno(), self._on_signal)
        config = self._config
        log.info(
            "listening on %s with %d worker%s, %s",
            ", ".join(endpoint.address for endpoint in self._endpoints),
            config.workers,
            "s" if config.workers > 1 else "",
            config.policy,
        )
        for slot in self._roster.slots:
            slot.respawn_at_ns = 0

    def _loop(self) -> None:
        while True:
            now_ns = time.monotonic_ns()
            self._keep_time(now_ns)
            if self._over():
                return
            deadline_ns = self._next_deadline()
            for event in self._core.run(None if deadline_ns is None else deadline_ns - time.monotonic_ns()):
                self._on_event(event)

    def _over(self) -> bool:
        if any(self._roster.members):
            return False
        if self._stopping is Request.STOP_NOW:
            return True
        if self._stopping is Request.STOP:
            return all(slot.respawn_at_ns is None for slot in self._roster.slots)
        if not self._ever_ready:
            self._give_up()
        return False

    def _give_up(self) -> None:
        """Every worker died before it was ready, and none ever was."""
        failure = self._first_failure
        reason = failure.reason if failure else "see the log for how they ended"
        kind = LoadError if failure and failure.stage is Stage.LOAD else WorkerError
        raise kind(f"no worker could start: {reason}")

    def _bury(self) -> None:
        """Leave no process behind, whatever happened."""
        for member in list(self._roster.members):
            member.process.send(signal.SIGKILL)
            member.process.reap()
            self._roster.remove(member)

    # ---- events ------------------------------------------------------------------------------------------------

    def _watch(self, fd: int, callback: Callable[[], None]) -> int:
        token, self._next_token = self._next_token, self._next_token + 1
        self._core.watch(fd, token)
        self._callbacks[token] = callback
        return token

    def _unwatch(self, member: Member, fd: int) -> None:
        token = member.tokens.pop(fd, None)
        if token is not None:
            self._core.unwatch(fd)
            del self._callbacks[token]

    def _on_event(self, event: Event) -> None:
        match event.news:
            case News.WATCHED:
                callback = self._callbacks.get(event.token)
                if callback is not None:  # else it was unwatched by an event before this one
                    callback()
            case News.PAUSED:
                self._on_shortage(event.error)
            case News.RESUMED:
                if self._short:
                    self._short = False
                    log.info("accepting goes on")
            case News.LISTENER_FAILED:
                address = self._endpoints[event.token].address
                log.critical("lost listener %s: %s", address, os.strerror(event.error))
            case News.CHANNEL_BROKEN:
                self._on_broken(event.token)
            case News.FINISHED:
                self._finished = True
                for member in list(self._roster.members):
                    needless = member.state is State.BOOTING and not self._waiting_for(member)
                    self._happened(member, Happened.TOLD_TO_STOP if needless else Happened.CHANNELS_ENDED)

    def _on_shortage(self, error: int) -> None:
        """Once a second at most: at a limit it comes and goes with each connection."""
        now_ns = time.monotonic_ns()
        if now_ns >= self._shortage_told_ns + 1_000_000_000:
            self._short, self._shortage_told_ns = True, now_ns
            log.error("accepting rests: %s; new clients wait in the kernel's queue", os.strerror(error))

    def _on_broken(self, slot: int) -> None:
        """Its readers see end-of-file and leave by themselves; those that do not are told to."""
        for member in self._roster.members:
            if member.state is State.READY and (member.pool if slot == POOL else member.slot == slot):
                log.error("%s: its channel was shut down by a worker; it is replaced", member)
                self._happened(member, Happened.CHANNEL_BROKEN)

    def _on_signal(self) -> None:
        for request in self._signals.read():
            if request is Request.STOP and self._stopping is None and self._ever_ready:
                self._stop_gracefully()
            elif request is Request.STOP_NOW and self._stopping is Request.STOP_NOW:
                self._kill_all()
            elif request is Request.STOP_NOW or not self._ever_ready:
                self._stop_now()

    def _on_message(self, member: Member) -> None:
        """One message at a time: the core tells again if there are more."""
        try:
            packet = member.control.recv(PACKET_BYTES)
            message = control.decode(packet) if packet else None
        except BlockingIOError:
            return
        except (DecodeError, OSError) as error:
            log.error("%s talks nonsense on its control socket (%s) and is killed", member, error)
            self._unwatch(member, member.control.fileno())
            member.process.send(signal.SIGKILL)
            return
        match message:
            case None:  # it closed its end; most likely it is about to die
                self._unwatch(member, member.control.fileno())
            case Ready(pool, threads):
                self._on_ready(member, pool, threads)
            case Failed():
                member.failure = message
            case Retiring():
                member.retiring = True
                self._happened(member, Happened.SAID_RETIRING)
            case Roomy():
                pass  # it has woken the core, which looks at the board by itself

    def _on_ready(self, member: Member, pool: bool, threads: int) -> None:
        if member.state is State.BOOTING:
            member.pool, member.threads = pool, threads
            member.ready_ns, member.boot_deadline_ns = time.monotonic_ns(), None
        self._happened(member, Happened.SAID_READY)
        if not self._ever_ready:
            self._ever_ready = True
            self._respawn_those_that_failed()
        if not self._told_ready and self._roster.of_state(State.READY) == self._config.workers:
            self._told_ready = True
            log.info("all workers are ready")
            self._tell_ready_fd()

    def _respawn_those_that_failed(self) -> None:
        """Until the first worker was ready nobody was replaced: it might have been for ever."""
        for slot in self._roster.slots:
            if slot.member is None and slot.respawn_at_ns is None:
                self._respawn_later(slot)

    def _tell_ready_fd(self) -> None:
        fd = self._config.ready_fd
        if fd is None:
            return
        try:
            os.write(fd, b"\n")
        except OSError as error:
            log.warning("ready_fd %d: %s", fd, error.strerror)

    def _on_death(self, member: Member) -> None:
        for fd in list(member.tokens):
            self._unwatch(member, fd)
        self._read_last_words(member)
        report, was, view = member.process.reap(), member.state, self._core.look(member.slot)
        if member.failure and self._first_failure is None:
            self._first_failure = member.failure
        self._happened(member, Happened.DIED)  # its replacement is on its way before the log line is written
        self._log_death(member, was, report, view)

    def _read_last_words(self, member: Member) -> None:
        """Its death may be reported before what it said."""
        while member.failure is None:
            try:
                message = control.decode(member.control.recv(PACKET_BYTES))
            except (DecodeError, OSError):
                return
            if isinstance(message, Failed):
                member.failure = message
            elif isinstance(message, Retiring):
                member.retiring = True

    def _log_death(self, member: Member, was: State, report: ExitReport, view: BoardView) -> None:
        if member.failure:
            new = member.failure.details if member.failure.details != self._shown_details else ""
            self._shown_details = member.failure.details
            log.error("%s could not start: %s%s", member, member.failure.reason, new and f"\n{new.rstrip()}")
            return
        if was is State.DRAINING and report.code == 0:
            log.debug("%s has left", member)
            return
        lost = view.taken - view.done
        log.log(
            logging.WARNING if self._stopping is None else logging.INFO,
            "%s %s after %.1f s, with %d connection%s in its hands",
            member,
            report,
            (member.since_ns - (member.ready_ns or member.forked_ns)) / 1e9,
            lost,
            "" if lost == 1 else "s",
        )

    # ---- states and actions -------------------------------------------------------------------------------------

    def _happened(self, member: Member, happened: Happened) -> None:
        state, actions = step(member.state, happened)
        member.become(state, time.monotonic_ns())
        for action in actions:
            self._perform(action, member)

    def _all(self, happened: Happened) -> None:
        for member in list(self._roster.members):
            self._happened(member, happened)

    def _perform(self, action: Action, member: Member) -> None:
        match action:
            case Action.ENTER:
                self._enter(member)
            case Action.LEAVE:
                self._core.leave(member.slot)
            case Action.TERMINATE:
                member.process.send(signal.SIGTERM)
            case Action.QUIT:
                member.process.send(signal.SIGQUIT)
            case Action.KILL:
                log.error("%s is not ready after %g s and is killed", member, self._config.boot_timeout)
                member.process.send(signal.SIGKILL)
            case Action.REPLACE:
                self._replace(member)

    def _enter(self, member: Member) -> None:
        readers = member.threads * (self._config.workers if member.pool else 1)
        size = min(SIZE_PER_THREAD * readers or ASYNCIO_SIZE, self._most_in_channel)
        most = 0 if member.threads else self._config.max_connections
        self._core.enter(member.slot, pool=member.pool, threads=member.threads, size=size, most=most)

    def _replace(self, member: Member) -> None:
        slot = self._roster.remove(member)
        now_ns = time.monotonic_ns()
        ready_for_ns = None if member.ready_ns is None else now_ns - member.ready_ns
        slot.deaths = 0 if member.retiring else policy.deaths_in_a_row(slot.deaths, ready_for_ns)
        if self._wants_another(member):
            self._respawn_later(slot)

    def _wants_another(self, dead: Member) -> bool:
        if self._stopping is None:
            return self._ever_ready
        if self._stopping is Request.STOP_NOW or self._late:
            return False
        if not self._finished:
            return True
        # Others read what waits in the pool; what waits in its own channel waits for its slot alone.
        pooled = any(other.pool or other.state is State.BOOTING for other in self._roster.members)
        return self._core.untaken(dead.slot) > 0 or (not pooled and self._core.untaken(POOL) > 0)

    def _waiting_for(self, member: Member) -> bool:
        return self._core.untaken(member.slot) > 0 or self._core.untaken(POOL) > 0

    def _respawn_later(self, slot: Slot) -> None:
        """At once after a first death, else when the delay is over."""
        delay_ns = policy.respawn_delay_ns(slot.deaths, random.random())
        if not delay_ns:
            self._spawn(slot)
            return
        log.info("worker=%d is started again in %.1f s (death %d in a row)", slot.number, delay_ns / 1e9, slot.deaths)
        slot.respawn_at_ns = time.monotonic_ns() + delay_ns

    def _spawn(self, slot: Slot) -> None:
        try:
            self._fork(slot)
        except OSError as error:
            log.error("worker=%d cannot be started: %s", slot.number, error.strerror)
            slot.deaths += 1
            slot.respawn_at_ns = None
            if not self._ever_ready:  # as one that died before it was ready
                return
            delay_ns = policy.respawn_delay_ns(max(slot.deaths, 2), random.random())
            slot.respawn_at_ns = time.monotonic_ns() + delay_ns

    def _fork(self, slot: Slot) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            ours.setblocking(False)
            generation = slot.generation + 1
            self._core.begin(slot.number, generation)
            station: list[Station] = []
            process = spawn(
                functools.partial(self._first_steps, slot.number, ours, station),
                lambda: self._worker_main(slot.number, generation, station[0], theirs),
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        boot_deadline_ns = time.monotonic_ns() + int(self._config.boot_timeout * 1e9)
        member = Member(slot.number, generation, process, ours, boot_deadline_ns)
        self._roster.add(member)
        try:
            self._watch_member(member)
        except OSError:
            for fd in list(member.tokens):
                self._unwatch(member, fd)
            process.send(signal.SIGKILL)
            process.reap()
            self._roster.remove(member)
            raise

    def _watch_member(self, member: Member) -> None:
        process, ours = member.process, member.control
        for fd, callback in ((process.pidfd, self._on_death), (ours.fileno(), self._on_message)):
            member.tokens[fd] = self._watch(fd, functools.partial(callback, member))

    def _first_steps(self, slot: int, ours: socket.socket, station: list[Station]) -> None:
        """In the child, signals blocked: let go of all that is the master's, in this order."""
        self._signals.forget()
        station.append(self._core.abandon(slot))
        ours.close()
        for member in self._roster.members:
            os.close(member.process.pidfd)
            member.control.close()
        for bind in self._config.bind:
            if isinstance(bind, socket.socket):
                bind.close()  # the caller's own copy: it would keep the port open when the master is gone
        if self._config.ready_fd is not None and self._config.ready_fd > 2:
            os.close(self._config.ready_fd)

    # ---- time ---------------------------------------------------------------------------------------------------

    def _keep_time(self, now_ns: int) -> None:
        for slot in self._roster.slots:
            if slot.respawn_at_ns is not None and slot.respawn_at_ns <= now_ns:
                self._spawn(slot)
        for member in self._roster.members:
            deadline_ns = member.boot_deadline_ns
            if deadline_ns is not None and deadline_ns <= now_ns:
                member.boot_deadline_ns = None
                self._happened(member, Happened.BOOT_TIMED_OUT)
        while self._ladder and self._ladder[0][0] <= now_ns:
            self._ladder.popleft()[1]()

    def _next_deadline(self) -> int | None:
        deadlines = [slot.respawn_at_ns for slot in self._roster.slots if slot.respawn_at_ns is not None]
        deadlines += [m.boot_deadline_ns for m in self._roster.members if m.boot_deadline_ns is not None]
        if self._ladder:
            deadlines.append(self._ladder[0][0])
        return min(deadlines, default=None)

    # ---- stopping -----------------------------------------------------------------------------------------------

    def _stop_gracefully(self) -> None:
        """Pass on what is queued, end the channels, wait for the workers; then less and less patience."""
        log.info("stopping: what was begun may take %g s more", self._config.drain_timeout)
        self._stopping = Request.STOP
        self._unlink()
        self._core.finish(self._config.backlog + 1)
        late_ns = time.monotonic_ns() + int(self._config.drain_timeout * 1e9)
        self._ladder.append((late_ns, self._quit_all))
        self._ladder.append((late_ns + GRACE_NS, self._kill_all))

    def _quit_all(self) -> None:
        log.warning("%g s are over: workers that are left stop now", self._config.drain_timeout)
        self._late = True
        self._forget_respawns()
        self._all(Happened.DRAIN_TIMED_OUT)

    def _stop_now(self) -> None:
        log.info("stopping now")
        self._stopping = Request.STOP_NOW
        self._unlink()
        self._forget_respawns()
        self._ladder.clear()
        self._ladder.append((time.monotonic_ns() + GRACE_NS, self._kill_all))
        self._all(Happened.TOLD_TO_STOP)

    def _unlink(self) -> None:
        """Socket files go first: while the socket is open, its inode cannot be another file's."""
        for endpoint in self._endpoints:
            endpoint.unlink()

    def _kill_all(self) -> None:
        for member in self._roster.members:
            log.warning("%s does not stop and is killed", member)
            member.process.send(signal.SIGKILL)

    def _forget_respawns(self) -> None:
        for slot in self._roster.slots:
            slot.respawn_at_ns = None
