"""A child that the application forked, and the parts of its worker that it must not use."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NoReturn

from pyfanout import exits
from pyfanout.host import stdio
from pyfanout.worker.epoll import epoll

if TYPE_CHECKING:
    import asyncio

log = logging.getLogger("pyfanout.worker")


def empty_epoll_sets() -> None:
    """A child that goes on with its copy of a loop would receive events of its parent's connections, and change which
    events the parent receives: an epoll set is shared by all processes that have it (epoll(7), Q6). So the child gets
    empty sets of its own under the same numbers. Not without /proc."""
    with contextlib.suppress(OSError):
        for name in os.listdir("/proc/self/fd"):
            with contextlib.suppress(OSError):  # that of the listing itself
                if os.readlink(f"/proc/self/fd/{name}") == "anon_inode:[eventpoll]":
                    _replace(int(name))


def _replace(fd: int) -> None:
    with epoll() as fresh:
        if fresh.fileno() != fd:
            os.dup2(fresh.fileno(), fd, inheritable=False)


def silence(fds: Iterable[int]) -> None:
    """Connections that the parent goes on with: the child cannot send on them, and they are closed when the parent
    closes them. uvloop closes them by their numbers, which a client does not see while there is a copy."""
    with open(os.devnull, "r+b", buffering=0) as nothing:
        for fd in fds:
            os.dup2(nothing.fileno(), fd, inheritable=False)


def leave(task: asyncio.Task[Any]) -> None:
    """The copy of the parent's task is over."""
    leave_with(None if task.cancelled() else task.exception())


def leave_with(error: BaseException | None) -> NoReturn:
    """The copy of the parent's handler is over, and has raised `error`."""
    code = 0
    if isinstance(error, Exception):
        log.error(
            "pid=%d: the handler raised an exception in a child that it forked; the child exits with code 1",
            os.getpid(),
            exc_info=error,
        )
        code = 1
    elif error is not None:
        code = exits.code_after(error)
    stdio.flush()
    os._exit(code)
