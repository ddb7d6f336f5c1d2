"""`ServingWorker`: what a server sees of the worker that it serves in."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from pyfanout.worker.face import Worker

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable

    from pyfanout.config import Config
    from pyfanout.worker.listener import Listener
    from pyfanout.worker.public import Public
    from pyfanout.worker.worker import WorkerProcess


class ServingWorker(Worker):
    """A `pyfanout.Worker` for what serves in it: a `pyfanout.embed.Runner`, or a program that has joined a
    `Dispatcher`."""

    __slots__ = ()
    _inside: WorkerProcess

    def __init__(self, inside: WorkerProcess) -> None:
        super().__init__(inside)

    @property
    def config(self) -> Config:
        """The options."""
        return self._inside.config

    @property
    def public(self) -> Public:
        """What clients connect to; `public.listeners` has an entry for each `conn.listener`."""
        return self._inside.public

    @property
    def leaves(self) -> bool:
        """Whether an answer shall say that its connection ends: the worker drains, or the whole server stops."""
        return self._inside.leaves

    @property
    def has_siblings(self) -> bool:
        """Whether there are to be two workers or more: `wsgi.multiprocess`."""
        return self._inside.has_siblings

    def call_hook(self, hook: Callable[[Worker], object] | None) -> None:
        """Call `config.on_worker_start` or `config.on_worker_exit`, if there is one. Raises ConfigError for a
        coroutine function."""
        self._inside.call_hook(hook)

    def listener(
        self,
        *,
        blocking: bool = True,
        greedy: bool | None = None,
        tls: bool | ssl.SSLContext = False,
        counted: bool = True,
    ) -> Listener:
        """What the server accepts from; call it once. Raises ConfigError.

        `blocking`: whether the connections shall be. `greedy`: several are taken at once, for a server that accepts
        until there is nothing; by default one with a loop, whose connections do not block. `tls`: if the options ask
        for TLS, a connection that `accept` returns has done its handshake, and is an ssl.SSLSocket; else the server
        does the handshake, with `tls_context`. Or the context of a server that has options for TLS of its own.
        `counted`: `max_requests` counts the connections; else the server calls what `counter("request")` returns for
        each request.
        """
        return self._inside.listener(blocking=blocking, greedy=greedy, tls=tls, counted=counted)

    def tls_context(self) -> ssl.SSLContext | None:
        """What TLS is spoken with; None: it is not. Raises ConfigError."""
        return self._inside.tls_context()

    def counter(self, unit: str) -> Callable[[], None] | None:
        """What is to be called, from any thread, for each `unit` of `max_requests`: "request" if the server shows its
        requests, else "connection". None: nothing is counted."""
        return self._inside.counter(unit)

    @property
    def on_drain(self) -> Callable[[], None] | None:
        """Makes the server take no more; set it before `ready`. It must not block, may be called again, and may run in
        a signal handler. `Listener.quiet` comes first in it."""
        return self._inside.on_drain

    @on_drain.setter
    def on_drain(self, drain: Callable[[], None] | None) -> None:
        self._inside.on_drain = drain

    def ready(self) -> None:
        """The server is about to accept. The master learns of it when it first does; if it never does, the worker
        ends, with a line that says so, when `boot_timeout` is nearly over."""
        self._inside.ready()

    def drain(self) -> None:
        """Take no more connections, finish what was begun, leave. May be called again, and from a signal handler."""
        self._inside.drain()


def inside(worker: Worker) -> WorkerProcess:
    """What is behind it, for the servers that come with pyfanout."""
    return cast("WorkerProcess", worker._inside)
