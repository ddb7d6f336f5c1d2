"""Where log lines go: to stderr, unless the application has said. No process waits for their reader, and no text of
others looks like a line of pyfanout's.
"""

from __future__ import annotations

import _socket
import contextlib
import functools
import logging
import os
import re
import socket
import stat
import sys
import threading
import time
from collections.abc import Callable

# By name: gevent, in a worker, puts its own into the module, which must not switch in the middle of a line.
from select import POLLOUT, poll
from typing import Any, TextIO

from pyfanout.descriptors import file_of

FORMAT = "%(asctime)s [%(process)d] %(levelname)s %(message)s"

PATIENCE_S = 0.05
"""For a reader that is only slow: a burst of lines, or a traceback, may be more than fits into a pipe. Not once more
before it has read: then what is logged meanwhile is lost."""

_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def plain(text: str) -> str:
    """With what others have put into it (an exception's text, the last words of a worker) made harmless: control
    characters are shown and drive no terminal, and what begins at the margin is ours, for lines after the first are
    indented."""
    return _CONTROLS.sub(lambda found: f"\\x{ord(found[0]):02x}", text).replace("\n", "\n  ")


def counted(number: int, what: str = "worker") -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def counted_are(number: int) -> str:
    return f"{counted(number)} {'is' if number == 1 else 'are'}"


class Logger(logging.Logger):
    """Always enabled: `logging.config.dictConfig` and `fileConfig`, which an application calls for its own loggers,
    disable all others that exist, unless told otherwise. To have less, set a level or a handler.

    A handler, filter or record factory of the application's that raises an exception ends no process: the line goes to
    stderr, with the exception."""

    @property
    def disabled(self) -> bool:
        return False

    @disabled.setter
    def disabled(self, value: bool) -> None:
        """Ignored."""

    def makeRecord(self, *args: Any, **named: Any) -> logging.LogRecord:
        try:
            return super().makeRecord(*args, **named)
        except Exception:  # of the application's factory
            return logging.LogRecord(*args[:7])

    def handle(self, record: logging.LogRecord) -> None:
        try:
            super().handle(record)
        except Exception as error:
            with contextlib.suppress(Exception):  # there may be no stderr, either
                handler = _last_resort()
                handler.stream = sys.stderr
                words = f"the application's logging has failed for the line above: {error!r}"
                for line in (record, logging.LogRecord(record.name, logging.ERROR, "", 0, words, None, None)):
                    logging.Handler.handle(handler, line)


for _name in ("", ".link", ".master", ".worker", ".worker.clients"):
    _logger = logging.getLogger(f"pyfanout{_name}")
    if type(_logger) is logging.Logger:  # else the application has a class of its own
        _logger.__class__ = Logger


class Lines(logging.Formatter):
    """Plain ones."""

    def format(self, record: logging.LogRecord) -> str:
        return plain(super().format(record))


