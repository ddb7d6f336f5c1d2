"""roster: which worker has which slot and which seat, from its fork until it is reaped."""

from __future__ import annotations

import os
import socket
import threading

import pytest
from workers import member

from pyfanout.core import SEATS
from pyfanout.link.link import Link
from pyfanout.link.messages import Failed, Stage, send
from pyfanout.master.lifecycle import State
from pyfanout.master.roster import STACKS_LIMIT_BYTES, Roster, WorkerHandle


def roster_of(count: int) -> Roster:
    roster = Roster()
    for _ in range(count):
        roster.add(member(roster.grow()), successor=False)
    return roster


def with_descriptors(one: WorkerHandle) -> WorkerHandle:
    ours, theirs = socket.socketpair()
    one.link = Link(ours)
    theirs.close()
    one.stacks_fd = os.memfd_create("stacks")
    return one


def test_slots_are_numbered_and_counted() -> None:
    roster = roster_of(3)
    assert [slot.number for slot in roster.slots] == [0, 1, 2]
    assert roster.all_ready
    assert [one.slot.number for one in roster.members] == [0, 1, 2]


def test_workers_see_whether_they_have_siblings() -> None:
    roster = Roster()
    seen = []
    for change in (roster.grow, roster.grow, roster.shrink):
        change()
        seen.append(roster.several[0])
    assert seen == [0, 1, 0]


def test_the_first_worker_of_a_slot_is_no_restart() -> None:
    roster = roster_of(1)
    (slot,) = roster.slots
    assert (slot.generation, slot.restarts) == (1, 0)
    slot.respawn_at_ns = 5
    roster.remove(with_descriptors(roster.members[0]))
    roster.add(member(slot, generation=2), successor=False)
    assert (slot.generation, slot.restarts, slot.respawn_at_ns) == (2, 1, None)


def test_a_successor_takes_the_slot_over() -> None:
    roster = roster_of(1)
    (slot,) = roster.slots
    old, new = slot.member, member(slot, seat=7, generation=2)
    roster.add(new, successor=True)
    assert (slot.member, slot.successor, slot.seat) == (old, new, 7)
    assert roster.promote(new) is old
    assert (slot.member, slot.successor) == (new, None)
    assert roster.lives_in(0) is old, "until it is reaped"
    assert roster.lives_in(7) is new


def test_one_that_lives_on_without_its_slot() -> None:
    roster = roster_of(1)
    (slot,) = roster.slots
    old, new = roster.members[0], member(slot, seat=1, generation=2)
    roster.add(new, successor=True)
    assert roster.vacate(new)
    assert not roster.vacate(new), "it has none any more"
    assert slot.successor is None
    assert roster.vacate(old)
    assert slot.member is None
    assert roster.members == [old, new]


def test_a_place_is_free_when_its_worker_is_reaped() -> None:
    roster = roster_of(2)
    assert roster.free_seat(None) == 2
    assert roster.free_seat(1) == 2, "it is taken"
    one = with_descriptors(roster.members[1])
    roster.remove(one)
    assert roster.free_seat(None) == roster.free_seat(1) == 1
    assert roster.lives_in(1) is None
    assert one.link.fileno() == -1
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(one.stacks_fd)


def test_there_are_as_many_places_as_the_core_has() -> None:
    roster = Roster()
    slot = roster.grow()
    for seat in range(SEATS):
        roster.add(member(slot, seat=seat), successor=False)
    with pytest.raises(OSError, match=f"{SEATS} workers are alive"):
        roster.free_seat(None)


def test_a_slot_that_is_scaled_away_gets_no_worker() -> None:
    roster = roster_of(2)
    roster.slots[1].respawn_at_ns = 5
    gone = roster.shrink()
    assert (gone.number, gone.retired, gone.respawn_at_ns) == (1, True, None)
    assert len(roster.slots) == 1
    assert roster.lives_in(1) is gone.member, "its worker lives on"


@pytest.mark.parametrize(
    ("state", "proved", "short", "fit"),
    [
        (State.READY, True, False, True),
        (State.READY, False, False, False),
        (State.READY, True, True, False),
        (State.BOOTING, True, False, False),
        (State.DRAINING, True, False, False),
    ],
)
def test_which_worker_may_take_its_slot_over(state: State, proved: bool, short: bool, fit: bool) -> None:
    one = member(Roster().grow(), state=state)
    one.proved, one.short = proved, short
    assert one.fit is fit


def test_stacks_are_read_to_a_limit_and_need_not_be_text() -> None:
    one = with_descriptors(member(Roster().grow()))
    assert one.stacks() == ""
    os.write(one.stacks_fd, b"Fatal \xff error\n" + b"x" * STACKS_LIMIT_BYTES)
    assert one.stacks().startswith("Fatal \ufffd error\nxxx")
    assert len(one.stacks()) <= STACKS_LIMIT_BYTES
    one.close()
    assert one.stacks() == "(unreadable: Bad file descriptor)"


@pytest.mark.parametrize("state", [None, State.BOOTING, State.DRAINING, State.KILLED])
def test_not_all_are_ready_if_one_slot_has_no_ready_worker(state: State | None) -> None:
    roster = roster_of(2)
    roster.slots[1].member = None if state is None else member(roster.slots[1], state=state)
    assert not roster.all_ready


def test_only_workers_that_do_not_die_of_sigkill_are_left_behind() -> None:
    roster = roster_of(2)
    assert not roster.all_left_behind
    for one in roster.members:
        one.state, one.deadline_ns = State.KILLED, None
    assert roster.all_left_behind
    roster.members[0].deadline_ns = 1
    assert not roster.all_left_behind


def test_last_words_come_to_an_end() -> None:
    """Although a child that the worker has left behind has its socket, and writes as fast as it can."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    theirs.settimeout(20)
    stopped = threading.Event()
    send(theirs, Failed(Stage.START, "why", ""))

    def write() -> None:
        try:
            while True:
                theirs.send(b"O")
        except BrokenPipeError:
            stopped.set()

    with ours, theirs:
        writer = threading.Thread(target=write)
        writer.start()
        dead = member(Roster().grow(), ours)
        dead.read_last_words()
        writer.join()
    assert dead.failure == Failed(Stage.START, "why", "")
    assert stopped.is_set()
