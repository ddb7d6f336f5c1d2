"""Signals to the master: which one asks for what, at which time of its life; install, restore, forget in a child.

A handler records the signal and makes a socket readable that the core watches, so a signal is an event like any other.
That socket is also the interpreter's wake-up descriptor (`set_wakeup_fd`): it ends a wait that begins in the instant
between the signal and its handler. The wake-up descriptor alone is not enough, because there is only one and a
program's own loop may have taken it. Not signalfd: a mask set after the application started threads does not cover
them.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import time
import weakref
from collections.abc import Callable
from enum import Enum, auto
from types import FrameType
from typing import Any

from pyfanout.host import sigmask, stdio

log = logging.getLogger("pyfanout.master")


class Request(Enum):
    """What a signal asks the master for."""

    STOP = "graceful stop"
    STOP_NOW = "fast stop"
    RELOAD = "rolling reload"
    MORE = "one more worker"
    FEWER = "one worker less"
    REOPEN = "reopen the log files"
    UPGRADE = "hand over to a new master"


_ALWAYS = {
    signal.SIGTERM: Request.STOP,
    signal.SIGINT: Request.STOP_NOW,
    signal.SIGQUIT: Request.STOP_NOW,
    signal.SIGHUP: Request.RELOAD,
    signal.SIGTTIN: Request.MORE,
    signal.SIGTTOU: Request.FEWER,
}
_IF_FREE = {signal.SIGUSR1: Request.REOPEN, signal.SIGUSR2: Request.UPGRADE}
"""Handled unless the program handles or ignores them."""

_ASKS = {**_ALWAYS, **_IF_FREE}

_OTHERS_AFFAIR = {
    # Faults of the process itself: a core shows the reason.
    *(signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGABRT, signal.SIGTRAP, signal.SIGSYS),
    # A write that fails: Python ignores them, unless the program wants to die of them.
    *(signal.SIGPIPE, signal.SIGXFSZ),
    # By default these do not kill, or cannot be handled.
    *(signal.SIGCHLD, signal.SIGCONT, signal.SIGURG, signal.SIGWINCH, signal.SIGTSTP, signal.SIGKILL, signal.SIGSTOP),
}
DEADLY = set(signal.valid_signals()) - _OTHERS_AFFAIR - set(_ASKS)
"""Signals whose default action kills a process: timers (a shell's `alarm` before its `exec`), limits, a power failure
(lxc stops a container by SIGPWR), real-time signals. The master must not die without a log line, and leave its pidfile
and its workers' clients: if the program has no handler either, each asks for a graceful stop."""

_RESET_IN_MASTER = (signal.SIGCHLD,)
"""If it were ignored, the kernel would reap our children and no exit status would be left."""

SAME_NS = 1_000_000_000
"""A fast stop that is asked for again within this time is the same one: a terminal sends ^C to all its processes, and a
wrapper among them passes it on. A user who wants to insist does not press it again so soon."""

# Not `signal.signal`, which makes enum members of its arguments and results: there are fifty, in each child.
_set: Callable[[int, Any], Any] = getattr(signal.signal, "__wrapped__", signal.signal)
_get: Callable[[int], Any] = getattr(signal.getsignal, "__wrapped__", signal.getsignal)


class _Time(Enum):
    """The time of a master's life."""

    BEFORE = auto()
    """It loads the application: there is nothing to clean up, and no loop reads requests."""
    WHILE = auto()
    AFTER = auto()
    """Everything is closed; the process is about to end."""


class Signals:
    """The master's handlers. `with Signals() as signals:` restores what it found. In the main thread only.

    A process that has no other purpose (`whole_process`) never restores them: a service manager and a wrapper may each
    stop it, and the second signal, which comes while the interpreter ends, must not make its exit code that of a crash.
    """

    def __init__(self, *, whole_process: bool = False) -> None:
        self.shared = False
        """Whether a loop of the program waits for this descriptor, and for its own."""
        self.exit_code = 0
        """The exit code of the whole process."""
        self._whole_process = whole_process
        self._time = _Time.BEFORE
        self._found: dict[int, Any] = {}
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        self._others_fd = -1
        """The wake-up descriptor of another loop in this program; -1: there is none."""
        self._heard: list[tuple[int, int]] = []
        """Signals and their times: not read yet."""
        self._stop_now_ns = -SAME_NS
        """When a fast stop was asked for."""

    def __enter__(self) -> Signals:
        try:
            self.hold()
        except ValueError:  # not the main thread
            self.close()
            raise
        for signum in (*_ASKS, *DEADLY):
            found = signal.getsignal(signum)
            if signum in _ALWAYS or found is signal.SIG_DFL:
                self._found[signum] = found  # before its first signal
                _set(signum, self._on_signal)
        for signum in _RESET_IN_MASTER:
            self._found[signum] = _set(signum, signal.SIG_DFL)
        if self._whole_process:  # its parent may have had them blocked, which a child and its programs inherit
            sigmask.restore(())
        _installed.add(self)
        return self

    def __exit__(self, *_: object) -> None:
        _installed.discard(self)
        self._put_back()
        self.hold()
        self._pass_on()
        signal.set_wakeup_fd(-1)
        with contextlib.suppress(OSError):
            signal.set_wakeup_fd(self._others_fd)
        self.close()

    def _put_back(self) -> None:
        """Restore the handlers that the program has not replaced meanwhile."""
        for signum, handler in self._found.items():
            if signum in _RESET_IN_MASTER or _get(signum) == self._on_signal:
                # None: a handler that C code installed, which Python cannot put back.
                _set(signum, signal.SIG_DFL if handler is None else handler)

    # ---- the times of a life --------------------------------------------------------------------------------------

    def begin(self) -> None:
        """From now on there is something to clean up, and `read` returns the requests."""
        self._time = _Time.WHILE

    def end(self) -> None:
        """From now on only a fast stop has an effect: it ends the process."""
        self._time = _Time.AFTER

    def ignore(self) -> None:
        """For the last moments of the interpreter, which resets each signal with a handler to its default."""
        for signum in self._found:
            _set(signum, signal.SIG_IGN)
        signal.set_wakeup_fd(-1)
        self.close()

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        match self._time:
            case _Time.BEFORE:
                self._on_signal_before(signum, frame)
            case _Time.WHILE:
                self._heard.append((signum, time.monotonic_ns()))
                with contextlib.suppress(OSError):  # it is full, and so it is readable
                    self._writer.send(b"\0")
            case _Time.AFTER if self._request(signum, time.monotonic_ns()) is Request.STOP_NOW:
                os._exit(self.exit_code)  # a thread or an exit function of the application hangs

    def _on_signal_before(self, signum: int, frame: FrameType | None) -> None:
        """While the application is imported, which would not know what to do with an exception from a handler."""
        found = self._found[signum]
        if callable(found) and not self._whole_process:
            found(signum, frame)
        elif found is not signal.SIG_IGN and self._request(signum, 0) in (Request.STOP, Request.STOP_NOW):
            stdio.flush()
            os._exit(self.exit_code)

    # ---- the wake-up descriptor -----------------------------------------------------------------------------------

    def hold(self) -> None:
        """Before a wait: make this the wake-up descriptor, or, if it is `shared`, that of the loop that waits."""
        ours = self._writer.fileno()
        found = signal.set_wakeup_fd(ours, warn_on_full_buffer=False)
        if found != ours:
            self._others_fd = found
        if self.shared and self._others_fd != -1:
            with contextlib.suppress(OSError):  # that loop has closed its own
                signal.set_wakeup_fd(self._others_fd)

    def _pass_on(self) -> None:
        """Empty this descriptor, and pass the signals on to the program's loop, which knows them by these numbers."""
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

    @property
    def heard(self) -> bool:
        """Whether `read` has requests to return."""
        return bool(self._heard)

    def read(self) -> list[Request]:
        """What was asked for since the last call, oldest first."""
        self.hold()
        self._pass_on()
        heard, self._heard = self._heard, []
        for signum, _ in heard:
            if signum in DEADLY:
                log.info("%s: the master stops, as by SIGTERM", name_of(signum))
        return [request for signum, when_ns in heard if (request := self._request(signum, when_ns))]

    def _request(self, signum: int, when_ns: int) -> Request | None:
        request = Request.STOP if signum in DEADLY else _ASKS[signal.Signals(signum)]
        if request is Request.STOP_NOW:
            if when_ns < self._stop_now_ns + SAME_NS:
                return None
            self._stop_now_ns = when_ns
        return request

    # ---- in a child -----------------------------------------------------------------------------------------------

    def forget(self) -> None:
        """In a worker, with signals blocked: a signal to it must not reach the master's loop, nor a handler of the
        program's."""
        for signum in self._found:
            if _get(signum) != signal.SIG_DFL:
                _set(signum, signal.SIG_DFL)

    def leave_to_child(self) -> None:
        """In any child, before it does anything else: it has the program's handlers."""
        signal.set_wakeup_fd(-1)
        self._put_back()
        self.close()

    def close(self) -> None:
        self._reader.close()
        self._writer.close()


def name_of(signum: int) -> str:
    try:
        return signal.Signals(signum).name
    except ValueError:  # a real-time signal has no name
        return f"signal {signum}"


_installed: weakref.WeakSet[Signals] = weakref.WeakSet()


def _leave_to_child() -> None:
    for each in list(_installed):
        each.leave_to_child()
        _installed.discard(each)


os.register_at_fork(after_in_child=_leave_to_child)
