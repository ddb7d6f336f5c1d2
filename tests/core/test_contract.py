"""contract: what fanout.h promises as a whole. Constants, birth that fails, sleep, time, watched descriptors."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import signal
import socket
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from pyfanout._core import lib

from pyfanout import core, options
from pyfanout.config import Policy
from pyfanout.core import BATCH, SEATS, Core, EventKind

from .kit import Faults, House, compiler, descriptors, free_descriptors, in_child, is_open

MakeHouse = Callable[..., House]
HEADER = Path(__file__).parents[2] / "csrc" / "fanout.h"


# ---- constants ---------------------------------------------------------------------------------------------------


def test_python_knows_all_events() -> None:
    names = {name.removeprefix("FAN_EVENT_"): getattr(lib, name) for name in dir(lib) if name.startswith("FAN_EVENT_")}
    assert {news.name: news.value for news in EventKind} == names


def test_python_knows_all_policies() -> None:
    values = {core._POLICIES[policy] for policy in Policy}
    assert values == {lib.FAN_ROUND_ROBIN, lib.FAN_LEAST_CONNECTIONS, lib.FAN_SOURCE_HASH}
    for policy in Policy:
        name = "FAN_" + policy.name
        assert core._POLICIES[policy] == getattr(lib, name)


def test_limits_are_the_same_in_both_languages() -> None:
    assert BATCH == lib.FAN_BATCH
    assert options.MAX_THREADS <= lib.FAN_MAX_THREADS
    assert options.MAX_WORKERS <= lib.FAN_MAX_SEATS


def test_the_view_of_the_board_has_the_fields_of_the_header(house: MakeHouse) -> None:
    text = HEADER.read_text().split("A copy of a seat's page")[1].split("} fan_score_view;")[0]
    fields = re.findall(r"^ +u?int\d+_t (\w+);", text, re.MULTILINE)
    assert list(core.ScoreView.__slots__) == fields
    here = house(2)
    assert set(vars(type(here.core.look(0))).keys()) >= set(fields)


def test_the_counters_have_the_names_of_the_header(house: MakeHouse) -> None:
    text = HEADER.read_text().split("Counted since fan_core_new")[1].split("} fan_counters;")[0]
    fields = re.findall(r"^ +uint64_t (\w+);", text, re.MULTILINE)
    assert sorted(house().core.count()) == sorted(fields)


def test_a_message_takes_what_was_measured(house: MakeHouse) -> None:
    assert 256 <= house().core.message_bytes <= 4096


# ---- birth and death ---------------------------------------------------------------------------------------------


def errno_of_birth() -> int:
    """Of a core that is made, gets the channels of three workers, and is closed; 0 if it is."""
    try:
        with Core(3, Policy.ROUND_ROBIN) as core:
            for seat in range(3):
                core.begin(seat, 1, seat)
    except OSError as error:
        return error.errno or 0
    return 0


@pytest.mark.parametrize("seats", [0, -1, SEATS + 1])
def test_a_number_of_seats_that_is_out_of_range(seats: int) -> None:
    with pytest.raises(OSError, match="make the core") as caught:
        Core(seats, Policy.ROUND_ROBIN)
    assert caught.value.errno == errno.EINVAL


@pytest.mark.parametrize(
    ("call", "error"),
    [
        ("calloc", errno.ENOMEM),
        ("mmap", errno.ENOMEM),
        ("socketpair", errno.EMFILE),
        ("eventfd", errno.ENFILE),
        ("recvmmsg", errno.ENOMEM),
        ("shutdown", errno.EPERM),
        ("sendmmsg", errno.ETOOMANYREFS),
        ("ioctl", errno.EINVAL),
        ("epoll_create1", errno.EMFILE),
        ("epoll_ctl", errno.ENOSPC),
    ],
)
def test_a_birth_that_fails_anywhere_leaves_nothing(faults: Faults, call: str, error: int) -> None:
    """Each call of it fails in its turn, until one birth meets no failure."""

    def act() -> None:
        before = {fd: os.fstat(fd).st_ino for fd in descriptors()}
        for after in range(100):
            faults.reset()
            faults.fail(call, error, after=after)
            assert errno_of_birth() in {0, error}
            assert is_open(0), f"descriptor 0 is closed when call {after} fails"
            assert {fd: os.fstat(fd).st_ino for fd in descriptors()} == before
            if not faults.failed(call):
                assert after > 0
                return
        pytest.fail("every birth fails")

    in_child(act)


@pytest.mark.parametrize("free", range(12))
def test_a_birth_without_descriptors(free: int) -> None:
    before = descriptors()
    with free_descriptors(free):
        assert errno_of_birth() == (errno.EMFILE if free < 10 else 0)
    assert descriptors() == before


def test_a_channel_that_cannot_be_made_is_made_later() -> None:
    with Core(3, Policy.ROUND_ROBIN) as core:
        before = descriptors()
        with free_descriptors(1), pytest.raises(OSError, match="make its channel") as caught:
            core.begin(2, 1, 2)
        assert caught.value.errno == errno.EMFILE
        assert descriptors() == before
        assert core.untaken(2) == 0
        core.begin(2, 1, 2)
        assert len(descriptors() - before) == 2


def test_closed_twice(house: MakeHouse) -> None:
    before = descriptors()
    core = Core(2, Policy.ROUND_ROBIN)
    core.close()
    core.close()
    assert descriptors() == before


def test_the_largest_core() -> None:
    before = descriptors()
    with Core(SEATS, Policy.LEAST_CONNECTIONS) as core:
        assert len(descriptors() - before) == 4, "a channel is made when it is needed"
        assert core.run(0) == []
        for seat in range(1024):
            core.begin(seat, 1, seat)
        assert len(descriptors() - before) == 2 * 1025 + 2
        assert core.run(0) == []
        for seat in range(1024):
            core.end(seat)
        assert len(descriptors() - before) == 4
    assert descriptors() == before


# ---- time and sleep ------------------------------------------------------------------------------------------------


def test_an_idle_core_sleeps(house: MakeHouse, faults: Faults) -> None:
    """With hungry workers and without: one wait until the time is over, and no other call at all."""
    here = house(3)
    for enter in (False, True):
        if enter:
            for seat in range(3):
                here.enter(seat)
        here.settle()
        faults.reset()
        assert here.core.run(80_000_000) == []
        assert faults.calls("epoll_wait") <= 2
        assert faults.calls("accept4") == 0
        assert faults.calls("ioctl") == 0


@pytest.mark.parametrize("pool", [False, True], ids=["own", "pool"])
def test_a_core_with_taken_connections_sleeps(house: MakeHouse, faults: Faults, pool: bool) -> None:
    here = house(2)
    workers = [here.worker(0, pool=pool), here.worker(1, pool=pool)]
    here.connect(10)
    here.settle()
    for worker in workers:
        worker.take()
    here.run_for(30_000_000)  # the last look of the pool
    faults.reset()
    here.core.run(80_000_000)
    assert faults.calls("epoll_wait") <= 2


def test_a_core_whose_workers_are_full_sleeps(house: MakeHouse, faults: Faults) -> None:
    here = house(2)
    here.worker(0, 6)
    here.worker(1, 6)
    here.connect(40)
    here.settle()
    faults.reset()
    here.core.run(80_000_000)
    assert faults.calls("epoll_wait") <= 2
    assert faults.calls("accept4") == 0


@pytest.mark.parametrize("timeout_ns", [2**63 - 1, 2**63 - 2, 2**62, 10**18])
def test_a_wait_of_centuries_is_no_overflow(house: MakeHouse, timeout_ns: int) -> None:
    here = house()
    reading, writing = socket.socketpair()
    with reading, writing:
        here.core.watch(reading.fileno(), 3)
        thread = threading.Timer(0.05, writing.send, [b"!"])
        thread.start()
        events = here.core.run(timeout_ns)
        thread.join()
        here.core.unwatch(reading.fileno())
    assert events == [(EventKind.WATCHED, 0, 3)]


@pytest.mark.parametrize("timeout_ns", [-1, 0, 1, 999_999])
def test_a_short_wait_ends(house: MakeHouse, timeout_ns: int) -> None:
    here = house()
    assert here.core.run(timeout_ns) == []


def test_a_signal_ends_the_wait() -> None:
    def act() -> None:
        signal.signal(signal.SIGALRM, lambda *_: None)
        with House(1) as here:
            signal.setitimer(signal.ITIMER_REAL, 0.02, 0.02)
            assert here.core.run(None) == []
            signal.setitimer(signal.ITIMER_REAL, 0)
            assert here["interrupts"] >= 1

    in_child(act)


def test_an_interrupted_look_inside_is_no_end(house: MakeHouse, faults: Faults) -> None:
    """The wait is two calls when the inner set has news; the second may be interrupted, too."""
    here = house()
    here.worker(0)
    reading, writing = socket.socketpair()
    with reading, writing:
        here.core.watch(reading.fileno(), 3)
        here.settle()
        writing.send(b"!")
        faults.fail("epoll_wait", errno.EINTR, after=1)
        here.run_until(lambda: here.said(EventKind.WATCHED), "it is told")
        here.core.unwatch(reading.fileno())


# ---- watched -------------------------------------------------------------------------------------------------------


def test_watched_descriptors_are_told_while_they_are_readable(house: MakeHouse) -> None:
    here = house()
    here.worker(0)
    pairs = [socket.socketpair() for _ in range(100)]
    try:
        for token, (reading, writing) in enumerate(pairs):
            here.core.watch(reading.fileno(), token)
            writing.send(b"!")
        told = set()
        for _ in range(10):  # 64 at a time, and each gets its turn
            told |= {event.token for event in here.core.run(0)}
        assert told == set(range(100))
        pairs[7][0].recv(1)
        here.core.unwatch(pairs[8][0].fileno())
        again = {event.token for _ in range(10) for event in here.core.run(0)}
        assert again == set(range(100)) - {7, 8}
    finally:
        for token, pair in enumerate(pairs):
            if token != 8:
                here.core.unwatch(pair[0].fileno())
            for end in pair:
                end.close()


def test_watched_ones_get_their_turn_in_a_flood(house: MakeHouse) -> None:
    """Clients come without a pause; what Python watches is told all the same."""
    here = house()
    worker = here.worker(0)
    reading, writing = socket.socketpair()
    with reading, writing:
        here.core.watch(reading.fileno(), 1)
        here.connect(1000)
        writing.send(b"!")
        here.run_until(lambda: here.said(EventKind.WATCHED), "it is told")
        here.core.unwatch(reading.fileno())
    assert here.take_until([worker], 1000, keep=False) == list(range(1000))


def test_a_watch_that_the_kernel_refuses(house: MakeHouse, faults: Faults) -> None:
    here = house()
    reading, writing = socket.socketpair()
    with reading, writing:
        faults.fail("epoll_ctl", errno.ENOSPC)
        with pytest.raises(OSError, match="watch descriptor") as caught:
            here.core.watch(reading.fileno(), 1)
        assert caught.value.errno == errno.ENOSPC
        here.core.watch(reading.fileno(), 1)
        with pytest.raises(OSError, match="watch descriptor"):
            here.core.watch(reading.fileno(), 1)
        here.core.unwatch(reading.fileno())
        with pytest.raises(OSError, match="stop watching"):
            here.core.unwatch(reading.fileno())


# ---- any call fails --------------------------------------------------------------------------------------------------

CALLS = {
    "ioctl": errno.ENOMEM,
    "recvmsg": errno.ENOMEM,
    "sendmsg": errno.ENOBUFS,
    "sendmmsg": errno.ENOBUFS,
    "accept4": errno.ENFILE,
    "poll": errno.ENOMEM,
    "socketpair": errno.EMFILE,
    "epoll_wait": errno.EINTR,
    "setsockopt": errno.ENOMEM,
}


@pytest.mark.parametrize("call", CALLS)
def test_a_life_in_which_one_call_fails(faults: Faults, call: str) -> None:
    """Each call in its turn, until a life meets no failure: every client arrives all the same."""
    for after in range(200):
        faults.reset()
        with House(2) as here:
            here.listen()
            first, second = here.worker(0, 8), here.worker(1, 8)
            faults.fail(call, CALLS[call], after=after)
            here.connect(30)
            taken = here.take_until([first, second], 12)
            first.leave()
            if len(taken) < 24:
                taken += here.take_until([second], 24 - len(taken))
            with contextlib.suppress(OSError):  # the size could not be set
                here.worker(0, 8).shut_down(socket.SHUT_RDWR)
            here.connect(4)  # one of them goes to the broken one, who is found out by it at the latest
            taken += here.take_until([second], 34 - len(taken))
            here.core.finish(100)
            here.run_until(lambda here=here: here.said(EventKind.FINISHED), "it ends")
            assert not second.rest()
            assert sorted(taken) == list(range(34)), f"call {after} of {call}"
            here.check()
        if not faults.failed(call):
            break
    else:
        pytest.fail("every life meets a failure")


# ---- machines ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("lock_free", "words"), [("2", []), ("1", ["pyfanout cannot be built", "64-bit atomics"])])
def test_a_machine_without_64_bit_atomics_is_refused_in_one_line(lock_free: str, words: list[str]) -> None:
    """When the core is built: 1 is what the compiler says where such atomics are behind a lock of the process's own."""
    macro = "__GCC_ATOMIC_LLONG_LOCK_FREE"
    flags = ["-std=gnu11", "-fsyntax-only", f"-I{HEADER.parent}", f"-U{macro}", f"-D{macro}={lock_free}"]
    command = [*compiler(), *flags, str(HEADER.with_name("scoreboard.c"))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    errors = [line for line in done.stderr.splitlines() if "error:" in line]
    assert (done.returncode != 0, len(errors)) == (bool(words), min(len(words), 1)), done.stderr
    assert all(word in errors[0] for word in words)
