"""rotation: how much the channel of a worker holds, which channel it reads, and what happens without room for it."""

from __future__ import annotations

import errno
from types import SimpleNamespace
from typing import Any

import pytest

from pyfanout.core import POOL
from pyfanout.errors import CoreError
from pyfanout.link.messages import Ready
from pyfanout.master.rotation import IN_FLIGHT, Rotation, reads
from pyfanout.master.timing import ASYNCIO_SIZE, SIZE_PER_THREAD

LOOP = Ready(pool=False, threads=0, most=7)
THREADS = Ready(pool=False, threads=3)
IN_POOL = Ready(pool=True, threads=3)
MANY = 1 << 20


class Core:
    """What the rotation has asked of it."""

    def __init__(self, error: CoreError | None = None) -> None:
        self.error = error
        self.entered: dict[int, dict[str, Any]] = {}

    def enter(self, seat: int, **how: Any) -> None:
        if self.error:
            raise self.error
        self.entered[seat] = how

    def leave(self, seat: int) -> None:
        self.entered.pop(seat, None)


def rotation(core: Core, soft: int = MANY) -> Rotation:
    limit: Any = SimpleNamespace(soft=soft)
    return Rotation(core, limit)  # type: ignore[arg-type]  # stands in for it


@pytest.mark.parametrize(
    ("ready", "workers", "size"),
    [
        (LOOP, 5, ASYNCIO_SIZE),
        (THREADS, 5, 3 * SIZE_PER_THREAD),
        (IN_POOL, 5, 15 * SIZE_PER_THREAD),  # all of them read it
        (IN_POOL, 1, 3 * SIZE_PER_THREAD),
    ],
)
def test_a_channel_holds_what_its_readers_need(ready: Ready, workers: int, size: int) -> None:
    core = Core()
    assert rotation(core).enter(2, ready, workers) is None
    assert core.entered == {2: {"pool": ready.pool, "threads": ready.threads, "size": size, "most": ready.most}}


@pytest.mark.parametrize(("ready", "workers", "size"), [(THREADS, 4, 2), (IN_POOL, 4, 8), (THREADS, 99, 1)])
def test_all_channels_together_hold_a_part_of_the_descriptors(ready: Ready, workers: int, size: int) -> None:
    core = Core()
    assert rotation(core, soft=IN_FLIGHT * 8).enter(0, ready, workers) is None
    assert core.entered[0]["size"] == size


def test_one_without_room_gets_none_and_the_reason_is_told() -> None:
    core = Core(CoreError(errno.ENOMEM, "no room"))
    assert rotation(core).enter(0, LOOP, 1) is core.error
    assert core.entered == {}


def test_one_that_leaves_may_leave_again() -> None:
    core = Core()
    one = rotation(core)
    one.enter(0, LOOP, 1)
    one.leave(0)
    one.leave(0)
    assert core.entered == {}


@pytest.mark.parametrize(
    ("ready", "channel", "expected"),
    [(LOOP, 3, True), (LOOP, 2, False), (LOOP, POOL, False), (IN_POOL, POOL, True)],
)
def test_which_channel_it_reads(ready: Ready, channel: int, expected: bool) -> None:
    assert reads(3, ready, channel) is expected
