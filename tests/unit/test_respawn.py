"""respawn: when a slot gets its next worker, and when it has failed."""

from __future__ import annotations

import random
import time
from types import SimpleNamespace

import pytest

from pyfanout.master import respawn, timing
from pyfanout.master.respawn import Respawns
from pyfanout.master.roster import Roster, Slot

SECOND_NS = 10**9
MIN_UPTIME_NS = SECOND_NS


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    now = SimpleNamespace(ns=10**12)
    monkeypatch.setattr(respawn, "time", SimpleNamespace(monotonic_ns=lambda: now.ns))
    monkeypatch.setattr(respawn, "random", SimpleNamespace(random=lambda: 0.0))
    return now


def respawns_of(count: int) -> tuple[Respawns, list[Slot]]:
    roster = Roster()
    slots = [roster.grow() for _ in range(count)]
    return Respawns(roster, MIN_UPTIME_NS), slots


def die(respawns: Respawns, slot: Slot, *, ready_ns: int | None = None, resigned: bool = False) -> bool:
    return respawns.count_death(slot, ready_ns, served=False, resigned=resigned)


def test_the_slot_that_has_waited_longest_is_first() -> None:
    respawns, slots = respawns_of(5)
    order = list(slots)
    seed = random.randrange(2**32)
    print("seed", seed)
    random.Random(seed).shuffle(order)
    for at_ns, slot in enumerate(order):
        slot.respawn_at_ns = at_ns
    found = []
    while slot := respawns.due(len(order)):
        found.append(slot)
        slot.respawn_at_ns = None
    assert found == order
    assert not respawns.pending


def test_none_is_due_before_its_time() -> None:
    respawns, (slot,) = respawns_of(1)
    slot.respawn_at_ns = 100
    assert respawns.due(99) is None
    assert respawns.pending
    assert respawns.deadlines() == [100]
    assert respawns.due(100) is slot


def test_what_is_forgotten_is_never_due() -> None:
    respawns, slots = respawns_of(3)
    for slot in slots:
        respawns.now(slot)
    respawns.forget()
    assert respawns.due(2**63) is None
    assert respawns.deadlines() == []


def test_a_first_death_waits_for_nothing_and_the_next_ones_longer_and_longer(clock: SimpleNamespace) -> None:
    respawns, (slot,) = respawns_of(1)
    delays = []
    for _ in range(4):
        die(respawns, slot)
        respawns.later(slot)
        delays.append((slot.respawn_at_ns or 0) - clock.ns)
    assert delays == [0, *(timing.FIRST_DELAY_NS << n for n in range(3))]


def test_a_failed_start_is_never_tried_again_at_once(clock: SimpleNamespace) -> None:
    respawns, (slot,) = respawns_of(1)
    respawns.after_failure(slot)
    assert slot.deaths == 1
    assert slot.respawn_at_ns == clock.ns + timing.FIRST_DELAY_NS


def test_a_worker_that_has_lived_begins_the_count_anew(clock: SimpleNamespace) -> None:
    respawns, (slot,) = respawns_of(1)
    for _ in range(3):
        die(respawns, slot)
    die(respawns, slot, ready_ns=clock.ns - MIN_UPTIME_NS)
    assert slot.deaths == 1
    die(respawns, slot, ready_ns=clock.ns - MIN_UPTIME_NS, resigned=True)
    assert slot.deaths == 0


def test_a_slot_fails_once_and_is_well_again_after_one_life(clock: SimpleNamespace) -> None:
    respawns, (slot,) = respawns_of(1)
    failed = [die(respawns, slot) for _ in range(timing.BROKEN_ROW + 2)]
    assert failed == [False] * (timing.BROKEN_ROW - 1) + [True, False, False], "it is said once"
    assert slot.failed
    respawns.later(slot)
    assert slot.respawn_at_ns == clock.ns + timing.LONGEST_DELAY_NS
    die(respawns, slot, ready_ns=clock.ns - MIN_UPTIME_NS)
    assert not slot.failed


def test_deaths_that_come_faster_than_min_uptime_fail_it_without_a_row(clock: SimpleNamespace) -> None:
    """Each worker lives just long enough, and the next one dies at once."""
    respawns, (slot,) = respawns_of(1)
    failed = []
    for number in range(2 * timing.BROKEN_WINDOW):
        failed.append(die(respawns, slot, ready_ns=clock.ns - MIN_UPTIME_NS if number % 2 else None))
        clock.ns += MIN_UPTIME_NS // 2
    assert failed.count(True) == 1
    assert failed.index(True) >= timing.BROKEN_WINDOW - 1


def test_times_are_of_the_monotonic_clock() -> None:
    respawns, (slot,) = respawns_of(1)
    before_ns = time.monotonic_ns()
    respawns.now(slot)
    assert before_ns <= (slot.respawn_at_ns or 0) <= time.monotonic_ns()
