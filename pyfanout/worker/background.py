"""The threads that a worker has for itself, beside those that serve. None of them exists while the process forks.

A child has only the thread that forked: a lock that another one held at that moment stays held for ever. Hence os.fork
warns, from Python 3.12 on, in a process with several threads. The application shall not get that warning for threads
which are not its own. So these end before a fork, and others go on with their tasks after it.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import sys

# By name: gevent removes these from their modules, or replaces them.
from _thread import RLock, get_ident, get_native_id, interrupt_main, start_new_thread
from collections.abc import Callable
from select import POLLIN, poll
from time import monotonic, sleep
from typing import Any

from pyfanout.host import sigmask
from pyfanout.link.messages import WAKE

log = logging.getLogger("pyfanout.worker")

Task = Callable[[], None]
"""Waits only in `Background.wait` and `Background.sleep`. After a fork it is called again, from its beginning."""

COUNTS_LATE = (3, 12) <= sys.version_info < (3, 13, 10) or (3, 14) <= sys.version_info < (3, 14, 1)
"""os.fork may count the threads after the functions that are called in the parent, so that these must start none."""

PATIENCE_S = 1.0
"""Seconds that a fork waits for the threads to end. One of them may wait for a lock that the forking thread holds."""

LOOK_S = 0.0002
"""Between two looks whether they have ended. It takes 0.1 ms."""


class Background:
    """The threads of one worker."""

    def __init__(self, can_interrupt: Callable[[], bool]) -> None:
        """`can_interrupt`: whether `resume` is called if Python's handler of WAKE is."""
        self._can_interrupt = can_interrupt
        self._main = get_ident()
        self._lock = RLock()  # `resume` may be called in a signal handler
        self._starting = 0
        self._tids: set[int] = set()
        """Threads that may exist."""
        self._pausing = False
        self._wake = -1
        """An eventfd, readable while they shall end; -1 before `open`, and in a child."""
        self.stopped: list[Task] = []
        """Tasks that wait for `resume`."""
        self.after_fork: Callable[[], object] = (
            # In C: Python's handler runs when os.fork has returned, unless a function in Python that was registered
            # later is called before.
            functools.partial(interrupt_main, WAKE) if COUNTS_LATE else self.resume
        )

    def open(self) -> None:
        """Before the first task; may be called again. Raises OSError if no descriptor is free."""
        if self._wake < 0:
            self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def start(self, task: Task) -> None:
        """Run `task` on a thread of its own, with all signals blocked. Raises RuntimeError if none can be had."""
        if self._wake < 0:
            raise RuntimeError("can't start a thread in a child of the worker")
        with self._lock:
            self._forget_ended()
            start_new_thread(self._run, (task,))
            self._starting += 1

    def poll(self) -> Any:
        """A poll object for `wait`. It needs no descriptor."""
        news = poll()
        news.register(self._wake, POLLIN)
        return news

    def wait(self, news: Any, seconds: float | None) -> dict[int, int]:
        """For a task: what `news` has, by descriptor; None: without a limit. Does not return if the process forks."""
        ready = dict(news.poll(None if seconds is None else seconds * 1000))
        if self._pausing:
            raise _Forks
        return ready

    def sleep(self, seconds: float) -> None:
        """For a task. Does not return if the process forks."""
        self.wait(self.poll(), max(seconds, 0))

    def pause(self) -> None:
        """Before a fork on the main thread: none of these threads exists afterwards. Where another thread forks, the
        application has several of its own."""
        if not (self._tids or self._starting) or get_ident() != self._main:
            return
        if COUNTS_LATE and not self._can_interrupt():
            return
        self._pausing = True
        os.eventfd_write(self._wake, 1)
        end_s = monotonic() + PATIENCE_S
        # Not only joined: the kernel counts a thread until it has quite gone.
        while self._exist() and monotonic() < end_s:
            sleep(LOOK_S)

    def resume(self) -> None:
        """After a fork. May be called at any time, and in a signal handler."""
        if not (self._pausing or self.stopped):
            return
        with self._lock:
            self._pausing = False
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self._wake)
            while self.stopped:
                try:
                    self.start(self.stopped[-1])
                except RuntimeError as error:  # no thread can be had now: at the next call
                    log.error(
                        "a thread of pyfanout's own could not be started after a fork: %s; it is tried again later",
                        error,
                    )
                    break
                self.stopped.pop()

    def disown(self) -> None:
        """In a child, which has none of the threads."""
        self._lock = RLock()  # another thread may have held it
        self._starting, self._pausing = 0, False
        self._tids.clear()
        self.stopped.clear()
        if self._wake >= 0:  # else it is a child of such a child
            os.close(self._wake)
            self._wake = -1

    def _run(self, task: Task) -> None:
        sigmask.block_all()  # they are the main thread's
        with self._lock:
            self._starting -= 1
            self._tids.add(get_native_id())
        while True:
            try:
                task()
            except _Forks:
                with self._lock:
                    if not self._pausing:  # the fork has not waited for it, and is over
                        continue
                    self.stopped.append(task)
            return

    def _exist(self) -> bool:
        with self._lock:
            self._forget_ended()
            return bool(self._tids or self._starting)

    def _forget_ended(self) -> None:
        self._tids = {tid for tid in self._tids if os.path.exists(f"/proc/self/task/{tid}")}


class _Forks(BaseException):
    """Ends a task."""