class Handler(logging.StreamHandler[TextIO]):
    """Never waits, but for PATIENCE_S, when the stream is a pipe, a terminal or a socket: a log that is not read would
    stop the whole server. A line that does not fit is dropped; how many were is said as soon as there is room.

    The stream's own file cannot be made non-blocking, for it may be the shell's, too. So a pipe or a terminal is opened
    once more; where that cannot be done (no /proc, another user's terminal), lines are written as ever.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        super().__init__(stream)
        self._fd = -1
        """The stream's file, opened by us; children inherit it. -1: it is not."""
        self._file: tuple[int, int] | None = None
        """Which that was: a program may redirect its stderr, or close all descriptors that it does not know."""
        self._rest = b""
        """Of a line of which only the beginning fitted: it comes before the next one."""
        self._lost = 0
        """Lines, since it was last said how many."""
        self._unread: list[logging.Handler] = []
        """Those that fill a queue which a thread of the parent has read: no thread does in this process."""
        os.register_at_fork(after_in_child=self._forget)

    def handle(self, record: logging.LogRecord) -> Any:
        """A line that a handler of the application takes is left to that, also if that came later: each line is written
        once."""
        taken = any(
            record.levelno >= other.level
            and not isinstance(other, Handler | logging.NullHandler)
            and not (other in self._unread and not _is_read(other))
            for other in handlers_of(record.name)
        )
        return False if taken else super().handle(record)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            fd, write = self._way()
        except (AttributeError, OSError, ValueError):  # the stream is closed, or none that has a descriptor
            fd, write = -1, None
        if write is None:
            super().emit(record)
            return
        try:
            text = self.format(record)
            if self._lost:
                words = f"{self._lost} line{'s were' if self._lost > 1 else ' was'} lost: the log was not read"
                note = logging.LogRecord(record.name, logging.WARNING, "", 0, words, None, None)
                text = f"{self.format(note)}\n{text}"
            self._lost = 0 if self._put(fd, write, text) else self._lost + 1
        except Exception:
            self.handleError(record)

    def close(self) -> None:
        self._let_go()
        super().close()

    # ---- the way -------------------------------------------------------------------------------------------------

    def _way(self) -> tuple[int, Callable[[bytes], int] | None]:
        """A descriptor to wait for, and what writes to it without waiting; None: there is no such way, or no need."""
        fd = self.stream.fileno()
        mode = os.fstat(fd).st_mode
        if stat.S_ISSOCK(mode):  # which cannot be opened
            return fd, functools.partial(_send, fd)
        if stat.S_ISFIFO(mode) or os.isatty(fd):
            if file_of(self._fd) != file_of(fd):
                self._let_go()
                self._fd = os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
                self._file = file_of(self._fd)
            return self._fd, functools.partial(os.write, self._fd)
        return fd, None

    def _let_go(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0 and file_of(fd) == self._file:  # else the number is another file's by now
            os.close(fd)

    def _forget(self) -> None:
        """In a child: that is for the parent to say."""
        self._rest, self._lost = b"", 0
        self._unread = [other for other in handlers_of("pyfanout.worker.clients") if _fills_queue(other)]

    # ---- a line --------------------------------------------------------------------------------------------------

    def _put(self, fd: int, write: Callable[[bytes], int], text: str) -> bool:
        """Whether it is on its way: written, or so much of it that the rest must follow."""
        patience_s = 0 if self._lost else PATIENCE_S
        self._rest = _push(self._rest, fd, write, patience_s)
        if self._rest:
            return False
        line = f"{text}\n".encode(errors="backslashreplace")
        rest = _push(line, fd, write, patience_s)
        if rest == line:
            return False
        self._rest = rest
        return True


def _push(data: bytes, fd: int, write: Callable[[bytes], int], patience_s: float) -> bytes:
    """Write as much as there is room for; what is left."""
    end_s = time.monotonic() + patience_s
    while data:
        try:
            data = data[write(data) :]
        except BlockingIOError:
            wait_s = end_s - time.monotonic()
            room = poll()
            room.register(fd, POLLOUT)
            if wait_s <= 0 or not room.poll(wait_s * 1000):
                break
    return data


def _send(fd: int, data: bytes) -> int:
    # As if it were non-blocking: else `socket.setdefaulttimeout` would make it so, for all that have it.
    sock = _socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK, 0, fd)
    try:
        return sock.send(data, socket.MSG_DONTWAIT)
    finally:
        sock.detach()


def handlers_of(name: str) -> list[logging.Handler]:
    """Those to which the lines of this logger go."""
    found: list[logging.Handler] = []
    logger: logging.Logger | None = logging.getLogger(name)
    while logger is not None:
        found += logger.handlers
        logger = logger.parent if logger.propagate else None
    return found


def has_no_way(name: str) -> bool:
    """Whether the lines of this logger have no handler, or such that only fill a queue of this process: those of its
    children would stay there."""
    return all(map(_fills_queue, handlers_of(name)))


def _fills_queue(handler: logging.Handler) -> bool:
    """One of multiprocessing's is another: what children put into it reaches its reader."""
    handlers: Any = sys.modules.get("logging.handlers")  # what has one has imported it
    if handlers is None or not isinstance(handler, handlers.QueueHandler):
        return False
    return isinstance(handler.queue, handlers.queue.Queue | handlers.queue.SimpleQueue)


def _is_read(handler: Any) -> bool:
    """Whether a QueueListener of this process reads its queue: an application may start one after the fork."""
    targets = [getattr(thread, "_target", None) for thread in threading.enumerate()]
    return any(getattr(getattr(target, "__self__", None), "queue", None) is handler.queue for target in targets)


def _own_handler() -> Handler:
    handler = Handler()
    handler.setFormatter(Lines(FORMAT))
    return handler


_last_resort = functools.cache(_own_handler)
"""One in a process, and in those that it forks: each handler is registered for good to be told of a fork."""


def set_up_logging(level: str) -> None:
    """From now on lines of `level` and above are logged. May be called again."""
    log = logging.getLogger("pyfanout")
    log.setLevel(level.upper())
    if has_no_way(log.name):
        log.addHandler(_own_handler())
