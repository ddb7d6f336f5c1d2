"""Dispatcher: for a program that forks its own workers, such as gunicorn's. A process that accepts for them.

    with pyfanout.Dispatcher(bind=":8000") as dispatcher:
        for _ in range(4):
            if os.fork() == 0:
                sys.exit(dispatcher.serve(app))
        ...

The program keeps the workers alive, by its own rules; the dispatcher gives connections to those that have joined, as
`Master` does to its own. `joined` is what runs in its process.
"""

from __future__ import annotations

import contextlib
import dataclasses
import faulthandler
import functools
import logging
import os
import signal
import socket
import weakref
from collections.abc import Mapping
from typing import NoReturn, Unpack

from pyfanout import descriptors, exits
from pyfanout.app import App, loader_of
from pyfanout.config import WEB_CONCURRENCY, Config, Options, options, unknown_variables
from pyfanout.dispatcher import joining
from pyfanout.dispatcher.joined import JoinedWorkers
from pyfanout.errors import ConfigError, WorkerError
from pyfanout.folders import Folders
from pyfanout.host import stdio
from pyfanout.host.log import handlers_of, set_up_logging
from pyfanout.master.access import Access
from pyfanout.master.endpoints import Endpoint, open_listeners
from pyfanout.master.process import Process, own_pidfd, spawn
from pyfanout.master.signals import DEADLY
from pyfanout.worker.main import serve as serve_in
from pyfanout.worker.public import Public
from pyfanout.worker.serving import ServingWorker
from pyfanout.worker.worker import WorkerProcess, enlist

log = logging.getLogger("pyfanout.master")

MEANINGLESS = (
    "workers",
    "max_requests",
    "max_requests_jitter",
    "boot_timeout",
    "min_uptime",
    "fail_fast",
    "core_dumps",
    "reload_batch",
    "preload",
    "ready_fd",
    "pidfile",
)
"""Options about the lives of workers, which are their parent's affair here."""

IGNORED = {
    *(signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2),
    *(signal.SIGTTIN, signal.SIGTTOU),
    *DEADLY,
}
"""By the dispatcher's process, which ends after its owner and its workers: these come to all of them at once, from a
terminal, or from systemd."""

GRACE_S = 2.0
"""After `close` has waited; and once more after SIGKILL."""

_dispatchers: weakref.WeakSet[Dispatcher] = weakref.WeakSet()
"""Those of this process."""


def config_of(arguments: Mapping[str, object], environ: Mapping[str, str]) -> Config:
    """The options of a dispatcher, as `Config.resolve` finds them. `WEB_CONCURRENCY` is for the program that forks the
    workers. Raises ConfigError, also for an argument or a variable that is meaningless here."""
    known = options()
    for name in MEANINGLESS:
        wrong = name if arguments.get(name) is not None else known[name].variable if known[name].given(environ) else ""
        if wrong:
            raise ConfigError(f"{wrong}: a Dispatcher forks no workers; the program that does decides that")
    config = Config.resolve(arguments, {name: environ[name] for name in environ if name != WEB_CONCURRENCY})
    return dataclasses.replace(config, max_requests=0)


