"""The master: one event in, `lifecycle.step`, actions out. Read the life of a server here, top to bottom.

Owns the core, the roster and the deadlines. Sees no connection: those are the core's. One thread. `server.Master` is
its public face.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import logging
import mmap
import os
import random
import signal
import socket
import sys
import time
from collections.abc import Callable

import pyfanout
from pyfanout.config import Config
from pyfanout.core import POOL, SEATS, Core, Event, EventKind, WorkerEnds
from pyfanout.errors import CoreError, LoadError, StuckError, WorkerError
from pyfanout.host import stdio
from pyfanout.host.log import counted, counted_are
from pyfanout.limits import OpenFiles
from pyfanout.link.link import Link
from pyfanout.link.messages import (
    WAKE,
    Cut,
    DecodeError,
    Drain,
    Failed,
    HasRoom,
    Message,
    Ping,
    Pong,
    Ready,
    Retiring,
    ServerStopping,
    Short,
    Stage,
    WantsSuccessor,
)
from pyfanout.link.outbox import AGAIN_NS
from pyfanout.master import timing
from pyfanout.master.callbacks import Callbacks, Notice
from pyfanout.master.deaths import Deaths
from pyfanout.master.endpoints import Endpoint
from pyfanout.master.health import Health
from pyfanout.master.lifecycle import Action, State, WorkerEvent, step
from pyfanout.master.orphans import LOOK_NS, Orphans
from pyfanout.master.process import file_for_stacks, own_pidfd, spawn
from pyfanout.master.readiness import Readiness
from pyfanout.master.reload import Reload
from pyfanout.master.roster import Roster, Slot, WorkerHandle
from pyfanout.master.rotation import Rotation, reads
from pyfanout.master.shortage import Shortage
from pyfanout.master.signals import Request, Signals
from pyfanout.master.status import WorkerStatus, status_of
from pyfanout.master.watches import Watches
from pyfanout.options import MAX_WORKERS

log = logging.getLogger("pyfanout.master")

WorkerMain = Callable[[int, int, WorkerEnds, socket.socket, int, mmap.mmap], int]
"""What a worker does, given its slot, its generation, its ends, its end of the control socket, the descriptor to
write its stacks to if it dies of a signal, and `Roster.several`; its exit code."""

WhenReloaded = Callable[[str], object]
"""Told of the end of a reload: why it failed, or nothing."""

GRACE_NS = 2_000_000_000
"""From "stop now" to SIGKILL: long enough for an exit hook, short for a user who presses ^C. The same again until a
worker that SIGKILL does not end is left behind."""

MESSAGES = 16
"""Read of one worker before the others have their turn: a socket that is full would swallow a pong."""


class Supervisor:
    """Keeps workers alive behind the endpoints until it is asked to stop.

    `with Supervisor(...) as supervisor: supervisor.run()`. Everything it opens it closes; the endpoints' descriptors
    are the core's as soon as it is entered.
    """

    def __init__(
        self,
        config: Config,
        endpoints: list[Endpoint],
        worker_main: WorkerMain,
        callbacks: Callbacks,
        signals: Signals,
        readiness: Readiness,
        app: str = "",
    ) -> None:
        """`app` is what the log calls the application."""
        self._config = config
        self._app = app
        self._endpoints = endpoints
        self._worker_main = worker_main
        self._callbacks = callbacks
        self._signals = signals
        self._readiness = readiness
        self._open_files = OpenFiles()
        self._roster = Roster()
        self._health = Health(config)
        self._deaths = Deaths()
        self._min_uptime_ns = int(config.min_uptime * 1e9)
        self._ever_ready = False
        self._told_ready = False
        self._stopping: Request | None = None
        self._stop_deadline_ns: int | None = None
        """When what is left of a stop loses patience."""
        self._cut = 0
        """Connections that were cut off since the stop began."""
        self._finished = False
        self._looked = True
        """The core has run since the stop began: if no client waits, it has said that it has finished."""
        self._late = False
        """The drain timeout of a graceful stop is over."""
        self._has_front = False
        """The loop of the program calls `step`."""
        self._shortage = Shortage()
        self._reload: Reload | None = None
        self._replaced: set[WorkerHandle] = set()
        """Workers that reloads have replaced and that have not exited yet."""
        self._when_reloaded: list[WhenReloaded] = []
        self._reload_again: list[WhenReloaded] | None = None
        """Those that asked for one more while one was under way; None: none did."""
        self._first_failure: Failed | None = None
        self._broken: WorkerError | None = None
        """Why a stop is a failure."""

    # ---- birth and death ----------------------------------------------------------------------------------------

    def __enter__(self) -> Supervisor:
        os.close(own_pidfd())  # said once, and not of each worker
        gc.collect()
        with contextlib.ExitStack() as undo:
            undo.callback(self._open_files.restore)
            self._open_files.raise_to(timing.open_files(self._config.workers, self._config.threads))
            # All workers share the objects that exist now, until a process writes to them, as the collector does. Once,
            # and not at each fork: frozen objects are never collected, and a master makes garbage as long as it lives.
            undo.callback(gc.unfreeze)
            gc.freeze()
            self._core = undo.enter_context(Core(SEATS, self._config.policy))
            self._rotation = Rotation(self._core, self._open_files)
            self._watches = Watches(self._core)
            self._orphans = Orphans()
            undo.callback(self._look_for_orphans)
            undo.callback(self._bury)
            self._open()
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    def _open(self) -> None:
        for endpoint in self._endpoints:
            self._core.listen(endpoint.sock.fileno())
            endpoint.detach()
        self._watches.add(self._signals.fileno(), self._on_signal)
        config = self._config
        log.info(
            "listening on %s with %s, %s",
            ", ".join(endpoint.address for endpoint in self._endpoints),
            counted(config.workers),
            config.policy,
        )
        for _ in range(config.workers):
            self._roster.grow().respawn_at_ns = time.monotonic_ns()
        self._health.begin(time.monotonic_ns())

    def _bury(self) -> None:
        """Leave no process behind, whatever happened."""
        for member in self._roster.members:
            member.process.send(signal.SIGKILL)
        end_ns = time.monotonic_ns() + GRACE_NS
        for member in self._roster.members:
            if not member.process.kill(0 if member.left_behind else max(0, end_ns - time.monotonic_ns()) / 1e9):
                log.critical("%s cannot be killed and is left behind", member)
            self._roster.remove(member)

    # ---- the loop -----------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Serve until stopped. Raises WorkerError or LoadError if no worker ever becomes ready."""
        while self.step():
            pass

    def step(self, timeout_ns: int | None = None, *, program_ran: bool = False) -> bool:
        """Wait for the next event, at most for `timeout_ns`, and deal with it. False: stopped, and all is over.
        `program_ran`: code of the program has run since the last step."""
        if program_ran:
            self._look_for_orphans(program_ran=True)
        now_ns = time.monotonic_ns()
        self._health.awake(now_ns)
        if self._signals.heard:  # before a worker is forked for a server that shall stop
            self._on_signal()
        self._keep_time(now_ns)
        self._go_on_reloading()
        self._start_one(now_ns)
        self._run_callbacks()
        if self._over():
            if self._broken:
                raise self._broken
            if left := self._roster.members:
                raise StuckError(f"stopped, but these workers cannot be killed: {', '.join(map(str, left))}")
            log.info("stopped: %s cut off", "1 connection was" if self._cut == 1 else f"{self._cut} connections were")
            return False
        deadlines = [] if timeout_ns is None else [now_ns + timeout_ns]
        deadline_ns = min(deadlines + self._deadlines(), default=None)
        self._health.sleeps_until(None if deadline_ns is None else max(deadline_ns, now_ns))
        self._signals.hold()
        events = self._core.run(None if deadline_ns is None else deadline_ns - time.monotonic_ns())
        self._looked = True
        self._look_for_orphans()
        for event in events:
            self._on_event(event)
            self._run_callbacks()
        self._shortage.lost(self._core.lost)
        if self._has_front:
            self._arm(at_once=bool(events))
        return True

    def fileno(self) -> int:
        """Readable when `step` has something to do."""
        fd = self._core.poll_fd()
        if not self._has_front:
            self._has_front = self._signals.shared = True
            self._arm(at_once=True)
        return fd

    def _arm(self, *, at_once: bool) -> None:
        """After news there may be something to do that no descriptor tells."""
        deadline_ns = min(self._deadlines(), default=None)
        try:
            self._core.arm(0 if at_once else None if deadline_ns is None else deadline_ns - time.monotonic_ns())
        except CoreError:  # then `step` shall be called, and tries again: of what this does, half is enough for that
            with contextlib.suppress(CoreError):
                self._core.arm(0)

    def _over(self) -> bool:
        if not all(member.left_behind for member in self._roster.members):
            return False
        if self._stopping is Request.STOP_NOW:
            return True
        if self._stopping is Request.STOP:
            return all(slot.respawn_at_ns is None for slot in self._roster.slots)
        if not self._ever_ready and all(slot.respawn_at_ns is None for slot in self._roster.slots):
            self._give_up()
        return False

    def _give_up(self) -> None:
        """Every worker died before it was ready, and none ever was."""
        failure = self._first_failure
        reason = failure.reason if failure else "see the log for how they ended"
        kind = LoadError if failure and failure.stage is Stage.LOAD else WorkerError
        error = kind(f"no worker could start: {reason}")
        self._tell("give_up", None, str(error))
        self._run_callbacks()
        raise error

    # ---- events -------------------------------------------------------------------------------------------------

    def _unwatch(self, member: WorkerHandle) -> None:
        for fd in (member.process.pidfd, member.link.fileno()):
            self._watches.remove(fd)

    def _on_event(self, event: Event) -> None:
        match event.kind:
            case EventKind.WATCHED:
                self._watches.call(event.token)
            case EventKind.PAUSED:
                if self._shortage.begins(event.error):
                    self._tell("pause", None, os.strerror(event.error))
            case EventKind.RESUMED:
                self._shortage.ends()
            case EventKind.LISTENER_FAILED:
                address = self._endpoints[event.token].address
                log.critical("lost listener %s: %s", address, os.strerror(event.error))
            case EventKind.CHANNEL_BROKEN:
                self._on_broken(event.token)
            case EventKind.FINISHED:
                self._finished = True
                for slot in self._roster.slots:
                    if slot.respawn_at_ns is not None and not self._wants_another(slot):
                        slot.respawn_at_ns = None
                for member in self._roster.members:
                    needless = member.state is State.BOOTING and not self._waiting_for(member)
                    self._happened(member, WorkerEvent.TOLD_TO_DRAIN if needless else WorkerEvent.CHANNELS_ENDED)

    def _on_broken(self, seat: int) -> None:
        """Its readers see end-of-file and leave by themselves."""
        for member in self._roster.members:
            if member.state is State.READY and reads(member.seat, member.ready, seat):
                log.error("%s: its channel was shut down by a worker; it is replaced", member)
                self._happened(member, WorkerEvent.CHANNEL_BROKEN)

    def _on_signal(self) -> None:
        for request in self._signals.read():
            match request:
                case Request.STOP:
                    self.stop()
                case Request.STOP_NOW if self._stopping is Request.STOP_NOW:
                    self._kill_all()
                case Request.STOP_NOW:
                    self.stop(at_once=True)
                case Request.RELOAD:
                    self.reload()
                case Request.MORE:
                    self.scale(len(self._roster.slots) + 1)
                case Request.FEWER:
                    self.scale(len(self._roster.slots) - 1)
                case Request.REOPEN:
                    log.info(
                        "SIGUSR1: pyfanout has no log file to reopen; lines go to stderr, or as the application says"
                    )
                case Request.UPGRADE:
                    log.warning("SIGUSR2 does nothing here: SIGHUP reloads the application")

    def _on_message(self, member: WorkerHandle) -> None:
        try:
            for message in member.link.receive():
                self._on_word(member, message)
        except DecodeError as error:
            member.verdict = f"protocol error on its control socket: {error}"
            log.error("%s: protocol error on its control socket (%s); killing it", member, error)
            self._watches.remove(member.link.fileno())
            member.process.send(signal.SIGKILL)

    def _on_word(self, member: WorkerHandle, message: Message | None) -> None:
        match message:
            case None:  # it closed its end; most likely it is about to die
                self._watches.remove(member.link.fileno())
            case Ping():
                raise DecodeError("a ping from a worker")
            case Ready():
                self._on_ready(member, message)
            case Failed():
                member.failure = message
            case Pong():
                self._on_pong(member, message)
            case WantsSuccessor():
                self._on_spent(member)
            case Retiring():
                member.resigned = member.state is State.READY
                self._happened(member, WorkerEvent.SAID_RETIRING)
            case HasRoom():
                pass  # it has woken the core, which looks at the scoreboard by itself
            case Short(short):
                self._on_short(member, short)
            case Cut(connections):
                member.cut = connections

    def _on_ready(self, member: WorkerHandle, ready: Ready) -> None:
        if member.state is State.BOOTING:
            member.ready, member.ready_ns = ready, time.monotonic_ns()
        member.wake_ns = None
        self._happened(member, WorkerEvent.SAID_READY)
        if member.state is not State.READY:
            return
        if not self._ever_ready:
            self._ever_ready = True
            self._respawn_those_that_failed()
        if self._stopping:
            member.link.send(ServerStopping())
        self._tell_if_all_are_ready()

    def _tell_if_all_are_ready(self) -> None:
        """Once."""
        if not self._told_ready and self._roster.of_state(State.READY) == len(self._roster.slots):
            self._told_ready = True
            self._log_start()
            self._readiness.tell()

    def _log_start(self) -> None:
        serving = next((member.ready.serving for member in self._roster.members if member.ready.serving), "")
        log.info(
            "all workers are ready: %s (%s) on %s with %s, %s, pyfanout %s, Python %d.%d.%d",
            self._app,
            serving,
            ", ".join(endpoint.address for endpoint in self._endpoints),
            counted(len(self._roster.slots)),
            self._config.policy,
            pyfanout.__version__,
            *sys.version_info[:3],
        )

    def _respawn_those_that_failed(self) -> None:
        """Until the first worker was ready no worker was replaced: it might have been for ever."""
        for slot in self._roster.slots:
            if slot.member is None and slot.respawn_at_ns is None and self._stopping is None:
                self._respawn_later(slot)

    def _on_pong(self, member: WorkerHandle, pong: Pong) -> None:
        if not self._health.on_pong(member, pong, time.monotonic_ns()) or member.state is not State.READY:
            return
        member.proved = member.deadline_ns is None
        if not self._is_of_reload(member):
            self._promote(member)

    def _on_short(self, member: WorkerHandle, short: bool) -> None:
        """It cannot take connections: others get them, until it can."""
        if member.short is short:
            return
        member.short = short
        if member.state is not State.READY:
            return
        if short:
            self._rotation.leave(member.seat)
        else:
            self._enter(member)
            if not self._is_of_reload(member):
                self._promote(member)

    def _is_of_reload(self, member: WorkerHandle) -> bool:
        return self._reload is not None and member in self._reload.trials

    def _promote(self, member: WorkerHandle) -> WorkerHandle | None:
        """`member` has passed its trial and takes its slot over; the old worker finishes what it has begun. Returns the
        old one."""
        if member.slot.successor is not member or not member.fit:
            return None  # it has had the slot since the old one died; or it is told to leave
        old = self._hand_over(member)
        if old is not None:
            self._happened(old, WorkerEvent.TOLD_TO_DRAIN)
        return old

    def _hand_over(self, successor: WorkerHandle) -> WorkerHandle | None:
        """Give the slot to its successor; returns the worker that had it."""
        old = self._roster.promote(successor)
        if successor.spent:  # by now
            self._on_spent(successor)
        return old

    def _on_spent(self, member: WorkerHandle) -> None:
        """It has had its max_requests: its successor boots while it serves on."""
        member.spent = True
        slot = member.slot
        if self._stopping is None and slot.member is member and slot.successor is None and not slot.retired:
            slot.respawn_at_ns = time.monotonic_ns()

    def _on_death(self, member: WorkerHandle) -> None:
        self._unwatch(member)
        self._read_last_words(member)
        report, was, view = member.process.reap(), member.state, self._core.look(member.seat)
        words = self._deaths.words(member, report)
        stacks = member.stacks() if report.signum is not None else ""
        if member.failure and self._first_failure is None:
            self._first_failure = member.failure
        member.slot.last_death, member.served = words, view.done > 0
        if self._stopping is not None:
            # Some of those that it has told of may not have been done when it exited.
            self._cut += max(member.cut, view.in_hands)
        self._happened(member, WorkerEvent.DIED)
        if member.slot.retired or member.slot.seat != member.seat:
            self._core.end(member.seat)
        if member.failure:
            self._deaths.log_failure(member, member.failure, ever_ready=self._ever_ready)
        else:
            self._deaths.log(member, was, report, words, view.in_hands, stopping=self._stopping is not None)
        self._deaths.log_stacks(member, stacks, ever_ready=self._ever_ready)
        if self._callbacks.wanted("exit"):
            self._callbacks.post(Notice("exit", status_of(member.slot, member, view, time.monotonic_ns()), words))
        self._count_out(member, member.failure.reason if member.failure else f"{member} {words}")

    def _count_out(self, member: WorkerHandle, reason: str) -> None:
        """No reload waits for `member` any more."""
        if self._reload and member in self._reload.trials:
            self._reload.trials.remove(member)
            if not member.slot.retired:
                self._end_reload(reason)
        if member in self._replaced:
            self._replaced.remove(member)
            self._tell_if_replaced_are_gone()

    def _read_last_words(self, member: WorkerHandle) -> None:
        """Its death may be reported before what it said."""
        for message in member.link.last_words():
            match message:
                case Failed():
                    member.failure = message
                case Retiring():
                    member.resigned = member.resigned or member.state is State.READY
                case WantsSuccessor():
                    member.spent = True
                case Cut(connections):
                    member.cut = connections

    def _tell(self, event: str, member: WorkerHandle | None, detail: str = "") -> None:
        """The callbacks, when this event is done with."""
        if self._callbacks.wanted(event):
            self._callbacks.post(Notice(event, self._status(member) if member else None, detail))

    def _run_callbacks(self) -> None:
        if self._callbacks.due:
            self._look_for_orphans()
            self._callbacks.run()
            self._look_for_orphans(program_ran=True)

    # ---- states and actions -------------------------------------------------------------------------------------

    def _happened(self, member: WorkerHandle, happened: WorkerEvent) -> None:
        state, actions = step(member.state, happened)
        changed = state is not member.state
        if changed:
            now_ns = time.monotonic_ns()
            member.become(state, now_ns)
            member.deadline_ns = self._deadline_of(member, now_ns)
        for action in actions:
            self._perform(action, member)
        if changed and state in _TOLD and state is member.state:  # an action may have failed, and led on
            self._tell(_TOLD[state], member, member.verdict or "")

    def _deadline_of(self, member: WorkerHandle, now_ns: int) -> int | None:
        match member.state:
            case State.READY if member.slot.successor is member or self._is_of_reload(member):
                return now_ns + self._min_uptime_ns
            case State.DRAINING:
                return now_ns + int(self._config.drain_timeout * 1e9)
            case State.STOPPING | State.HUNG | State.KILLED:
                return now_ns + GRACE_NS
        return None

    def _all(self, happened: WorkerEvent) -> None:
        for member in self._roster.members:
            self._happened(member, happened)

    def _perform(self, action: Action, member: WorkerHandle) -> None:
        match action:
            case Action.ENTER:
                self._enter(member)
            case Action.LEAVE:
                self._rotation.leave(member.seat)
            case Action.CLOSE:
                member.link.send(ServerStopping())
            case Action.DRAIN:
                member.link.send(Drain())
                if member.ready_ns is None:
                    self._wake(member, time.monotonic_ns())
            case Action.QUIT:
                member.process.send(signal.SIGQUIT)
            case Action.ABORT:
                member.process.abort(core=self._config.core_dumps)
            case Action.KILL:
                member.process.send(signal.SIGKILL)
            case Action.REPLACE:
                self._replace(member)

    def _wake(self, member: WorkerHandle, now_ns: int) -> None:
        """A worker that boots looks at its socket. Repeated at growing intervals: the message may not have been sent
        yet, and a signal that reaches a thread on its way into a call is lost."""
        member.wake_ns = now_ns + max(AGAIN_NS, now_ns - member.since_ns)
        member.process.send(WAKE)

    def _enter(self, member: WorkerHandle) -> None:
        if member.short:
            return
        if error := self._rotation.enter(member.seat, member.ready, len(self._roster.slots)):
            log.error("%s: cannot be put into rotation (%s); replacing it", member, error.strerror)
            self._happened(member, WorkerEvent.NOT_ENTERED)

    def _replace(self, member: WorkerHandle) -> None:
        """It has no slot any more. If it had, that gets another worker, now or later."""
        slot = member.slot
        if self._stopping and member.state not in (State.GONE, State.KILLED):
            return  # it may have found the end of its channel: what is left of it is seen when it is gone
        if member.state is State.KILLED and self._stopping is None and self._is_one_too_many(member):
            return
        held = self._roster.vacate(member)
        if member.state is State.GONE:
            self._roster.remove(member)
        if not held or slot.retired:
            return
        if slot.member is not None:
            self._on_lost_successor(slot.member)
            return
        successor = slot.successor
        if successor is not None and successor.state in (State.BOOTING, State.READY):
            self._hand_over(successor)  # it was to take its place anyway
            return
        if successor is not None:  # told to leave
            self._roster.vacate(successor)
            slot.seat = member.seat  # where a client may wait
        self._count_death(slot, member)
        if self._wants_another(slot):
            self._respawn_later(slot)

    def _is_one_too_many(self, member: WorkerHandle) -> bool:
        """Its slot has left one worker behind already: the cause may block every new one, without an end. The slot gets
        its next worker when this one is dead."""
        return any(each.left_behind and each.slot is member.slot for each in self._roster.members if each is not member)

    def _count_death(self, slot: Slot, member: WorkerHandle) -> None:
        now_ns = time.monotonic_ns()
        ready_for_ns = None if member.ready_ns is None else now_ns - member.ready_ns
        served = member.served or (member.resigned and self._core.look(member.seat).done > 0)
        lived = timing.has_lived(ready_for_ns, served, self._min_uptime_ns)
        slot.deaths = timing.deaths_in_a_row(slot.deaths, lived, member.resigned)
        if not slot.deaths:
            return
        full_window = len(slot.died_ns) == timing.BROKEN_WINDOW
        window_ns = now_ns - slot.died_ns[0] if full_window else None
        slot.died_ns.append(now_ns)
        failed = timing.is_broken(slot.deaths, window_ns, self._min_uptime_ns)
        before, slot.failed = slot.failed, failed
        if failed and not before and self._ever_ready and self._stopping is None:
            self._fail(slot)

    def _on_lost_successor(self, old: WorkerHandle) -> None:
        """The old worker serves on. One that has had its max_requests still wants a successor; a reload is over."""
        slot = old.slot
        slot.seat = old.seat
        if old.spent and self._stopping is None:
            slot.deaths += 1
            slot.respawn_at_ns = time.monotonic_ns() + timing.respawn_delay_ns(max(slot.deaths, 2), random.random())

    def _fail(self, slot: Slot) -> None:
        """A slot whose workers die again and again."""
        detail = f"{slot} has died {slot.deaths} times in a row, the last time it {slot.last_death}"
        log.error("%s: FAILED%s", detail, "" if self._config.fail_fast else "; it is tried again slowly")
        self._tell("give_up", None, detail)
        if self._config.fail_fast:
            self._broken = WorkerError(detail)
            self.stop()

    def _wants_another(self, slot: Slot) -> bool:
        """Now that it has no worker."""
        if self._stopping is None:
            return self._ever_ready
        if self._stopping is Request.STOP_NOW or self._late:
            return False
        if not self._finished:
            return True
        # Others read what waits in the pool; what waits in its own channel waits for its seat alone.
        pooled = any(
            each.state is State.BOOTING or (each.ready.pool and each.slot.member is each and each.state in _READING)
            for each in self._roster.members
        )
        return self._left_in(slot) or (not pooled and self._core.untaken(POOL) > 0)

    def _left_in(self, slot: Slot) -> bool:
        return slot.seat is not None and self._core.untaken(slot.seat) > 0

    def _waiting_for(self, member: WorkerHandle) -> bool:
        return self._core.untaken(member.seat) > 0 or self._core.untaken(POOL) > 0

    def _respawn_later(self, slot: Slot) -> None:
        """At once after a first death, else when the delay is over."""
        delay_ns = timing.respawn_delay_ns(slot.deaths, random.random(), slot.failed)
        if delay_ns:
            log.info("%s is started again in %.1f s (death %d in a row)", slot, delay_ns / 1e9, slot.deaths)
        slot.respawn_at_ns = time.monotonic_ns() + delay_ns

    def _start_one(self, now_ns: int) -> None:
        """Fork the worker that has waited longest for its start, if any; at most one each time the loop comes round,
        because no client is served during a fork."""
        waiting = [(slot.respawn_at_ns, slot.number) for slot in self._roster.slots if slot.respawn_at_ns is not None]
        at_ns, number = min(waiting, default=(now_ns + 1, 0))
        if at_ns <= now_ns:
            if self._looked:  # else there may be no client for it
                self._spawn(self._roster.slots[number])
        elif self._reload and (slot := self._reload.next()):
            self._try_out(self._reload, slot)

    def _spawn(self, slot: Slot) -> WorkerHandle | None:
        """A new worker for it: its only one, or the successor of the one that serves. None: not now, but later."""
        try:
            member = self._fork(slot)
        except OSError as error:
            log.error("%s cannot be started: %s", slot, error.strerror)
            slot.respawn_at_ns = None
            if slot.member is not None and not slot.member.spent:
                return None  # of a reload: the worker that serves stays
            slot.deaths += 1
            if self._ever_ready:  # else as one that died before it was ready
                delay_ns = timing.respawn_delay_ns(max(slot.deaths, 2), random.random())
                slot.respawn_at_ns = time.monotonic_ns() + delay_ns
            return None
        self._tell("fork", member)
        return member

    def _fork(self, slot: Slot) -> WorkerHandle:
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
                self._watches.add(process.pidfd, functools.partial(self._on_death, member))
                self._watches.add(ours.fileno(), functools.partial(self._on_message, member))
            except OSError:
                self._unwatch(member)
                process.kill(GRACE_NS / 1e9)
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
        self._signals.forget()
        ends.append(self._core.abandon(seat))
        ours.close()
        for member in self._roster.members:
            os.close(member.process.pidfd)
            member.close()
        for bind in self._config.bind:
            if isinstance(bind, socket.socket):
                bind.close()  # the caller's own copy: it would keep the port open when the master is gone
        self._readiness.forget()
        self._open_files.restore()
        stdio.occupy()
        os.close(start_write)
        os.read(start_read, 1)
        os.close(start_read)

    # ---- time ---------------------------------------------------------------------------------------------------

    def _look_for_orphans(self, *, program_ran: bool = False) -> None:
        if self._orphans.adopts:
            self._orphans.look((member.process.pid for member in self._roster.members), ours=program_ran)

    def _keep_time(self, now_ns: int) -> None:
        for member in self._roster.members:
            member.link.outbox.flush()
            if member.wake_ns is not None and member.wake_ns <= now_ns:
                self._wake(member, now_ns)
        for member in self._roster.members:
            if member.deadline_ns is not None and member.deadline_ns <= now_ns:
                self._time_is_up(member)
        if self._stop_deadline_ns is not None and self._stop_deadline_ns <= now_ns:
            self._stop_deadline_ns = None
            self._lose_patience()
        if self._stopping is None and self._health.is_due(now_ns, self._roster.members):
            self._judge(now_ns)

    def _time_is_up(self, member: WorkerHandle) -> None:
        member.deadline_ns = None
        match member.state:
            case State.READY:  # on trial until it answers
                self._health.ping(member, time.monotonic_ns())
                return
            case State.BOOTING:
                member.verdict = f"not ready after {self._config.boot_timeout:g} s"
                log.error("%s is %s and is killed", member, member.verdict)
            case State.DRAINING:
                log.warning("%s has not finished after %g s and stops now", member, self._config.drain_timeout)
            case State.STOPPING:
                member.verdict = member.verdict or "it did not stop"
                log.warning("%s does not stop and is killed", member)
            case State.KILLED:
                member.slot.last_death = "cannot be killed"
                log.critical("%s does not die of SIGKILL: the kernel has not ended it; it is left behind", member)
        self._happened(member, WorkerEvent.TIME_IS_UP)
        if member.left_behind:
            self._count_out(member, f"{member} cannot be killed")

    def _judge(self, now_ns: int) -> None:
        """A worker that is hung leaves; the others are pinged."""
        for member in self._roster.members:
            if member.state is not State.READY:
                continue
            reason = self._health.judge(member, self._core.look(member.seat), now_ns)
            if reason is not None:
                member.verdict = f"hung: {reason}"
                log.error("%s is %s", member, member.verdict)
                self._happened(member, WorkerEvent.FOUND_HUNG)
        self._health.next_round(self._roster.members, now_ns)
        self._deaths.oom_kills.look(now_ns)

    def _deadlines(self) -> list[int]:
        """All that is to be done by the clock."""
        deadlines = [slot.respawn_at_ns for slot in self._roster.slots]
        deadlines += [ns for member in self._roster.members for ns in (member.deadline_ns, member.wake_ns)]
        deadlines.append(self._stop_deadline_ns)
        if any(member.link.outbox for member in self._roster.members):
            deadlines.append(time.monotonic_ns() + AGAIN_NS)
        if self._reload and self._reload.next():
            deadlines.append(time.monotonic_ns())
        if self._orphans.adopts:
            deadlines.append(time.monotonic_ns() + LOOK_NS)
        if self._stopping is None:
            deadlines.append(self._health.next_deadline_ns(self._roster.members))
        return [each for each in deadlines if each is not None]

    # ---- reload and scale ---------------------------------------------------------------------------------------

    def reload(self, when_over: WhenReloaded | None = None) -> None:
        """Replace every worker, one after the other; `when_over` is called when that is done or has failed. While one
        reload is under way all further requests together are one more."""
        told = [] if when_over is None else [when_over]
        if self._stopping:
            self._tell_reloaders(told, "the server stops")
        elif self._reload:
            self._reload_again = (self._reload_again or []) + told
        else:
            log.info("reloading %s", counted(len(self._roster.slots)))
            self._reload, self._when_reloaded = Reload(self._roster.slots, self._config.reload_batch), told

    def _go_on_reloading(self) -> None:
        if reload := self._reload:
            for passed in reload.passed():
                reload.replaced += 1
                if old := self._promote(passed):
                    self._replaced.add(old)
        if self._reload and self._reload.over:
            self._end_reload("")

    def _try_out(self, reload: Reload, slot: Slot) -> None:
        """Fork a new worker for a slot that is next in a reload."""
        slot.respawn_at_ns = None
        member = self._spawn(slot)
        if member is not None:
            reload.begin(member)
        else:
            self._end_reload(f"{slot} cannot be started")

    def _end_reload(self, error: str) -> None:
        """`error` is empty if all went well. Else the old workers that are left stay."""
        reload, told, again = self._reload, self._when_reloaded, self._reload_again
        assert reload is not None
        self._reload, self._reload_again = None, None
        if error:
            log.error("the reload has stopped, %d of %s new: %s", reload.replaced, counted_are(reload.total), error)
            for member in reload.trials:
                old = member.slot.member
                if member.slot.successor is member and old is not None and old.state is State.READY:
                    self._happened(member, WorkerEvent.TOLD_TO_DRAIN)
        else:
            left = len(self._replaced)
            begun = "1 old finishes what it has begun" if left == 1 else f"{left} old finish what they have begun"
            log.info("reloaded: %s new; %s", counted_are(reload.replaced), begun)
        if reload.replaced:
            self._tell_if_replaced_are_gone()
        self._tell("reload", None, error)
        self._tell_reloaders(told, error)
        if again is not None:
            self.reload(lambda error: self._tell_reloaders(again, error))

    def _tell_if_replaced_are_gone(self) -> None:
        if self._reload is None and not self._replaced:
            log.info("the last worker that was replaced has exited")

    def _tell_reloaders(self, told: list[WhenReloaded], error: str) -> None:
        for when_over in told:
            when_over(error)

    def scale(self, workers: int) -> None:
        """From now on so many workers, at least 1 and at most `options.MAX_WORKERS`. No-op while stopping."""
        workers = min(max(workers, 1), MAX_WORKERS)
        if self._stopping or workers == len(self._roster.slots):
            return
        log.info("scaling from %d to %s", len(self._roster.slots), counted(workers))
        self._open_files.raise_to(timing.open_files(workers, self._config.threads))
        while len(self._roster.slots) < workers:
            self._roster.grow().respawn_at_ns = time.monotonic_ns()
        while len(self._roster.slots) > workers:
            slot = self._roster.shrink()
            for member in (slot.successor, slot.member):
                if member is not None:
                    self._happened(member, WorkerEvent.TOLD_TO_DRAIN)
            if slot.seat is not None and self._roster.lives_in(slot.seat) is None:
                self._core.end(slot.seat)
        self._tell_if_all_are_ready()

    @property
    def settled(self) -> bool:
        """Every slot has a worker that is ready, and those of slots that are not wanted any more are gone."""
        all_ready = self._roster.of_state(State.READY) == len(self._roster.slots)
        return all_ready and not any(member.slot.retired for member in self._roster.members)

    @property
    def held_back(self) -> str | None:
        """A slot whose workers die, and which waits for its next one, in words; None if there is none."""
        now_ns = time.monotonic_ns()
        for slot in self._roster.slots:
            if slot.member is None and slot.respawn_at_ns is not None and slot.respawn_at_ns > now_ns:
                return f"{slot}: its last worker {slot.last_death or 'could not be forked'}"
        return None

    # ---- looking ------------------------------------------------------------------------------------------------

    def workers(self) -> list[WorkerStatus]:
        """All workers, also those that are about to leave, and the slots without one; by slot, then generation."""
        now_ns = time.monotonic_ns()
        found = [status_of(m.slot, m, self._core.look(m.seat), now_ns) for m in self._roster.members]
        found += [status_of(slot, None, None, now_ns) for slot in self._roster.slots if slot.member is None]
        return sorted(found, key=lambda status: (status.slot, status.generation))

    def _status(self, member: WorkerHandle) -> WorkerStatus:
        return status_of(member.slot, member, self._core.look(member.seat), time.monotonic_ns())

    # ---- stopping -----------------------------------------------------------------------------------------------

    def stop(self, *, at_once: bool = False) -> None:
        """As SIGTERM; `at_once`: as SIGINT."""
        if at_once or not self._ever_ready:
            if self._stopping is not Request.STOP_NOW:
                self._stop_now()
        elif self._stopping is None:
            self._stop_gracefully()

    def _stop_gracefully(self) -> None:
        """Pass on what is queued, end the channels, wait for the workers; then less and less patience."""
        log.info("graceful stop: workers have %g s to finish", self._config.drain_timeout)
        self._begin_stop(Request.STOP)
        for member in self._roster.members:
            if member.state is State.READY:
                member.link.send(ServerStopping())
        for number, endpoint in enumerate(self._endpoints):
            if endpoint.can_stop_new:
                self._core.stop_new(number)
        self._core.finish(self._config.backlog + 1)
        self._looked = False
        self._stop_deadline_ns = time.monotonic_ns() + int(self._config.drain_timeout * 1e9)

    def _lose_patience(self) -> None:
        log.warning("drain_timeout of %g s is over: remaining workers stop now", self._config.drain_timeout)
        self._late = True
        self._forget_respawns()
        self._all(WorkerEvent.TOLD_TO_STOP)

    def _stop_now(self) -> None:
        log.info("stopping now")
        self._begin_stop(Request.STOP_NOW)
        self._forget_respawns()
        self._stop_deadline_ns = None
        self._all(WorkerEvent.TOLD_TO_STOP)

    def _begin_stop(self, request: Request) -> None:
        self._stopping = request
        for slot in self._roster.slots:
            # No successor any more, and no additional worker, as long as there is one.
            if slot.member is not None or (not slot.generation and self._roster.members):
                slot.respawn_at_ns = None
        # Socket files go first: while the socket is open, its inode cannot be another file's.
        for endpoint in self._endpoints:
            endpoint.unlink()
        if self._reload:
            self._end_reload("the server stops")  # and those that asked for one more are told that, too
        for slot in self._roster.slots:
            if slot.successor is not None:  # its channel would be forgotten
                self._happened(slot.successor, WorkerEvent.TOLD_TO_DRAIN)

    def _kill_all(self) -> None:
        left = len(self._roster.members)
        are = "is" if left == 1 else "are"
        log.warning("asked once more to stop now: %s that %s left %s killed", counted(left), are, are)
        for member in self._roster.members:
            if member.state is not State.KILLED:
                member.verdict = member.verdict or "it did not stop"
                self._happened(member, WorkerEvent.TIME_IS_UP)

    def _forget_respawns(self) -> None:
        for slot in self._roster.slots:
            slot.respawn_at_ns = None


_READING = (State.READY, State.DRAINING)
"""In a graceful stop, of one that has its slot: it reads until the end of its channel."""

_TOLD = {State.READY: "ready", State.DRAINING: "drain", State.HUNG: "hang"}
"""Which callbacks hear of a new state. The end is told with its cause, see `_on_death`."""
