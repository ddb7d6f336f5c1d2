"""Whether a listener's epoll set watches the worker's channel: not while the worker rests for want of a descriptor or
of memory, and never again when it is quiet."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
from select import EPOLLIN, POLLIN, poll
from typing import TYPE_CHECKING, Any

from pyfanout.core import OUT_OF_MEMORY, SHORTAGE_S

if TYPE_CHECKING:
    from pyfanout.worker.host import Host

log = logging.getLogger("pyfanout.worker")


class ChannelWatch:
    """Of one listener. The channel and the set are the caller's."""

    __slots__ = ("_epoll", "_worker", "fd", "rests")

    def __init__(self, worker: Host, watching: Any, fd: int) -> None:
        """`watching`: an epoll set."""
        self._worker = worker
        self._epoll = watching
        self._epoll.register(fd, EPOLLIN)
        self.fd: int | None = fd
        """None: the listener is quiet."""
        self.rests = False
        """What waits in the channel stays there."""

    def forget(self) -> None:
        """The set is closed, or another process's."""
        self.fd = None

    def quiet(self) -> None:
        """From now on there is nothing to take. May be called again, and from a signal handler."""
        fd, self.fd = self.fd, None
        if fd is not None and not self._worker.forked:  # in a child the set is still the worker's
            with contextlib.suppress(OSError, ValueError):  # it was closed
                self._epoll.unregister(fd)

    def rest(self, error: int) -> None:
        """There is no descriptor, or no memory: what waits in the channel stays there until there is one. That is
        logged here, once: most servers would log it each time they come round, and some would end."""
        fd = self.fd
        if fd is None:  # a signal has made it quiet
            return
        channel = poll()
        channel.register(fd, POLLIN)
        if not channel.poll(0):  # it was the master that has woken the server
            return
        memory = -error in OUT_OF_MEMORY
        if memory:
            self._worker.short_of(error)
        else:
            log.error(
                "worker=%d: %s; takes no connection until a descriptor is free, meanwhile others may",
                self._worker.slot,
                os.strerror(error),
            )
        self.rests = True
        self._worker.is_short(True)
        with contextlib.suppress(OSError, ValueError):  # a signal has made it quiet
            self._epoll.unregister(fd)
        self._worker.background.start(functools.partial(self._wait_for_descriptor, fd, not memory))

    def _wait_for_descriptor(self, fd: int, told: bool) -> None:
        while self.fd == fd:
            self._worker.background.sleep(SHORTAGE_S)
            try:
                os.close(os.dup(fd))
            except OSError:
                continue
            if told:
                log.info("worker=%d: descriptors are free again; it takes connections", self._worker.slot)
            break
        with contextlib.suppress(OSError, ValueError):  # it was closed
            self._epoll.register(fd, EPOLLIN)
            self.rests = False
            if self.fd is None:  # `quiet` came before that
                self._epoll.unregister(fd)
        self._worker.is_short(False)
