"""Where the threads of a blocking worker get their connections from, if a client must be greeted before it is served.

A thread greets the client that it has taken, as long as that takes only a moment. Slower clients are left to one
greeting thread, and go to the first serving thread that is free when their greeting is complete.
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

from pyfanout.worker.blocking import GREETED
from pyfanout.worker.connection import Address, Connection
from pyfanout.worker.epoll import epoll

if TYPE_CHECKING:
    from pyfanout.core import Receiver
    from pyfanout.worker.greeting import Greeted, Greeter
    from pyfanout.worker.worker import Worker

log = logging.getLogger("pyfanout.worker")

PATIENCE_S = 0.02
"""Seconds that a thread waits for the client it has just taken, before it takes another. A worker whose threads take
more connections than they can serve at once makes clients wait behind a slow one, beside another worker that is idle.
Halved with each client that takes longer, so that many slow ones do not block the threads; doubled with each that does
not."""

IMPATIENCE_S = 0.001
"""The least patience: from 0 it could not be doubled."""

LOOK_S = 0.25
"""Seconds between two checks whether their time is over, or the worker drains, while clients are being greeted."""


class Intake:
    """Of one worker."""

    def __init__(self, worker: Worker, channel_fd: int, greeter: Greeter) -> None:
        self._worker = worker
        self._channel_fd = channel_fd
        self._greeter = greeter
        self._lock = allocate_lock()
        """The greeter has one caller at a time."""
        self._running = False
        """Whether the greeting thread runs."""
        self._patience_s = PATIENCE_S
        self._greeted: deque[Greeted] = deque()
        self._tokens = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK | os.EFD_SEMAPHORE)
        """Counts `_greeted`: each wakes one thread."""
        self._over = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        """Readable for ever once no more is taken."""
        self._news = epoll()
        self._news.register(self._tokens, EPOLLIN)
        self._news.register(self._over, EPOLLIN)
        self._line_up()

    def take(self, receiver: Receiver) -> int:
        """As `Receiver.take`; or GREETED: then `next` returns a connection, unless another thread has taken it."""
        rc = GREETED if self._greeted else receiver.take_now()
        while rc == -errno.EAGAIN:
            self._news.poll(None, 1)
            if not self._greeted:  # another thread took it before it was counted
                self._uncount()
            rc = GREETED if self._greeted else receiver.take_now()
        if rc == 1:
            self._line_up()
        return rc

    def next(self, receiver: Receiver) -> Greeted | None:
        """A connection that has been greeted."""
        self._uncount()
        try:
            greeted = self._greeted.popleft()
        except IndexError:
            return None
        receiver.resume()
        return greeted

    def greet(self, conn: Connection, address: Address) -> Greeted | None:
        """Greet a connection that has just come. None: it takes longer, or was closed."""
        result = self._greeter.greet(conn, address, self._patience_s)
        if result is None or isinstance(result, tuple):
            self._patience_s = min(self._patience_s * 2, PATIENCE_S)
            return result
        self._patience_s = max(self._patience_s / 2, IMPATIENCE_S)
        with self._lock:
            self._greeter.wait(result)
            if not self._running:
                self._running = True
                try:
                    self._worker.background.start(self._greet_all)
                except RuntimeError as error:  # no thread can be had
                    self._running = False
                    self._greeter.refuse_all(error)
        return None

    def last(self, receiver: Receiver) -> Greeted | None:
        """When no more is taken: a connection whose greeting was still under way. None: there are none left."""
        self._greeter.hurry()
        news: Any = poll()
        news.register(self._tokens, POLLIN)
        while True:
            running = self._running
            greeted = self.next(receiver)
            if greeted is not None or not running:
                return greeted
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

    def _greet_all(self) -> None:
        """Until no connection waits."""
        background = self._worker.background
        news = background.poll()
        news.register(self._greeter.fileno(), POLLIN)
        while True:
            with self._lock:
                while greeted := self._greeter.arrived():
                    self._greeted.append(greeted)
                    os.eventfd_write(self._tokens, 1)
                due_s = self._greeter.expire()
                if due_s is None:
                    self._running = False
                    return
            background.wait(news, min(due_s, LOOK_S))
