"""Where the threads of a blocking worker get their connections from, if these begin with a preamble.

A thread reads the preamble of the connection that it has taken, as long as that takes only a moment. Slower connections
are left to one thread, and go to the first serving thread that is free when their preamble is complete.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
from _thread import allocate_lock
from collections import deque
from select import EPOLLEXCLUSIVE, EPOLLIN, POLLIN, poll
from typing import TYPE_CHECKING, Any

from pyfanout.worker.connection import Address, Connection
from pyfanout.worker.epoll import epoll

if TYPE_CHECKING:
    from pyfanout.core import Receiver
    from pyfanout.worker.preamble import Admitted, Preambles
    from pyfanout.worker.worker import WorkerProcess

log = logging.getLogger("pyfanout.worker")

PATIENCE_S = 0.02
"""Seconds that a thread waits for the client it has just taken, before it takes another. A worker whose threads take
more connections than they can serve at once makes clients wait behind a slow one, beside another worker that is idle.
Halved with each client that takes longer, so that many slow ones do not block the threads; doubled with each that does
not."""

IMPATIENCE_S = 0.001
"""The least patience: from 0 it could not be doubled."""

LOOK_S = 0.25
"""Seconds between two checks whether their time is over, or the worker drains, while preambles are under way."""


class Intake:
    """Of one worker."""

    ADMITTED = 2
    """A result of `take` besides those of `Receiver.take`: a connection has done its preamble."""

    def __init__(self, worker: WorkerProcess, channel_fd: int, preambles: Preambles) -> None:
        self._worker = worker
        self._channel_fd = channel_fd
        self._preambles = preambles
        self._lock = allocate_lock()
        """The preambles has one caller at a time."""
        self._running = False
        """Whether the thread runs that reads preambles."""
        self._patience_s = PATIENCE_S
        self._admitted: deque[Admitted] = deque()
        self._tokens = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK | os.EFD_SEMAPHORE)
        """Counts `_admitted`: each wakes one thread."""
        self._over = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        """Readable for ever once no more is taken."""
        self._news = epoll()
        self._news.register(self._tokens, EPOLLIN)
        self._news.register(self._over, EPOLLIN)
        self._line_up()

    def take(self, receiver: Receiver) -> int:
        """As `Receiver.take`; or ADMITTED: then `next` returns a connection, unless another thread has taken it."""
        rc = self.ADMITTED if self._admitted else receiver.take_now()
        while rc == -errno.EAGAIN:
            self._news.poll(None, 1)
            if not self._admitted:  # another thread took it before it was counted
                self._uncount()
            rc = self.ADMITTED if self._admitted else receiver.take_now()
        if rc == 1:
            self._line_up()
        return rc

    def next(self, receiver: Receiver) -> Admitted | None:
        """A connection that has done its preamble."""
        self._uncount()
        try:
            admitted = self._admitted.popleft()
        except IndexError:
            return None
        receiver.resume()
        return admitted

    def admit(self, conn: Connection, address: Address) -> Admitted | None:
        """Read the preamble of a connection that has just come. None: it takes longer, or was closed."""
        result = self._preambles.begin(conn, address, self._patience_s)
        if result is None or isinstance(result, tuple):
            self._patience_s = min(self._patience_s * 2, PATIENCE_S)
            return result
        self._patience_s = max(self._patience_s / 2, IMPATIENCE_S)
        with self._lock:
            self._preambles.wait(result)
            if not self._running:
                self._running = True
                try:
                    self._worker.background.start(self._read_preambles)
                except RuntimeError as error:  # no thread can be had
                    self._running = False
                    self._preambles.refuse_all(error)
        return None

    def last(self, receiver: Receiver) -> Admitted | None:
        """When no more is taken: a connection whose preamble was still under way. None: there are none left."""
        self._preambles.hurry()
        news: Any = poll()
        news.register(self._tokens, POLLIN)
        while True:
            running = self._running
            admitted = self.next(receiver)
            if admitted is not None or not running:
                return admitted
            news.poll(LOOK_S * 1000)

    def cancel(self) -> None:
        """No thread waits for connections any more. May be called in a signal handler."""
        os.eventfd_write(self._over, 1)

    def _uncount(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._tokens)

    def _line_up(self) -> None:
        """Register behind the other workers: the kernel wakes the exclusive waiter that was registered first. Another
        thread may do the same at once."""
        with contextlib.suppress(OSError):
            self._news.unregister(self._channel_fd)
        with contextlib.suppress(FileExistsError):
            self._news.register(self._channel_fd, EPOLLIN | EPOLLEXCLUSIVE)

    def _read_preambles(self) -> None:
        """Until no connection waits."""
        background = self._worker.background
        news = background.poll()
        news.register(self._preambles.fileno(), POLLIN)
        while True:
            with self._lock:
                while admitted := self._preambles.arrived():
                    self._admitted.append(admitted)
                    os.eventfd_write(self._tokens, 1)
                due_s = self._preambles.expire()
                if due_s is None:
                    self._running = False
                    return
            background.wait(news, min(due_s, LOOK_S))
