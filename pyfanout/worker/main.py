"""The life of a worker, from its fork to its exit code: load the application, choose what serves it, serve, end.

Stands above the servers, which it starts; they and `worker` know nothing of it.
"""

from __future__ import annotations

import contextlib
import faulthandler
import importlib
import inspect
import logging
import mmap
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from pyfanout import exits, greenlets, servers
from pyfanout.app import App
from pyfanout.config import Config
from pyfanout.core import WorkerEnds, keep_heap
from pyfanout.errors import ConfigError
from pyfanout.kind import Kind
from pyfanout.link.messages import Stage
from pyfanout.recognition import doubt, kind_of
from pyfanout.worker.loading import is_on_asyncio, load_for, settle
from pyfanout.worker.serving import ServingWorker
from pyfanout.worker.worker import NOT_AWAITED, WorkerProcess, enlist

if TYPE_CHECKING:
    from pyfanout.worker.loops import Loops
    from pyfanout.worker.public import Public

log = logging.getLogger("pyfanout.worker")

_MODULES = {Kind.HANDLER: "pyfanout.worker.blocking", Kind.COROUTINE: "pyfanout.worker.aio"}


def server_module(kind: Kind) -> Any:
    """What serves connections. Imported by name, for asyncio is not small."""
    return importlib.import_module(_MODULES.get(kind, "pyfanout.embed"))


class Serving(NamedTuple):
    """How an application is served in a worker."""

    words: str
    """For the log: "wsgi by waitress 3.0.2"."""
    serve: Callable[[WorkerProcess], None]
    loops: Loops | None = None
    """Those of asyncio that the application has used while it was loaded."""


def server_of(app: App, config: Config, loops: Loops | None = None) -> Serving:
    """What serves an application in a worker. Raises ConfigError and LoadError."""
    kind = kind_of(app, config.as_, config.server)
    chosen = config.server != "auto" and kind in servers.found(config.server).kinds
    if kind is Kind.HANDLER and not chosen:
        greenlets.refuse("a blocking handler", greenlets.THREADS, "use --server gevent")
    module = importlib.import_module("pyfanout.embed") if chosen else server_module(kind)
    runner = module.runner_of(app, kind, config.server) if chosen or kind not in _MODULES else None
    served = (app, kind) if runner is None else (runner, Kind.RUNNER)
    if runner is not None and runner.no_tls and config.tls:
        raise ConfigError(runner.no_tls)
    hooks = (config.on_worker_start, config.on_worker_exit)
    if any(map(inspect.iscoroutinefunction, hooks)) and not is_on_asyncio(*served):
        raise ConfigError(NOT_AWAITED)
    if loops is not None:
        settle(loops, *served)
    if runner is None:

        def serve_handler(worker: WorkerProcess) -> None:
            if kind is Kind.HANDLER and config.as_ == "auto":
                worker.doubt = doubt(app)
            module.serve(worker, app)

        return Serving(f"{kind.value} by pyfanout", serve_handler, loops)
    return Serving(
        f"{kind.value} by {module.title_of(runner)}", lambda worker: runner.serve(ServingWorker(worker)), loops
    )


def serving_of(load: Callable[[], App], config: Config, worker: WorkerProcess | None = None) -> Serving:
    """The same, of an application that is yet to be loaded; `worker` is the one that loads it, if there is one. Its
    loops are the caller's to close, unless it is served."""
    if servers.patches(config.server):
        importlib.import_module(f"pyfanout.embed.{config.server}").patch()  # before the application is imported
    app, loops = load_for(config, load, worker)
    try:
        return server_of(app, config, loops)
    except BaseException:
        if loops is not None:
            loops.close()
        raise


def main(
    config: Config,
    load: Callable[[], App],
    public: Public,
    slot: int,
    generation: int,
    ends: WorkerEnds,
    control: socket.socket,
    stacks_fd: int,
    several: mmap.mmap,
) -> int:
    """The whole life of a worker that the master has forked; its exit code.

    `stacks_fd`: where to write what all threads are doing when a signal kills it, SIGABRT from the master included.
    """
    exits.forget()
    worker = WorkerProcess(config, public, slot, generation, ends, control, several)
    enlist(worker)
    keep_heap()
    with contextlib.suppress(OSError):  # a sandbox that refuses sigaltstack: there will be no stacks
        faulthandler.enable(stacks_fd)
    code = exits.code_of(lambda: serve(worker, load))
    if not worker.forked:
        worker.end(code)
    return code


def serve(worker: WorkerProcess, load: Callable[[], App]) -> int:
    """Load an application and serve it, until told to leave; returns an exit code. SystemExit from the application
    passes through."""
    config = worker.config
    worker.signals.begin()
    try:
        worker.background.open()
    except OSError as error:
        return worker.fail(Stage.START, error)
    try:
        worker.serving, serve, loops = serving_of(load, config, worker)
        worker.used_runner = None if loops is None else loops.runner
    except (Exception, SystemExit) as error:
        return worker.fail(Stage.LOAD, error)
    try:
        try:
            serve(worker)
        finally:
            worker.signals.plain()  # a loop removes its own handlers when it is closed
    except Exception as error:
        if worker.stopped:  # what trio makes of Stopped, when that is raised in the middle of its own affairs
            return 0
        if worker.on_drain is not None:
            log.exception("worker=%d: an exception ended its serving loop; the worker exits with code 3", worker.slot)
            return 3
        return worker.fail(Stage.START, error)
    if not worker.forked:
        worker.farewell.settle(at_once=worker.signals.quit)
    worker.finished = True
    worker.signals.hand_over()
    return 0