class Dispatcher:
    """Accepts in a process of its own, which `start` forks; and again if that has died, for the sockets stay open here.
    Workers join it, come and go as they like. It ends when its owner has stopped or is gone, however that came,
    and the workers have finished."""

    def __init__(self, **options: Unpack[Options]) -> None:
        """Options as for `serve`, but for those about workers' lives, also as variables. Raises ConfigError."""
        self.config = config_of(options, os.environ)
        self._folders = Folders.of(self.config)
        self.config = self._folders.fixed(self.config)
        if self.config.tls:
            from pyfanout.worker.tls import prepare  # noqa: PLC0415 - ssl takes 10 ms to import

            prepare(self.config)
        self._endpoints: list[Endpoint] = []
        self._process: Process | None = None
        self._join_socket: socket.socket | None = None
        self._owner_pid = os.getpid()
        _dispatchers.add(self)

    # ---- the owner ----------------------------------------------------------------------------------------------

    def __enter__(self) -> Dispatcher:
        """Opens the sockets, and starts. Raises ConfigError if an address cannot be used, and OSError if there is no
        room for a process."""
        try:
            self.start()
        except BaseException:
            self._close_endpoints()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """If it does not run. Raises as `__enter__`, and WorkerError if it was stopped and still has workers."""
        if self.alive:
            if self._join_socket is None:
                raise WorkerError("the dispatcher is stopping; close it before it is started again")
            return
        self._forget_process()
        stdio.occupy()
        set_up_logging(self.config.log_level)
        if not self._endpoints:
            for line in unknown_variables(os.environ):
                log.warning(line)
            config = self.config
            self._endpoints = open_listeners(
                config.bind,
                backlog=config.backlog,
                nodelay=config.nodelay,
                access=Access.of(config.unix_mode, config.unix_owner),
            )
            self.public = Public.of(endpoint.sock for endpoint in self._endpoints)
            self.addresses = [endpoint.address for endpoint in self._endpoints]
        join_socket, inside = joining.make_join_socket()
        with inside, contextlib.ExitStack() as undo:
            undo.callback(join_socket.close)
            owner_fd = own_pidfd()
            try:
                joined = JoinedWorkers(self.config, self._endpoints, inside, owner_fd)
                own = [inside.fileno(), owner_fd, *(endpoint.sock.fileno() for endpoint in self._endpoints)]
                self._process = spawn(
                    functools.partial(self._first_steps, join_socket, own), functools.partial(_live, joined)
                )
            finally:
                os.close(owner_fd)
            undo.pop_all()
        self._join_socket = join_socket

    def _first_steps(self, join_socket: socket.socket, own: list[int]) -> None:
        """In its process, signals blocked: let go of what is the owner's, whose objects are neither flushed nor
        finalized here."""
        signal.set_wakeup_fd(-1)
        for signum in signal.valid_signals():
            if signum in IGNORED:
                _owners.append(signal.signal(signum, signal.SIG_IGN))
            elif callable(signal.getsignal(signum)):
                _owners.append(signal.signal(signum, signal.SIG_DFL))
        join_socket.close()
        _let_go_of_all(but=self)
        logging_to = handlers_of(log.name)
        for handler in logging_to:
            if isinstance(buffer := getattr(handler, "buffer", None), list):  # BufferingHandler's records
                _owners.append(buffer)
                handler.buffer = []  # type: ignore[attr-defined]  # it has one
        descriptors.close_all_but([*own, *descriptors.of_objects(logging_to), *descriptors.of_libraries()])
        stdio.occupy()
        if faulthandler.is_enabled():  # perhaps to a file of the owner's
            faulthandler.enable(2)

    @property
    def alive(self) -> bool:
        """Whether its process runs. One that dies has closed its join socket a moment before that is over."""
        if self._process is None or self._process.is_over(0):
            return False
        return self._join_socket is None or not joining.is_left(self._join_socket)

    @property
    def pid(self) -> int | None:
        """Of its process."""
        return None if self._process is None else self._process.pid

    def stop(self) -> None:
        """Accept what is queued now, and no more; the workers find the end when they have served it. Does not wait.
        No-op in a worker, which may leave the owner's blocks, and run its exit functions."""
        if os.getpid() != self._owner_pid:
            return
        self._close_endpoints()
        if self._join_socket is not None:
            joining.stop(self._join_socket)
            self._join_socket.close()
            self._join_socket = None

    def close(self, timeout: float | None = None) -> None:
        """Stop, and wait until all workers have gone, at most `timeout` seconds; by default `drain_timeout`. May be
        called again. No-op in a worker."""
        if os.getpid() != self._owner_pid:
            return
        self.stop()
        wait_s = (self.config.drain_timeout if timeout is None else timeout) + GRACE_S
        if self._process is not None and not self._process.is_over(wait_s):
            self._process.send(signal.SIGKILL)
        self._forget_process()

    def _forget_process(self) -> None:
        if self._join_socket is not None:
            self._join_socket.close()
        process, self._join_socket, self._process = self._process, None, None
        if process is None:
            return
        if process.is_over(GRACE_S):
            process.reap()
        elif not process.kill(GRACE_S):
            log.critical(
                "the dispatcher, pid=%d, does not die of SIGKILL within %g s and is left behind; its owner goes on",
                process.pid,
                GRACE_S,
            )

    def _close_endpoints(self) -> None:
        for endpoint in self._endpoints:
            endpoint.close()
        self._endpoints = []

    # ---- a worker -----------------------------------------------------------------------------------------------

    def join(self) -> ServingWorker:
        """In a process that the owner has forked, once: be a worker. It accepts from `listener()`, and says `ready()`
        when it does. `drain()` has it get nothing any more; set `on_drain` to what shall happen then, which is also
        called when the dispatcher stops or is gone.

        Raises WorkerError if the dispatcher is gone, does not answer or has no seat left: then this process cannot
        join any more. Raises OSError if no descriptor is free."""
        return ServingWorker(self._join())

    def _join(self) -> WorkerProcess:
        if os.getpid() == self._owner_pid or self._join_socket is None:
            raise WorkerError("join is for a process that was forked after start, and has not joined")
        try:
            seat, generation, ends, control = joining.join(self._join_socket)
        except WorkerError:
            self._let_go()
            raise
        _let_go_of_all()
        stdio.occupy()
        worker = WorkerProcess(self.config, self.public, seat, generation, ends, control, joined=True)
        try:
            worker.background.open()
        except OSError:
            control.close()
            ends.close()
            raise
        enlist(worker)
        return worker

    def serve(self, app: App | str) -> int:
        """Join, and serve an application as `pyfanout.serve` does in each of its workers, until SIGTERM or the
        dispatcher's end. Returns the exit code for this process."""
        return serve_in(self._join(), loader_of(app, self._folders, factory=self.config.factory))

    def _let_go(self, *, but_endpoints: bool = False) -> None:
        """In a child of the owner's: it would keep the port open when all others have closed it."""
        if self._join_socket is not None:
            self._join_socket.close()
        if self._process is not None:
            os.close(self._process.pidfd)
        self._join_socket = self._process = None
        if not but_endpoints:
            for endpoint in self._endpoints:
                endpoint.sock.close()  # not its file, which is the owner's
        for bind in self.config.bind:
            if isinstance(bind, socket.socket):
                bind.close()


_owners: list[object] = []
"""In a dispatcher's process: objects that would be finalized if there were no reference to them."""


def _live(joined: JoinedWorkers) -> NoReturn:
    """The dispatcher's process. It does not flush the standard streams either, which may be the owner's objects."""
    os._exit(exits.code_of(joined.run))


def _let_go_of_all(but: Dispatcher | None = None) -> None:
    """In a child that the owner of all of them has forked; it accepts for `but`."""
    for each in list(_dispatchers):
        each._let_go(but_endpoints=each is but)
