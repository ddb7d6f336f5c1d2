"""Master: a server as an object. Opens what it needs, forks, and is asked to reload, scale and stop.

The few lines between the public calls and `master.supervisor`; never decides what happens to a worker.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import os
import sys
import threading
from collections.abc import Iterable
from typing import Any, Unpack

from pyfanout import servers
from pyfanout.app import App, Given, loader_of
from pyfanout.config import Config, Options, options, unknown_variables
from pyfanout.errors import ConfigError, CoreError, FanoutError, ReloadError, WorkerError
from pyfanout.folders import Folders
from pyfanout.greenlets import ALL, patch_of
from pyfanout.host import stdio
from pyfanout.host.log import set_up_logging
from pyfanout.kind import Kind, name_of
from pyfanout.master.access import Access
from pyfanout.master.callbacks import Callback, Callbacks
from pyfanout.master.endpoints import open_listeners
from pyfanout.master.pidfile import PidFile
from pyfanout.master.readiness import Readiness
from pyfanout.master.signals import Signals
from pyfanout.master.status import WorkerStatus
from pyfanout.master.supervisor import Supervisor
from pyfanout.recognition import kind_of
from pyfanout.worker.loading import preloaded
from pyfanout.worker.main import main, server_module
from pyfanout.worker.public import Public

log = logging.getLogger("pyfanout.master")


def check_greenlets() -> None:
    """A master waits in calls that must not become switches to other greenlets. Raises ConfigError."""
    if patch := patch_of(*ALL):
        raise ConfigError(
            f"{patch.patcher} has patched the master's process; have it patch the workers only: --server gevent, or"
            " `pyfanout run module:runner` without --preload"
        )


def _check_is_imported_later(app: App | str) -> None:
    """gevent patches a worker before that imports the application: names that an earlier import has taken out of the
    standard library (`from time import sleep`) would stay as they are. Raises ConfigError."""
    if not isinstance(app, str) or app.partition(":")[0] in sys.modules:
        raise ConfigError(
            "server: gevent patches each worker before that imports the application, which the master has done already;"
            ' give its name, such as "app:wsgi", and do not import it here'
        )


def _called(app: App) -> str:
    """What the log calls an application that is an object."""
    named = app if hasattr(app, "__qualname__") else type(app)
    return f"{getattr(named, '__module__', None)}:{name_of(app)}"


class Master:
    """Keeps workers alive behind listening sockets: `with Master(handler, workers=4) as master: master.run()`.

    Entering it opens the sockets; the workers are forked by the first `step`, which `run` calls until the server is
    stopped. Leaving it stops what still runs, at once. One thread, the main one, uses it: it forks and handles signals.
    """

    def __init__(self, app: App | str, **options: Unpack[Options]) -> None:
        """`app` is an application as for `serve`, or "module:attr", which each worker imports for itself: then a reload
        takes up new code. Options as for `serve`. Raises ConfigError."""
        self._prepare(Config.resolve(options, os.environ), app)

    @classmethod
    def of(cls, config: Config, app: App | str, signals: Signals | None = None) -> Master:
        """From a finished Config. `signals` are those of the whole process, if there are."""
        self = cls.__new__(cls)
        self._prepare(config, app, signals)
        return self

    def _prepare(self, config: Config, app: App | str, signals: Signals | None = None) -> None:
        self._folders = Folders.of(config)
        self.config = self._folders.fixed(config)
        self._load = loader_of(app, self._folders, factory=config.factory)
        known = not isinstance(app, str) and not config.factory
        self._kinds: Iterable[Kind] = [kind_of(app, config.as_, config.server)] if known else Kind
        if servers.patches(config.server) and self._kinds != [Kind.ASGI]:  # which it does not serve at all
            _check_is_imported_later(app)
        self._app = app if isinstance(app, str) else _called(app)
        self._signals = signals
        self._callbacks = Callbacks()
        self.addresses: list[str] = []
        """Where it listens, as a client would write them. Empty before it is entered."""
        self._entered: Supervisor | None = None
        self._running = False
        self._stepping = False
        self._program_ran = True
        """Whether code of the program has run since the last step."""

    # ---- birth and death ----------------------------------------------------------------------------------------

    def __enter__(self) -> Master:
        """Raises ConfigError (an address cannot be used, this is not the main thread), CoreError, and LoadError if
        the application is to be preloaded and cannot."""
        if self._entered is not None:
            raise RuntimeError("this Master has been entered already: make another one")
        try:
            self._open()
        except FanoutError:
            raise
        except OSError as error:
            raise CoreError(error.errno or 0, f"start: {error.strerror}") from error
        return self

    def _open(self) -> None:
        config = self.config
        if threading.current_thread() is not threading.main_thread():
            raise ConfigError("serve must be called in the main thread: it handles signals and forks")
        stdio.occupy()
        if config.tls:
            from pyfanout.worker.tls import prepare  # noqa: PLC0415 - ssl takes 10 ms to import

            prepare(config)  # and tried before anything is opened
        set_up_logging(config.log_level)
        for line in unknown_variables(os.environ):
            log.warning(line)
        access = Access.of(config.unix_mode, config.unix_owner)
        pidfile = PidFile(config.pidfile) if config.pidfile else None  # relative to the present directory
        with contextlib.ExitStack() as undo:
            readiness = Readiness(config.ready_fd)  # later the number would be one of our own descriptors
            undo.callback(readiness.close)
            signals = self._signals or undo.enter_context(Signals())
            undo.callback(signals.end)
            if config.preload:
                handler = preloaded(self._load)
                self._load, self._kinds = Given(handler), [kind_of(handler, config.as_, config.server)]
                log.info("the application is loaded in the master: a reload keeps its code, a restart loads it anew")
            check_greenlets()
            signals.begin()  # before there is a socket file, or a pidfile, by which the master is found
            binds = self._folders.fixed_binds(config.bind) if config.preload else config.bind
            endpoints = open_listeners(binds, backlog=config.backlog, nodelay=config.nodelay, access=access)
            for endpoint in endpoints:
                undo.callback(endpoint.close)
            readiness.refuse_listener()
            # Once, here, and not after each fork. Clients wait meanwhile: without a listener they are refused.
            for kind in self._kinds:
                server_module(kind)
            if pidfile:
                undo.callback(pidfile.remove)
                pidfile.create()
            worker_main = functools.partial(
                main, config, self._load, Public.of(endpoint.sock for endpoint in endpoints)
            )
            supervisor = Supervisor(config, endpoints, worker_main, self._callbacks, signals, readiness, self._app)
            self._entered = undo.enter_context(supervisor)
            self.addresses = [endpoint.address for endpoint in endpoints]
            self._undo = undo.pop_all()
        self._running = True

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self._undo:  # also what is killed then is gone before the sockets
            if kind is None and self._running:
                self.stop(at_once=True)
                self.run()

    @property
    def _supervisor(self) -> Supervisor:
        if self._entered is None:
            raise RuntimeError("this Master has not been entered: `with Master(...) as master:` opens its sockets")
        return self._entered

    # ---- running ------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Serve until stopped. Raises WorkerError or LoadError if no worker ever becomes ready, and WorkerError if
        `fail_fast` ends it."""
        while self.step():
            self._program_ran = type(self).step is not Master.step

    def step(self, timeout: float | None = None) -> bool:
        """Wait for the next event, at most `timeout` seconds, and deal with it. False: it is over. Raises as `run`."""
        supervisor = self._supervisor
        if self._stepping:
            raise RuntimeError("called in a callback of itself: there, reload and scale take wait=False")
        program_ran, self._program_ran = self._program_ran, True
        timeout_ns = None if timeout is None or timeout == math.inf else int(timeout * 1e9)
        self._stepping = True
        try:
            self._running = self._running and supervisor.step(timeout_ns, program_ran=program_ran)
        except BaseException:
            self._running = False
            raise
        finally:
            self._stepping = False
        return self._running

    def fileno(self) -> int:
        """For a program that has a loop of its own: a descriptor that is readable when `step(0)` has something to do,
        by the clock, too. It stays the master's."""
        return self._supervisor.fileno()

    def stop(self, *, at_once: bool = False) -> None:
        """Have `run` return: what was begun may finish within `drain_timeout`, or not if `at_once`. Does not wait."""
        self._supervisor.stop(at_once=at_once)

    # ---- while it runs ------------------------------------------------------------------------------------------

    def reload(self, *, wait: bool = True) -> None:
        """Replace each worker by a new one, `reload_batch` at a time: a new one must have served for `min_uptime`, and
        answer a ping, before its old one is told to drain. Serves on meanwhile, and returns when all are replaced.

        Raises ReloadError, with the reason of the first new worker that failed; the old ones that were left stay.
        A reload asked for while one is under way follows it. `wait=False`: only ask for it, as SIGHUP does.
        """
        outcome: list[str] = []
        self._supervisor.reload(outcome.append)
        if not wait:
            return
        while not outcome and self.step():
            pass
        if outcome != [""]:
            raise ReloadError(f"reload failed: {outcome[0] if outcome else 'the server has stopped'}")

    def scale(self, workers: int, *, wait: bool = True) -> None:
        """From now on `workers` workers, 1 to 1024. New ones are forked one after the other; of the old ones the newest
        slots drain. Serves on meanwhile, and returns when all are ready or gone, or the server was stopped.
        `wait=False`: only ask for it, as SIGTTIN and SIGTTOU do.

        Raises ConfigError, and WorkerError when a slot has no worker because they die; it is tried again all the same.
        """
        number: Any = options()["workers"].read(workers)  # also text, as everywhere
        self._supervisor.scale(number)
        while wait and not self._supervisor.settled and self.step():
            if reason := self._supervisor.held_back:
                raise WorkerError(f"scaling to {workers} workers: {reason}")

    @property
    def workers(self) -> list[WorkerStatus]:
        """All workers at this moment, those that are about to leave included, and the slots without one."""
        return self._supervisor.workers()

    def on(self, event: str, callback: Callback) -> None:
        """Have `callback(notice)` called at each `event`: "fork", "ready", "drain", "exit", "hang", "reload",
        "give_up", "pause" (see `master.callbacks.EVENTS`). It runs in the master, between two events, so it should be
        short; if it raises, that is logged and changes nothing. Raises ConfigError if there is no such event."""
        self._callbacks.add(event, callback)
