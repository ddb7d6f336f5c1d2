"""Shortage: what the log has of it. Accepting that rests, once a second at most, for at a limit it comes and goes with
each connection; and the connections that were lost by it."""

from __future__ import annotations

import logging
import os
import time

log = logging.getLogger("pyfanout.master")

INTERVAL_NS = 1_000_000_000


class Shortage:
    """Of descriptors, of memory; whatever the core pauses for."""

    def __init__(self) -> None:
        self._said = False
        self._said_ns = -INTERVAL_NS
        self._lost = 0

    def begins(self, error: int) -> bool:
        """Whether it was said."""
        now_ns = time.monotonic_ns()
        if now_ns < self._said_ns + INTERVAL_NS:
            return False
        self._said, self._said_ns = True, now_ns
        log.error("accept paused: %s; new connections wait in the backlog until accept is resumed", os.strerror(error))
        return True

    def ends(self) -> None:
        if self._said:
            self._said = False
            log.info("accept resumed")

    def lost(self, count: int) -> None:
        """So many, by now, were lost on their way back from a worker's channel."""
        if count > self._lost:
            log.error(
                "no descriptor was free to take connections back from ended workers: %d are lost, %d since the start",
                count - self._lost,
                count,
            )
            self._lost = count
