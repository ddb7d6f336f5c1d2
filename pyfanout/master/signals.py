"""Signals to the master: which one asks for what; install, restore, forget in the child.

A handler writes down what came, and makes a socket readable that the core watches, so a signal is news like all other.
That socket is the interpreter's wake-up descriptor, too (`set_wakeup_fd`): it ends a wait that begins in the instant
between the signal and its handler. Not by that alone: a program's own loop takes the one place there is for it. Not
signalfd: a mask set after the application started threads does not cover them.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from enum import Enum
from types import FrameType
from typing import Any


class Request(Enum):
    """What a signal asks the master for."""

    STOP = "graceful stop"
    STOP_NOW = "fast stop"
    RELOAD = "rolling reload"
    MORE = "one more worker"
    FEWER = "one worker less"


REQUESTS = {
    signal.SIGTERM: Request.STOP,
    signal.SIGINT: Request.STOP_NOW,
    signal.SIGQUIT: Request.STOP_NOW,
    signal.SIGHUP: Request.RELOAD,
    signal.SIGTTIN: Request.MORE,
    signal.SIGTTOU: Request.FEWER,
}

_RESET_IN_MASTER = (signal.SIGCHLD,)
"""If it were ignored, the kernel would reap our children and no exit status would be left."""

SAME_NS = 1_000_000_000
"""A fast stop that is asked for again within this time is the same one: a terminal sends ^C to all its processes, and a
wrapper among them passes it on. Nobody who wants to insist presses it again so soon."""


class Signals:
    """The master's handlers. `with Signals() as signals:` puts back what it found. In the main thread only."""

    def __init__(self) -> None:
        self.shared = False
        """A loop of the program's waits for our descriptor, and for its own."""
        self._found: dict[signal.Signals, Any] = {}
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        self._others_fd = -1
        """The wake-up descriptor of somebody else in this program; -1: there is none."""
        self._heard: list[tuple[int, int]] = []
        """Signal, and when: not read yet."""
        self._stop_now_ns = -SAME_NS
        """When a fast stop was asked for."""

    def __enter__(self) -> Signals:
        try:
            self.hold()
        except ValueError:  # not the main thread
            self.close()
            raise
        for signum in REQUESTS:
            self._found[signum] = signal.signal(signum, self._hear)
        for signum in _RESET_IN_MASTER:
            self._found[signum] = signal.signal(signum, signal.SIG_DFL)
        return self

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._found.items():
            # None: a handler that C code installed, which Python cannot put back.
            signal.signal(signum, signal.SIG_DFL if handler is None else handler)
        self.hold()
        self._pass_on()
        signal.set_wakeup_fd(-1)
        with contextlib.suppress(OSError):
            signal.set_wakeup_fd(self._others_fd)
        self.close()

    def _hear(self, signum: int, _frame: FrameType | None) -> None:
        self._heard.append((signum, time.monotonic_ns()))
        with contextlib.suppress(OSError):  # it is full, and so it is readable
            self._writer.send(b"\0")

    # ---- the wake-up descriptor -----------------------------------------------------------------------------------

    def hold(self) -> None:
        """Before a wait: the wake-up descriptor is ours, or, if it is `shared`, of the loop that waits."""
        ours = self._writer.fileno()
        found = signal.set_wakeup_fd(ours, warn_on_full_buffer=False)
        if found != ours:
            self._others_fd = found
        if self.shared and self._others_fd != -1:
            with contextlib.suppress(OSError):  # they have closed theirs
                signal.set_wakeup_fd(self._others_fd)

    def _pass_on(self) -> None:
        """Empty our descriptor. What came is for their loop, too, which knows its signals by these numbers."""
        numbers = b""
        with contextlib.suppress(OSError):  # there is nothing; or no memory for it now, and it is told of again
            numbers = self._reader.recv(4096).replace(b"\0", b"")
        if numbers and self._others_fd != -1:
            with contextlib.suppress(OSError):
                os.write(self._others_fd, numbers)

    # ---- what was asked for ---------------------------------------------------------------------------------------

    def fileno(self) -> int:
        """Readable when a signal came."""
        return self._reader.fileno()

    def read(self) -> list[Request]:
        """What was asked for since the last call, oldest first."""
        self.hold()
        self._pass_on()
        heard, self._heard = self._heard, []
        return [request for signum, when_ns in heard if (request := self._request(signum, when_ns))]

    def _request(self, signum: int, when_ns: int) -> Request | None:
        request = REQUESTS[signal.Signals(signum)]
        if request is Request.STOP_NOW:
            if when_ns < self._stop_now_ns + SAME_NS:
                return None
            self._stop_now_ns = when_ns
        return request

    # ---- in the child ---------------------------------------------------------------------------------------------

    def forget(self) -> None:
        """With signals blocked: a signal to it must not reach the master's loop."""
        signal.set_wakeup_fd(-1)
        for signum in self._found:
            signal.signal(signum, signal.SIG_DFL)
        self.close()

    def close(self) -> None:
        self._reader.close()
        self._writer.close()
