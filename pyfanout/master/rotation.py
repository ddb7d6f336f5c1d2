"""Rotation: the workers that get connections, and how much the channel of each holds.

Of workers that the master has forked and of those that join a dispatcher alike. Puts one in or takes it out when it is
told to; decides nothing, and never touches a worker.
"""

from __future__ import annotations

from pyfanout.core import POOL, Core
from pyfanout.errors import CoreError
from pyfanout.limits import OpenFiles
from pyfanout.link.messages import Ready
from pyfanout.master import timing

IN_FLIGHT = 4
"""At most one in this many descriptors of this process's limit is in a channel."""


def reads(seat: int, ready: Ready, channel: int) -> bool:
    """Whether a worker in `seat`, that is `ready`, takes connections from `channel`, which is a seat or the POOL."""
    return ready.pool if channel == POOL else seat == channel


class Rotation:
    """Of one core. A worker is known by its seat."""

    def __init__(self, core: Core, open_files: OpenFiles) -> None:
        self._core = core
        self._open_files = open_files

    def enter(self, seat: int, ready: Ready, workers: int) -> CoreError | None:
        """From now on it gets connections, as one of so many workers. If the system has no room for that, why; then it
        gets none."""
        channels, readers = (1, ready.threads * workers) if ready.pool else (workers, ready.threads)
        size = timing.channel_size(readers, self._open_files.soft // IN_FLIGHT // channels)
        try:
            self._core.enter(seat, pool=ready.pool, threads=ready.threads, size=size, most=ready.most)
        except CoreError as error:
            return error
        return None

    def leave(self, seat: int) -> None:
        """It gets no more; what it had not taken goes to others. No-op for one that is not in rotation."""
        self._core.leave(seat)
