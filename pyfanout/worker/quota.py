"""Quota: how much a worker serves before another takes its place (`max_requests`)."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable


class Quota:
    """Of one worker. Reached once, however many are served after that."""

    def __init__(self, most: int, jitter: int) -> None:
        """`most` units, and up to `jitter` more, so that the workers do not all end at once. 0: there is none."""
        self._served = itertools.count(1)  # next() is one step, also among threads
        self.last: int | None = most or None
        """The number of the unit that reaches it. None: nothing is counted."""
        if self.last:  # not the common generator: an application may have seeded it, the same for all workers
            self.last += random.SystemRandom().randint(0, jitter)

    def counter(self, reached: Callable[[], object]) -> Callable[[], None] | None:
        """What is to be called, from any thread, for each unit; it calls `reached` at the last one. None: nothing is
        counted."""
        if self.last is None:
            return None

        def count() -> None:
            if next(self._served) == self.last:
                reached()

        return count
