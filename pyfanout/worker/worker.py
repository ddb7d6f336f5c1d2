"""The worker that this process is: what its servers, its hooks and its signals ask and tell it.

Owns the worker's descriptors: its channel and its end of the link to the master. `main` makes it, and has its life.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import logging
import math
import mmap
import os
import signal
import socket
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from pyfanout import exits
from pyfanout.config import Config
from pyfanout.core import SHORTAGE_S, WorkerEnds
from pyfanout.errors import ConfigError, LoadError
from pyfanout.failure import failure_of
from pyfanout.host.log import counted, has_no_way
from pyfanout.limits import OpenFiles, of_connections
from pyfanout.link.link import Link
from pyfanout.link.messages import (
    Cut,
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
from pyfanout.worker import child, connection
from pyfanout.worker.acceptance import await_acceptance
from pyfanout.worker.background import Background
from pyfanout.worker.face import Worker
from pyfanout.worker.farewell import Farewell
from pyfanout.worker.listener import Listener
from pyfanout.worker.public import Public
from pyfanout.worker.quota import Quota
from pyfanout.worker.signals import Signals
from pyfanout.worker.threads import Watch

if TYPE_CHECKING:
    import asyncio
    import ssl

log = logging.getLogger("pyfanout.worker")

LAST_WORDS_S = 1.0
"""How long the end of the process may wait until the master has been sent all messages."""

SHORTEST_END_S = 2.0
"""The least time for exit functions, however short `drain_timeout` is: as long as the master waits after a SIGQUIT."""

NOT_AWAITED = "a hook may be a coroutine function only beside a server on asyncio"

_current: WorkerProcess | None = None


def current_worker() -> Worker | None:
    """The worker that this process is; None in the master, and in a child that a handler forked."""
    return None if _current is None else _current.face


class WorkerProcess:
    """This process, as the rest of pyfanout sees it. Its `face` is what hooks and handlers see."""

    serving = ""
    """What kind of application it is, and which server serves it, for the log."""
    doubt = ""
    """What to say when the handler fails for the first time: it may be no handler."""
    used_runner: asyncio.Runner | None = None
    """Of the loop that the application has used while it was loaded."""
    accepting: Listener | None = None
    """The listener that a server accepts from."""
    _accepts = False
    """The server has accepted, though perhaps there was no connection."""
    _sends_late = False
    """A thread sends what the outbox holds."""
    on_drain: Callable[[], None] | None = None
    """Makes what serves take no more; set by it as soon as it may take."""
    draining = False
    _drain_end_s: float | None = None
    """When the time to drain is over, by `time.monotonic`."""
    stopped = False
    """It was told to stop now. Handlers may catch everything, as wsgiref does: then it stops after them."""
    _stop_is_told = False
    closing = False
    """The server stops, and the worker still serves what comes."""
    finished = False
    """The server has returned: all requests that it had begun are done."""
    forked = False
    """This is a child that the application forked: no worker any more."""

    def __init__(
        self,
        config: Config,
        public: Public,
        slot: int,
        generation: int,
        ends: WorkerEnds,
        control: socket.socket,
        several: mmap.mmap | bytes = b"\1",
        *,
        joined: bool = False,
    ) -> None:
        """`several`: see `has_siblings`. `joined`: it is no child of the master's, but of a program that has a
        Dispatcher."""
        self.face = Worker(self)
        self.slot = slot
        self.generation = generation
        self.pid = os.getpid()
        self.born_s = time.monotonic()
        self.config = config
        self.public = public
        self.ends = ends
        self.link = Link(control)
        self._several = several
        self.joined = joined
        self.most = config.max_connections
        """Connections that the worker may hold at once; 0: any number. See `Listener.limit`."""
        self._short_s = -math.inf
        """When `short_of` last said something."""
        self._short_of: set[str] = set()
        self.signals = Signals(self)
        self.background = Background(self.signals.looks)
        self.farewell = Farewell(self.background)
        self._open_files = OpenFiles()
        self.watch = Watch()
        """Watches the threads of the server, if it has any."""
        self.on_closing: Callable[[], None] = lambda: None
        """Has idle connections end, since the server stops; set by what serves, if there is something to do."""
        self._quota = Quota(config.max_requests, config.jitter)

    def __repr__(self) -> str:
        return f"<WorkerProcess slot={self.slot} generation={self.generation} pid={self.pid}>"

    @property
    def has_siblings(self) -> bool:
        """Whether there are to be two workers or more, as the master says; it may change. Not the one that is there
        only until it has replaced the other. True for one that has joined a dispatcher."""
        return bool(self._several[0])

    @property
    def leaves(self) -> bool:
        """Whether an answer shall say that its connection ends."""
        return self.draining or self.closing

    # ---- what serves calls -----------------------------------------------------------------------------------

    def channel(self, *, pool: bool) -> int:
        """The descriptor to take connections from: the pool's or our own. The other one is closed."""
        ends = self.ends
        if pool:
            os.close(ends.seat_fd)
            ends.seat_fd = -1
            return ends.pool_fd
        os.close(ends.pool_fd)
        ends.pool_fd = -1
        return ends.seat_fd

    def listener(
        self,
        *,
        blocking: bool = True,
        control: bool = True,
        greedy: bool | None = None,
        tls: bool | ssl.SSLContext = False,
        counted: bool = True,
    ) -> Listener:
        """What a server accepts from, once. `blocking`: whether the connections shall be. `control`: pings are answered
        when the server accepts; else it has `receive` called when `link` is readable, which a server needs that stops
        accepting at times. `greedy`: several are taken at once, for a server that accepts until there is nothing; by
        default one with a loop, whose connections do not block. `tls`: if the options ask for TLS, a connection that
        `accept` returns has done its handshake, and is an ssl.SSLSocket; else the server does the handshake. Or the
        context of a server that has options for TLS of its own. `counted`: `max_requests` counts the connections; else
        the server calls `counter("request")` for each request. Raises ConfigError."""
        preambles = None
        if self.config.proxy_protocol or (tls and (self.config.tls or tls is not True)):
            from pyfanout.worker.preamble import Preambles  # noqa: PLC0415 - most workers need none

            preambles = Preambles.of(self, tls=tls)
        fd, greedy = self.channel(pool=False), not blocking if greedy is None else greedy
        if preambles is None:
            self.accepting = Listener(self, fd, blocking=blocking, control=control, greedy=greedy, counted=counted)
            return self.accepting
        from pyfanout.worker.preamble_listener import PreambleListener  # noqa: PLC0415

        self.accepting = PreambleListener(
            self, fd, preambles, blocking=blocking, control=control, greedy=greedy, counted=counted
        )
        return self.accepting

    def ready(self, *, pool: bool = False, threads: int = 0) -> None:
        """Connections may come: from the pool's channel, or the worker's own. `threads`: so many threads of the worker
        block until they do; 0: none does, and `listener` tells of them. Then the master learns of it when the server
        first accepts; if it never does, the worker ends, with a line that says so, when `boot_timeout` is nearly over.
        """
        if not threads and not self.joined:  # a process that has joined is its parent's affair
            self._open_files.raise_to(of_connections(self.most))
        self.watch.still_ms()  # a first look: a thread that is stuck before the first ping counts, too
        self.signals.hold()

        def accepts() -> None:
            self._accepts = True
            self.send(Ready(pool, threads, 0 if threads else self.most, self.serving))

        if self.accepting is None or self._accepts:
            accepts()
        else:
            await_acceptance(self, self.accepting, accepts)
        if self.draining and self.on_drain is not None:  # it was told while the server began to accept
            self.on_drain()

    def counter(self, unit: str) -> Callable[[], None] | None:
        """What is to be called, from any thread, for each `unit` of `max_requests`: "request" if the server shows its
        requests, else "connection". After the last one the worker asks for a successor, and serves on until the master
        has one that is ready. None: nothing is counted."""
        return self._quota.counter(functools.partial(self._on_quota, unit))

    def _on_quota(self, unit: str) -> None:
        log.info(
            "worker=%d has served %s and asks to be replaced (max_requests)",
            self.slot,
            counted(self._quota.last or 0, unit),
        )
        self.send(WantsSuccessor())

    def ended(self) -> None:
        """A connection that was taken is over: what a `Receipt` reports. The master waits for that if the worker held
        as many as it may."""
        if self.ends.done():
            self.send(HasRoom())

    def drain(self) -> None:
        """Take no more connections, finish what was begun, leave. May be called again, and from a signal handler."""
        if not self.draining:
            self.draining = True
            self._drain_end_s = time.monotonic() + self.config.drain_timeout
            self.send(Retiring())
            if self.on_drain is not None:
                self.on_drain()

    def retire(self) -> None:
        """Serve on until nothing comes to this worker any more, then `drain`. For one that has joined a dispatcher, and
        may not be the only one to leave: if the dispatcher stops, too, what it has accepted is still served. What
        serves calls `receive`. May be called again, and from a signal handler."""
        self.send(WantsSuccessor())

    def send(self, message: Message) -> None:
        """To the master, without waiting. What cannot be sent now is sent by a thread of the worker's own, as soon as
        the system has memory or the master has read: a lost READY or PONG would be the worker's end."""
        if self.forked:
            return
        self.link.send(message)
        if self.link.outbox and not self._sends_late:
            self._sends_late = True
            try:
                self.background.start(self._send_late)
            except RuntimeError:  # no thread can be had: with the next message, or at the end
                self._sends_late = False

    def _send_late(self) -> None:
        while self._sends_late:
            self.background.sleep(AGAIN_NS / 1e9)
            self.link.outbox.flush()
            self._sends_late = False
            self._sends_late = bool(self.link.outbox)  # also what came between the two

    def receive(self) -> bool:
        """Do what the messages of the master ask that are there. False: the master is gone."""
        for message in self.link.receive():
            match message:
                case None:
                    return False
                case Ping(number):
                    self.send(Pong(number, min(self.watch.still_ms(), 2**32 - 1)))
                    self.signals.hold()
                case ServerStopping():
                    self.closing = True
                    self.on_closing()
                case Drain():
                    self.drain()
        return True

    def tls_context(self) -> ssl.SSLContext | None:
        """What TLS is spoken with; None: it is not. Raises ConfigError."""
        if not self.config.tls:
            return None
        from pyfanout.worker.tls import context_of  # noqa: PLC0415 - ssl takes 10 ms to import

        return context_of(self.config)

    def outlive_master(self) -> None:
        """It is gone: what was begun may take `drain_timeout`. For a server whose loop cannot do that later."""
        end_s = time.monotonic() + self.config.drain_timeout

        def wait() -> None:
            self.background.sleep(end_s - time.monotonic())
            self.give_up()

        self.background.start(wait)

    def give_up(self) -> None:
        """The time of one without a master is over: the process ends, unless that is its parent's affair."""
        if self.joined:
            return
        log.error(
            "worker=%d: the master has exited and %g s are over (drain_timeout); the worker exits too",
            self.slot,
            self.config.drain_timeout,
        )
        exits.leave(1)

    def is_short(self, short: bool, of: str = "descriptors or memory") -> None:
        """The worker cannot take connections from its own channel now, for want `of` something, or it can again.
        Meanwhile others get new ones, and those that wait in the channel."""
        before = len(self._short_of)
        (self._short_of.add if short else self._short_of.discard)(of)
        if bool(before) is not bool(self._short_of):
            self.send(Short(short))

    def short_of(self, error: int) -> None:
        """There was no memory to take a connection with, which is tried again. Says so, once a second at most."""
        now_s = time.monotonic()
        if now_s >= self._short_s + 1:
            self._short_s = now_s
            log.error(
                "worker=%d: %s; it cannot take a connection, and tries again in %g s; none is lost",
                self.slot,
                os.strerror(error),
                SHORTAGE_S,
            )

    def stopped_with(self, connections: int) -> None:
        """The worker stops now: the clients of its connections get no whole answer. Logs it once."""
        if connections and not self._stop_is_told:
            self._stop_is_told = True
            plural = "" if connections == 1 else "s"
            log.warning("worker=%d stops, with %d connection%s in progress, cut off", self.slot, connections, plural)
            self.send(Cut(connections))

    def adopt_logger(self, name: str) -> None:
        """The lines of a server go where ours go, unless the application says where, now or later."""
        logger, ours = logging.getLogger(name), logging.getLogger("pyfanout")
        if not logger.hasHandlers() and logger.level == logging.NOTSET:
            logger.setLevel(max(ours.level, logging.WARNING))
        if has_no_way(name):
            logger.handlers += [each for each in ours.handlers if each not in logger.handlers]

    def end(self, code: int) -> None:
        """Does what an interpreter does at its end. After a drain it waits for all that was begun, for what
        is left of `drain_timeout`."""
        at_once = not self.finished or self.signals.quit
        if self.on_drain is not None and not self.draining:  # it was not told to leave: others get new connections
            self.draining = True
            self.send(Retiring())
        self.link.outbox.finish(LAST_WORDS_S)
        self.signals.end(code)
        left_s = self.config.drain_timeout
        if self._drain_end_s is not None:
            left_s = self._drain_end_s - time.monotonic()
        if self.signals.quit:
            left_s = SHORTEST_END_S
        with contextlib.suppress(RuntimeError):  # no thread can be had: then the master ends it
            self.background.start(
                functools.partial(self._end_late, code, time.monotonic(), max(left_s, SHORTEST_END_S))
            )
        exits.run(at_once=at_once)

    def _end_late(self, code: int, since_s: float, timeout_s: float) -> None:
        """The process exits after that time, whatever it is doing."""
        self.background.sleep(since_s + timeout_s - time.monotonic())
        log.error(
            "pid=%d: its threads or atexit functions have not ended after %g s; it exits without them",
            self.pid,
            timeout_s,
        )
        exits.leave(code)

    def leave_to_parent(self) -> None:
        """In a child that the worker forked: its copies of channels are replaced by /dev/null. Connections that wait
        there when master and worker are killed would stay open as long as the child lives."""
        with contextlib.suppress(OSError):  # no descriptor is free for that
            child.silence(fd for fd in (self.ends.pool_fd, self.ends.seat_fd) if fd >= 0)

    def call_hook(self, hook: Callable[[Worker], object] | None) -> None:
        """Raises ConfigError for a coroutine: `aio.call_hook` is for servers on asyncio."""
        if hook is None or self.forked:
            return
        result = hook(self.face)
        if inspect.iscoroutine(result):
            result.close()
            raise ConfigError(NOT_AWAITED)

    def fail(self, stage: Stage, error: BaseException) -> int:
        """Tell the master why there will be no READY; the exit code."""
        failure = failure_of(error, whole=stage is not Stage.LOAD)
        self.send(Failed(stage, failure.reason, failure.trace))
        self.link.outbox.finish(LAST_WORDS_S)
        return LoadError.exit_code if stage is Stage.LOAD else 3


def enlist(worker: WorkerProcess) -> None:
    """From now on this process is that worker, and a child that it forks is none."""
    global _current  # noqa: PLW0603 - one process is one worker
    _current = worker
    connection.part_by(worker.farewell)
    signals = worker.signals
    os.register_at_fork(
        before=signals.before_fork, after_in_parent=signals.after_fork, after_in_child=lambda: _forget(worker)
    )
    os.register_at_fork(after_in_parent=worker.farewell.copied)
    os.register_at_fork(before=worker.background.pause, after_in_parent=worker.background.after_fork)


def _forget(worker: WorkerProcess) -> None:
    """In a child that the application forked: it is no worker, takes nothing, and writes nothing to the scoreboard."""
    global _current  # noqa: PLW0603
    _current = None
    signal.set_wakeup_fd(-1)
    worker.signals.let_go()
    worker.signals.after_fork()
    worker.forked = worker.draining = True
    worker.ends.disown()
    worker.background.disown()
    worker.farewell.disown()
    child.empty_epoll_sets()
    if worker.accepting is not None:
        worker.accepting.disown()
    worker.link.close()
    worker.leave_to_parent()
    if worker.on_drain is not None:
        worker.on_drain()
