"""Signals to the master: which one asks for what; install, restore, forget in the child.

A handler does nothing. The interpreter writes the signal's number to a socket that the core watches (`set_wakeup_fd`),
so a signal is news like all other. Not signalfd: a mask set after the application started threads does not cover them.
"""

from __future__ import annotations

import signal
import socket
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


def _do_nothing(_signum: int, _frame: FrameType | None) -> None:
    """The wakeup descriptor has told already."""


class Signals:
    """The master's handlers. `with Signals() as signals:` puts back what it found. In the main thread only."""

    def __init__(self) -> None:
        self._found: dict[signal.Signals, Any] = {}
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        self._found_wakeup_fd = -1

    def __enter__(self) -> Signals:
        try:
            self._found_wakeup_fd = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        except ValueError:  # not the main thread
            self.close()
            raise
        for signum in REQUESTS:
            self._found[signum] = signal.signal(signum, _do_nothing)
        for signum in _RESET_IN_MASTER:
            self._found[signum] = signal.signal(signum, signal.SIG_DFL)
        return self

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._found.items():
            # None: a handler that C code installed, which Python cannot put back.
            signal.signal(signum, signal.SIG_DFL if handler is None else handler)
        signal.set_wakeup_fd(self._found_wakeup_fd)
        self.close()

    def fileno(self) -> int:
        """Readable when a signal came."""
        return self._reader.fileno()

    def read(self) -> list[Request]:
        """What was asked for since the last call, oldest first."""
        try:
            numbers = self._reader.recv(4096)
        except OSError:  # there is nothing; or no memory for it now, and it is told of again
            return []
        return [REQUESTS[signal.Signals(n)] for n in numbers if n in REQUESTS]

    def forget(self) -> None:
        """In the child, with signals blocked: a signal to it must not reach the master's loop."""
        signal.set_wakeup_fd(-1)
        for signum in self._found:
            signal.signal(signum, signal.SIG_DFL)
        self.close()

    def close(self) -> None:
        self._reader.close()
        self._writer.close()
