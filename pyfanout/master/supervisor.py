"""The master's loop: events of the core, signals and the clock, each for the room that it concerns. Read the life of a
server here, top to bottom.

Owns the core and the order in which things are looked at. Sees no connection: those are the core's; and decides nothing
about a worker: that is `group`'s. One thread. `server.Master` is its public face.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import socket
import sys
import time

from pyfanout.config import Config
from pyfanout.core import SEATS, Core, Event, EventKind
from pyfanout.errors import CoreError, StuckError, WorkerError
from pyfanout.host.log import counted
from pyfanout.limits import OpenFiles
from pyfanout.master.callbacks import Callbacks, Notice
from pyfanout.master.endpoints import Endpoint
from pyfanout.master.group import Group
from pyfanout.master.listening import Listening
from pyfanout.master.orphans import LOOK_NS, Orphans
from pyfanout.master.process import own_pidfd
from pyfanout.master.readiness import Readiness
from pyfanout.master.reload import WhenReloaded
from pyfanout.master.roster import Roster
from pyfanout.master.rotation import Rotation
from pyfanout.master.shutdown import Shutdown
from pyfanout.master.signals import Request, Signals
from pyfanout.master.spawner import Spawner, WorkerMain
from pyfanout.master.status import WorkerStatus
from pyfanout.master.watches import Watches
from pyfanout.version import __version__

log = logging.getLogger("pyfanout.master")


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
        self._told_ready = False
        self._has_front = False
        """The loop of the program calls `step`."""
        self._broken: WorkerError | None = None
        """Why a stop is a failure."""

    # ---- birth and death ----------------------------------------------------------------------------------------

    def __enter__(self) -> Supervisor:
        os.close(own_pidfd())  # said once, and not of each worker
        gc.collect()
        config = self._config
        with contextlib.ExitStack() as undo:
            undo.callback(self._open_files.restore)
            # All workers share the objects that exist now, until a process writes to them, as the collector does. Once,
            # and not at each fork: frozen objects are never collected, and a master makes garbage as long as it lives.
            undo.callback(gc.unfreeze)
            gc.freeze()
            self._core = undo.enter_context(Core(SEATS, config.policy))
            self._watches = Watches(self._core)
            self._roster = Roster()
            spawner = Spawner(
                config,
                self._core,
                self._roster,
                self._watches,
                self._open_files,
                forget=self._forget_in_child,
                worker_main=self._worker_main,
            )
            spawner.make_room(config.workers)
            self._group = Group(
                config,
                self._core,
                self._roster,
                Rotation(self._core, self._open_files),
                spawner,
                self._callbacks,
                on_ready=self._tell_if_all_are_ready,
                on_failed=self._on_failed,
            )
            self._shutdown = Shutdown(config, self._core, self._endpoints, self._group)
            self._orphans = Orphans()
            undo.callback(self._look_for_orphans)
            undo.callback(spawner.bury)
            self._open()
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    def _open(self) -> None:
        self._listening = Listening(self._core, self._endpoints)
        self._watches.add(self._signals.fileno(), self._on_signal)
        workers = counted(self._config.workers)
        log.info("listening on %s with %s, %s", self._listening.addresses, workers, self._config.policy)
        self._group.begin()

    def _forget_in_child(self) -> None:
        self._signals.forget()
        for bind in self._config.bind:
            if isinstance(bind, socket.socket):
                bind.close()  # the caller's own copy: it would keep the port open when the master is gone
        self._readiness.forget()

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
        health = self._group.lives.health
        health.awake(now_ns)
        if self._signals.heard:  # before a worker is forked for a server that shall stop
            self._on_signal()
        self._group.lives.keep_time(now_ns)
        self._shutdown.keep_time(now_ns)
        self._group.reloads.go_on()
        if self._shutdown.core_has_looked:
            self._group.start_one(now_ns)
        self._run_callbacks()
        if self._over():
            return False
        deadlines = [] if timeout_ns is None else [now_ns + timeout_ns]
        deadline_ns = min(deadlines + self._deadlines(), default=None)
        health.sleeps_until(None if deadline_ns is None else max(deadline_ns, now_ns))
        self._signals.hold()
        events = self._core.run(None if deadline_ns is None else deadline_ns - time.monotonic_ns())
        self._shutdown.core_has_looked = True
        self._look_for_orphans()
        for event in events:
            self._on_event(event)
            self._run_callbacks()
        self._listening.look()
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

    def _deadlines(self) -> list[int]:
        """All that is to be done by the clock."""
        deadlines = self._group.respawns.deadlines() + self._group.lives.deadlines()
        if self._shutdown.deadline_ns is not None:
            deadlines.append(self._shutdown.deadline_ns)
        if self._group.reloads.next():
            deadlines.append(time.monotonic_ns())
        if self._orphans.adopts:
            deadlines.append(time.monotonic_ns() + LOOK_NS)
        return deadlines

    def _over(self) -> bool:
        """Whether the server has stopped. Raises what makes its end a failure."""
        group, members = self._group, self._roster.members
        if not (group.phase.is_stop or group.ever_ready or group.respawns.pending) and self._roster.all_left_behind:
            self._give_up(group.start_error())
        if not self._shutdown.over:
            return False
        if self._broken:
            raise self._broken
        if members:
            raise StuckError(f"stopped, but these workers cannot be killed: {', '.join(map(str, members))}")
        log.info("stopped: %s cut off", "1 connection was" if group.cut == 1 else f"{group.cut} connections were")
        return True

    def _give_up(self, error: WorkerError) -> None:
        """Every worker died before it was ready, and none ever was."""
        self._callbacks.post(Notice("give_up", None, str(error)))
        self._run_callbacks()
        raise error

    def _run_callbacks(self) -> None:
        if self._callbacks.due:
            self._look_for_orphans()
            self._callbacks.run()
            self._look_for_orphans(program_ran=True)

    def _look_for_orphans(self, *, program_ran: bool = False) -> None:
        if self._orphans.adopts:
            self._orphans.look((member.process.pid for member in self._roster.members), ours=program_ran)

    # ---- events -------------------------------------------------------------------------------------------------

    def _on_event(self, event: Event) -> None:
        match event.kind:
            case EventKind.WATCHED:
                self._watches.call(event.token)
            case EventKind.CHANNEL_BROKEN:
                self._group.on_broken(event.token)
            case EventKind.FINISHED:
                self._shutdown.on_finished()
            case _:
                if short := self._listening.on_event(event):
                    self._callbacks.post(Notice("pause", None, short))

    def _on_signal(self) -> None:
        for request in self._signals.read():
            match request:
                case Request.STOP:
                    self.stop()
                case Request.STOP_NOW:
                    self._shutdown.stop_now()
                case Request.RELOAD:
                    self.reload()
                case Request.MORE:
                    self.scale(len(self._roster.slots) + 1)
                case Request.FEWER:
                    self.scale(len(self._roster.slots) - 1)
                case Request.REOPEN:
                    log.info(
                        "SIGUSR1 ignored: pyfanout has no log file to reopen; lines go to stderr or logging handlers"
                    )
                case Request.UPGRADE:
                    log.warning("SIGUSR2 ignored: pyfanout starts no second master; SIGHUP reloads the application")

    def _tell_if_all_are_ready(self) -> None:
        """Once."""
        if self._told_ready or not self._roster.all_ready:
            return
        self._told_ready = True
        serving = next((member.ready.serving for member in self._roster.members if member.ready.serving), "")
        log.info(
            "all workers are ready: %s (%s) on %s with %s, %s, pyfanout %s, Python %d.%d.%d",
            self._app,
            serving,
            self._listening.addresses,
            counted(len(self._roster.slots)),
            self._config.policy,
            __version__,
            *sys.version_info[:3],
        )
        self._readiness.tell()

    def _on_failed(self, detail: str) -> None:
        """The workers of a slot die again and again."""
        if self._config.fail_fast:
            self._broken = WorkerError(detail)
            self.stop()

    # ---- what may be asked for ----------------------------------------------------------------------------------

    def reload(self, when_over: WhenReloaded | None = None) -> None:
        self._group.reloads.ask(when_over)

    def scale(self, workers: int) -> None:
        self._group.scale(workers)

    def stop(self, *, at_once: bool = False) -> None:
        self._shutdown.stop(at_once=at_once)

    @property
    def settled(self) -> bool:
        return self._group.settled

    @property
    def held_back(self) -> str | None:
        return self._group.held_back

    def workers(self) -> list[WorkerStatus]:
        return self._group.workers()
