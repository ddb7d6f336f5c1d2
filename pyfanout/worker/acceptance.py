"""Acceptance: READY waits until the server has accepted from the worker's Listener. One that never does gets no client.

A server may have opened a socket of its own instead, or wait for another one. What it has in mind cannot be seen; that
it accepts can: the Listener is readable until then.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import socket
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, Any

from pyfanout import exits
from pyfanout.errors import WorkerError
from pyfanout.link.messages import Stage
from pyfanout.worker.idle import LOOK_S, Borrowed

if TYPE_CHECKING:
    from pyfanout.worker.host import Host
    from pyfanout.worker.listener import Listener

log = logging.getLogger("pyfanout.worker")

PATIENCE_S = 5.0
"""Before the log says what the worker waits for. A server that accepts does so within milliseconds, on a busy machine
within a second."""

LAST_WORDS = 0.1
"""The part of `boot_timeout` that is left for the worker to say why it is not ready, before its master kills it."""


class _Acceptance:
    """Waits for one."""

    def __init__(self, worker: Host, accepted: Callable[[], None]) -> None:
        self._worker = worker
        self._accepted = accepted
        self._is_over = False
        self._end_s = worker.born_s + worker.config.boot_timeout * (1 - LAST_WORDS)
        self._told_s = monotonic() + PATIENCE_S if worker.joined else min(monotonic() + PATIENCE_S, self._end_s)
        """When the log says it; infinite: it has."""

    def accepts(self) -> None:
        """The server does, on its own thread."""
        self._is_over = True
        self._accepted()

    def watch(self) -> None:
        """A task of the worker's `background`: it may begin anew."""
        worker = self._worker
        while not (self._is_over or worker.draining):
            now_s = monotonic()
            if now_s >= self._told_s:
                self._told_s = math.inf
                log.warning("worker=%d is not ready: %s; meanwhile it gets no connections", worker.slot, _reason())
            if now_s >= self._end_s and not worker.joined:
                exits.leave(worker.fail(Stage.START, WorkerError(_reason())))
            worker.background.sleep(LOOK_S)


def await_acceptance(worker: Host, listener: Listener, accepted: Callable[[], None]) -> None:
    """Have the listener call `accepted` when its server accepts for the first time. If the server has not done that
    when `boot_timeout` is nearly over, the worker ends, and says why; one that has joined a dispatcher only logs it."""
    acceptance = _Acceptance(worker, accepted)
    listener.wake(acceptance.accepts)
    with contextlib.suppress(RuntimeError):  # no thread can be had: then the master alone ends it
        worker.background.start(acceptance.watch)


def _reason() -> str:
    others = ", ".join(listening())
    own = f"; this process itself listens on {others}" if others else ""
    return f"its server does not accept from the Listener of pyfanout{own}"


def listening() -> list[str]:
    """The addresses on which sockets of this process listen; none is known without /proc."""
    found: set[str] = set()
    try:
        names = os.listdir("/proc/self/fd")
    except OSError:
        return []
    for name in names:
        with contextlib.suppress(OSError):  # it is no socket; or was closed meanwhile, as that of the listing itself
            family = _option(int(name), socket.SO_DOMAIN)
            if _option(int(name), socket.SO_ACCEPTCONN):
                with Borrowed(int(name), family) as sock:
                    found.add(_in_words(family, sock.getsockname()))
    return sorted(found)


def _option(fd: int, option: int) -> int:
    with Borrowed(fd) as sock:
        return sock.getsockopt(socket.SOL_SOCKET, option)


def _in_words(family: int, address: Any) -> str:
    if family == socket.AF_UNIX:
        name = os.fsdecode(address)
        return "unix:" + (f"@{name[1:]}" if name.startswith("\0") else name)
    return f"[{address[0]}]:{address[1]}" if family == socket.AF_INET6 else f"{address[0]}:{address[1]}"
