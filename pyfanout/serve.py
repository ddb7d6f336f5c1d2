"""serve(): arguments to Config to Supervisor. The few lines between the public call and the master's loop."""

from __future__ import annotations

import functools
import logging
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterable, Sequence

from pyfanout.app import Handler, Kind, kind_of
from pyfanout.config import Config
from pyfanout.errors import ConfigError, FanoutError
from pyfanout.master.listeners import open_listeners
from pyfanout.master.pidfile import PidFile
from pyfanout.master.supervisor import Supervisor
from pyfanout.worker.worker import Worker, main, server_module

LOG_FORMAT = "%(asctime)s [%(process)d] %(levelname)s %(message)s"


def serve(
    handler: Handler,
    *,
    bind: str | socket.socket | Sequence[str | socket.socket] | None = None,
    workers: int | str | None = None,
    threads: int | None = None,
    policy: str | None = None,
    backlog: int | None = None,
    max_connections: int | None = None,
    max_requests: int | None = None,
    max_requests_jitter: int | None = None,
    drain_timeout: float | None = None,
    boot_timeout: float | None = None,
    nodelay: bool | None = None,
    log_level: str | None = None,
    ready_fd: int | None = None,
    pidfile: str | os.PathLike[str] | None = None,
    on_worker_start: Callable[[Worker], object] | None = None,
    on_worker_exit: Callable[[Worker], object] | None = None,
) -> None:
    """Serve until stopped, with one worker process per CPU unless told otherwise. Blocks; call it in the main thread.

    `handler(conn, addr)` is called in a worker for each connection: `conn` a connected, blocking `socket.socket`,
    `addr` the client's address as `socket.accept` gives it. Or it is `async def handler(reader, writer)`, with
    asyncio's streams. When it returns or raises, the connection is closed, unless it was detached.

    Each option that is not given here is taken from its variable (`PYFANOUT_WORKERS`, ...), else from its default. They
    are explained, with units, defaults and reasons, in `pyfanout.Config`. The hooks are called in each worker with
    its `Worker` (slot, pid, generation): before its first connection, and after its last unless it is killed.

    SIGTERM stops gracefully, SIGINT and SIGQUIT at once; then it returns, with the signal handlers that it found.
    On failure it prints one line and raises SystemExit as the command does: 1 for a bad option or address, 3 if no
    worker can start, 4 if the application cannot be loaded. `pyfanout.serve.run` raises the exceptions themselves.
    """
    arguments = dict(locals())
    del arguments["handler"]
    try:
        kind = kind_of(handler)
        run(Config.resolve(arguments, os.environ), lambda: handler, [kind])
    except FanoutError as error:
        print(f"pyfanout: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from error


def run(config: Config, load: Callable[[], Handler], kinds: Iterable[Kind] = Kind) -> None:
    """Serve what `load`, called in each worker, returns, which is of one of `kinds`. Returns when stopped.

    Raises ConfigError (an address cannot be used, this is not the main thread), WorkerError, LoadError, CoreError.
    """
    if threading.current_thread() is not threading.main_thread():
        raise ConfigError("serve must be called in the main thread: it handles signals and forks")
    if config.ready_fd is not None:
        try:
            os.fstat(config.ready_fd)
        except OSError as error:  # later the number would be one of our own descriptors
            raise ConfigError(f"ready_fd: {config.ready_fd} is not an open descriptor") from error
    _set_up_logging(config.log_level)
    for kind in kinds:
        server_module(kind)  # imported once, here, and not after each fork
    pidfile = PidFile(config.pidfile) if config.pidfile else None
    endpoints = open_listeners(config.bind, backlog=config.backlog, nodelay=config.nodelay)
    try:
        if pidfile:
            pidfile.create()
        Supervisor(config, endpoints, functools.partial(main, config, load)).run()
    finally:
        if pidfile:
            pidfile.remove()
        for endpoint in endpoints:
            endpoint.close()


def _set_up_logging(level: str) -> None:
    """To stderr, unless the application has said where log lines go."""
    log = logging.getLogger("pyfanout")
    log.setLevel(level.upper())
    if not log.hasHandlers():
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter(LOG_FORMAT))
        log.addHandler(handler)
