"""Shortage: the log lines about accepting that rests, once a second at most: at a limit it comes and goes with each
connection."""

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

    def begins(self, error: int) -> bool:
        """Whether it was said."""
        now_ns = time.monotonic_ns()
        if now_ns < self._said_ns + INTERVAL_NS:
            return False
        self._said, self._said_ns = True, now_ns
        log.error("accepting rests: %s; new clients wait in the kernel's queue", os.strerror(error))
        return True

    def ends(self) -> None:
        if self._said:
            self._said = False
            log.info("accepting goes on")
