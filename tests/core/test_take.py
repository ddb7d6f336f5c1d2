"""take: a worker's end. No descriptor, no taking; a cancelled receiver wakes; what a child keeps, and what it drops."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import resource
import signal
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pyfanout._core import ffi

from pyfanout.config import Policy
from pyfanout.core import POOL, Core, EndFds, Receiver, WorkerEnds, interrupt_with

from .kit import House, Worker, clients_of, descriptors, free_descriptors, in_child, state_of, wait_until

MakeHouse = Callable[..., House]


@pytest.fixture
def interruptible() -> Iterator[None]:
    before = signal.getsignal(signal.SIGURG)
    interrupt_with(signal.SIGURG)
    yield
    signal.signal(signal.SIGURG, before or signal.SIG_DFL)


def feed(here: House, count: int) -> None:
    here.connect(count)
    here.run_until_passed(here["passed"] + count)


# ---- descriptors -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pool", [False, True], ids=["loop", "thread"])
def test_without_a_free_descriptor_nothing_is_taken(house: MakeHouse, pool: bool) -> None:
    here = house()
    worker = here.worker(0, pool=pool)
    feed(here, 3)
    with free_descriptors(0):
        rc = worker.receiver.take(False) if pool else worker.receiver.take_ready(32)[0]
        assert rc == -errno.EMFILE
    assert here.core.untaken(POOL if pool else 0) == 3
    view = here.core.look(0)
    assert (view.taken, view.lost) == (0, 0)
    assert clients_of(worker.take()) == [0, 1, 2]


def test_a_promise_of_a_free_descriptor_that_is_wrong_is_counted(house: MakeHouse) -> None:
    """`fd_is_free` is the caller's word; the kernel closes what does not fit, and says only MSG_CTRUNC."""
    here = house()
    worker = here.worker(0, pool=True)
    feed(here, 2)
    with free_descriptors(0):
        assert worker.receiver.take(True) == -errno.ENOBUFS
    view = here.core.look(0)
    assert (view.taken - view.done, view.lost, view.busy_threads) == (0, 1, 0)
    assert clients_of(worker.take()) == [1]


def test_a_lost_connection_is_no_load_for_ever(house: MakeHouse) -> None:
    """A worker that lost some must not be passed over for it by least-connections: nobody will ever say done."""
    here = house(2, Policy.LEAST_CONNECTIONS)
    workers = [here.worker(0), here.worker(1)]
    feed(here, 20)
    with free_descriptors(0):
        for _ in range(10):
            assert workers[0].receiver.take(True) == -errno.ENOBUFS
    workers[1].take()
    workers[1].done(10)
    feed(here, 8)
    assert here.untaken()[:2] == [4, 4]


@pytest.mark.parametrize("holes", [1, 3])
def test_a_table_that_is_full_but_for_low_numbers(house: MakeHouse, holes: int) -> None:
    """The lowest free number is low, and yet there is no room for a batch: it was full in between two looks."""
    here = house()
    feeder = here.worker(0)

    def act() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (400, 400))
        worker = Worker(here, 0, feeder.ends, False)
        assert worker.take(1)
        held = []
        with contextlib.suppress(OSError):
            while True:
                held.append(os.dup(0))
        for fd in held[:holes]:
            os.close(fd)
        taken = 0
        while True:
            rc, raws = worker.receiver.take_ready(32)
            taken += len(list(raws))
            if rc < 0:
                break
        assert here.core.look(0).lost == 0
        assert rc == -errno.EMFILE
        assert taken == holes

    feed(here, 20)
    in_child(act)


def test_a_thread_that_sleeps_while_others_fill_the_table(house: MakeHouse) -> None:
    """It looked for a descriptor before it fell asleep; what counts is whether there is one when it wakes."""
    here = house()
    worker = here.worker(0, pool=True)
    reading, writing = socket.socketpair()

    def act() -> None:
        rcs: list[int] = []
        thread = threading.Thread(target=lambda: rcs.append(worker.receiver.take(False)))
        thread.start()
        wait_until(lambda: worker.receiver.sleeps and is_asleep(thread), "it sleeps")
        with free_descriptors(0):
            writing.send(b"!")
            thread.join()
        assert here.core.look(0).lost == 0
        assert rcs == [-errno.EMFILE]

    def meanwhile() -> None:
        reading.recv(1)
        feed(here, 1)

    with reading, writing:
        in_child(act, meanwhile)
    assert clients_of(worker.take()) == [0]


def is_asleep(thread: threading.Thread) -> bool:
    return state_of(os.getpid(), thread.native_id) == "S"


def test_never_more_than_asked_for(house: MakeHouse) -> None:
    here = house()
    worker = here.worker(0)
    feed(here, 20)
    for cap in (1, 5, 2):
        count, raws = worker.receiver.take_ready(cap)
        assert count == cap
        for raw in raws:
            here.arrived(raw)
    assert here.core.look(0).taken == 8
    assert len(worker.take()) == 12
    assert worker.receiver.take_ready(32)[0] == -errno.EAGAIN


# ---- the scoreboard --------------------------------------------------------------------------------------------------


def test_the_page_says_what_the_worker_does(house: MakeHouse) -> None:
    here = house()
    worker = here.worker(0, pool=True)
    receivers = [Receiver(worker.fd, worker.ends, thread) for thread in range(3)]
    feed(here, 2)
    assert here.core.look(0).busy_since_ns == 0
    for receiver in receivers[:2]:
        assert receiver.take(False) == 1
        here.arrived(receiver.arrival)
    view = here.core.look(0)
    assert (view.generation, view.taken, view.done, view.busy_threads, view.threads) == (1, 2, 0, 2, 3)
    assert 0 < view.busy_since_ns <= view.beat_ns
    worker.done(2)
    receivers[0].cancel()
    assert receivers[0].take(False) == -errno.ECANCELED
    view = here.core.look(0)
    assert (view.done, view.busy_threads) == (2, 1)


def test_a_new_generation_has_a_clean_page(house: MakeHouse) -> None:
    here = house()
    worker = here.worker(0)
    feed(here, 3)
    worker.take()
    worker.done(2)
    worker.leave()
    here.worker(0)
    view = here.core.look(0)
    assert (view.generation, view.taken, view.done, view.beat_ns, view.threads) == (2, 0, 0, 0, 1)


def test_a_disowned_page_is_the_childs_own(house: MakeHouse) -> None:
    here = house()
    worker = here.worker(0)

    def act() -> None:
        worker.done()
        worker.ends.disown()
        worker.done(10)

    in_child(act)
    worker.done()
    feed(here, 5)
    worker.take()
    assert here.core.look(0).done == 2


# ---- waking ------------------------------------------------------------------------------------------------------


def test_end_of_file(house: MakeHouse) -> None:
    here = house()
    worker = here.worker(0)
    feed(here, 2)
    here.core.finish(10)
    here.settle()
    assert worker.receiver.take(False) == 1
    here.arrived(worker.receiver.arrival)
    assert len(worker.rest()) == 1
    assert worker.receiver.take(False) == 0


def test_a_signal_interrupts(house: MakeHouse, interruptible: None) -> None:
    here = house()
    worker = here.worker(0, pool=True)
    rcs: list[int] = []
    thread = threading.Thread(target=lambda: rcs.append(worker.receiver.take(False)))
    thread.start()
    while thread.is_alive():
        with contextlib.suppress(ProcessLookupError):
            signal.pthread_kill(thread.ident or 0, signal.SIGURG)
        thread.join(0.001)
    assert rcs == [-errno.EINTR]


def test_cancel_wakes_wherever_it_hits(house: MakeHouse, interruptible: None) -> None:
    """1,000 times, at any instant of a thread's way into its sleep."""
    here = house()
    here.enter(0, pool=True)
    ends = here.ends(0)
    for _ in range(1000):
        receiver = Receiver(ends.pool_fd, ends, 0)
        rcs: list[int] = []
        thread = threading.Thread(target=lambda receiver=receiver, rcs=rcs: rcs.append(receiver.take(False)))
        thread.start()
        receiver.cancel()
        while thread.is_alive():
            if receiver.sleeps:
                with contextlib.suppress(ProcessLookupError):
                    signal.pthread_kill(thread.ident or 0, signal.SIGURG)
            thread.join(0.0005)
        assert rcs in ([-errno.ECANCELED], [-errno.EINTR])
        assert receiver.take(False) == -errno.ECANCELED
        assert not receiver.sleeps


def test_a_cancelled_receiver_takes_nothing(house: MakeHouse) -> None:
    here = house()
    worker = here.worker(0, pool=True)
    feed(here, 1)
    worker.receiver.cancel()
    assert worker.receiver.take(True) == -errno.ECANCELED
    assert here.core.untaken(POOL) == 1 + here.core.count()["nudges"], "it waits; on a slow machine the core has nudged"


def test_idle_threads_are_served_in_turn(house: MakeHouse, interruptible: None) -> None:
    """What makes the pool a round-robin: who has waited longest is woken."""
    here = house(4)
    for seat in range(4):
        here.enter(seat, 16, pool=True)
    all_ends = [here.ends(seat) for seat in range(4)]
    receivers = [Receiver(ends.pool_fd, ends, 0) for ends in all_ends]
    order: list[int] = []
    threads: dict[int, threading.Thread] = {}

    def take(number: int) -> None:
        if receivers[number].take(False) == 1:
            order.append(number)
            os.close(receivers[number].arrival.fd)

    def start(number: int) -> None:
        thread = threads[number] = threading.Thread(target=take, args=(number,))
        thread.start()
        wait_until(lambda: receivers[number].sleeps and is_asleep(thread), "the thread sleeps")

    for number in range(4):
        start(number)
    for turn in range(40):
        feed(here, 1)
        wait_until(lambda turn=turn: len(order) > turn, "somebody takes it")
        threads[order[-1]].join()
        start(order[-1])
    assert order == [0, 1, 2, 3] * 10
    for number, thread in threads.items():
        receivers[number].cancel()
        while thread.is_alive():
            with contextlib.suppress(ProcessLookupError):
                signal.pthread_kill(thread.ident or 0, signal.SIGURG)
            thread.join(0.001)


@pytest.fixture
def woken(house: MakeHouse, interruptible: None, request: pytest.FixtureRequest) -> tuple[House, Receiver, Receiver]:
    """A house; a receiver that has slept, was woken by the message that is there, and has not taken it yet; and another
    one, of another worker. The parameter is how many messages there are: a later one might be behind a nudge."""
    here = house(2)
    for seat in range(2):
        here.enter(seat, 16, pool=True)
    all_ends = [here.ends(seat) for seat in range(2)]
    first, second = (Receiver(ends.pool_fd, ends, 0) for ends in all_ends)
    rcs: list[int] = []
    thread = threading.Thread(target=lambda: rcs.append(first._wait()))
    thread.start()
    wait_until(lambda: first.sleeps and is_asleep(thread), "the thread sleeps")
    feed(here, getattr(request, "param", 1))
    thread.join()
    assert rcs == [1]
    return here, first, second


def take_at_once(here: House, receiver: Receiver) -> int:
    rc = receiver._take(False)
    if rc == 1:
        here.arrived(receiver.arrival)
    return rc


def test_a_message_is_for_the_one_that_it_has_woken(woken: tuple[House, Receiver, Receiver]) -> None:
    here, first, second = woken
    assert take_at_once(here, second) == -errno.EAGAIN
    assert take_at_once(here, first) == 1
    feed(here, 1)
    assert take_at_once(here, second) == 1, "nobody waits any more"


@pytest.mark.parametrize("woken", [2], indirect=True)
def test_a_message_more_is_for_who_comes(woken: tuple[House, Receiver, Receiver]) -> None:
    here, first, second = woken
    assert take_at_once(here, second) == 1
    assert take_at_once(here, second) == -errno.EAGAIN
    assert take_at_once(here, first) == 1


def test_one_that_was_woken_and_does_not_come_is_not_waited_for_for_ever(
    woken: tuple[House, Receiver, Receiver],
) -> None:
    """The one before it was stopped or killed, or does not get the interpreter's lock."""
    here, _, second = woken
    assert second.take(False) == 1
    here.arrived(second.arrival)
    feed(here, 2)
    assert second.take(False) == 1
    here.arrived(second.arrival)
    assert second.take(False) == 1
    here.arrived(second.arrival)


def test_one_that_has_left_is_not_waited_for(woken: tuple[House, Receiver, Receiver]) -> None:
    """Its worker is out of rotation, although its page counts it."""
    here, _, second = woken
    here.core.leave(0)
    assert take_at_once(here, second) == 1


def test_a_cancelled_one_waits_no_more(woken: tuple[House, Receiver, Receiver]) -> None:
    here, first, second = woken
    first.cancel()
    assert take_at_once(here, first) == -errno.ECANCELED
    assert take_at_once(here, second) == 1


def test_who_waits_for_its_turn_sleeps_when_the_message_is_gone(woken: tuple[House, Receiver, Receiver]) -> None:
    here, first, second = woken
    rcs: list[int] = []
    thread = threading.Thread(target=lambda: rcs.append(second._wait()))
    thread.start()
    assert take_at_once(here, first) in (1, -errno.EAGAIN)  # the other has waited as long as one waits
    thread.join(0.01)
    feed(here, 1)
    thread.join()
    assert rcs in ([0], [1])
    assert take_at_once(here, second) == 1


def test_a_channel_that_somebody_made_non_blocking(house: MakeHouse, interruptible: None) -> None:
    """O_NONBLOCK is shared by all who have the channel: one worker's mistake must not end all the others."""
    here = house()
    worker = here.worker(0, pool=True)
    with socket.socket(fileno=os.dup(worker.fd)) as careless:
        careless.settimeout(1)
    rcs: list[int] = []
    thread = threading.Thread(target=lambda: rcs.append(worker.receiver.take(False)))
    thread.start()
    wait_until(lambda: rcs or (worker.receiver.sleeps and is_asleep(thread)), "it sleeps")
    feed(here, 1)
    thread.join()
    assert rcs == [1]
    here.arrived(worker.receiver.arrival)


# ---- what a child keeps ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seat", [0, 2, 4])
def test_abandon_keeps_two_descriptors_and_a_page(seat: int) -> None:
    def act() -> None:
        before = descriptors()
        with House(5) as here:
            here.listen()
            here.listen("", socket.AF_UNIX)
            for number in range(3):
                here.enter(number)
            here.connect(3)
            here.settle()
            clients = {client.fileno() for client in here.clients}
            maps = pages()
            ends = here.core.abandon(seat)
            assert descriptors() - before - clients == {ends.pool_fd, ends.seat_fd}
            assert maps - pages() == 4
            address = int(ffi.cast("uintptr_t", ends.score))
            assert address % mmap.PAGESIZE == 0
            ends.done()
            os.close(ends.pool_fd)
            os.close(ends.seat_fd)
            here._all_ends.clear()

    in_child(act)


def pages() -> int:
    """Of shared anonymous memory that this process has mapped."""
    count = 0
    with open("/proc/self/maps", encoding="ascii") as lines:
        for line in lines:
            if "/dev/zero (deleted)" in line:
                start, end = (int(part, 16) for part in line.split()[0].split("-"))
                count += (end - start) // mmap.PAGESIZE
    return count


def test_abandon_does_not_edit_the_masters_epoll_sets(house: MakeHouse) -> None:
    here = house(3)
    workers = [here.worker(seat) for seat in range(3)]
    reading, writing = socket.socketpair()
    with reading, writing:
        here.core.watch(reading.fileno(), 5)
        for seat in range(3):
            here.ends(seat)
        here.connect(9)
        writing.send(b"!")
        here.run_until(lambda: sum(here.untaken()) == 9 and any(e.token == 5 for e in here.events), "all is watched")
        here.core.unwatch(reading.fileno())
    assert [len(worker.take()) for worker in workers] == [3, 3, 3]


def test_a_child_keeps_no_connection_that_was_in_the_masters_hands(house: MakeHouse) -> None:
    here = house(2)
    first = here.worker(0)
    feed(here, 4)
    first.leave()
    before = descriptors()
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            here.core.abandon(1)
            os.write(writing, b"%d" % len(descriptors()))
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    left = int(os.read(reading, 100))
    os.close(reading)
    os.close(writing)
    assert left < len(before)


def test_two_cores_live_in_one_process() -> None:
    with House(1) as one, House(2) as two:
        for here in (one, two):
            here.listen()
        workers = [one.worker(0), two.worker(0), two.worker(1)]
        one.connect(4)
        two.connect(6)
        one.settle()
        two.settle()
        assert [len(worker.take()) for worker in workers] == [4, 3, 3]
        assert (one["accepted"], two["accepted"]) == (4, 6)


def test_a_core_that_was_not_closed_warns_and_closes(house: MakeHouse) -> None:
    before = descriptors()
    core = Core(2, Policy.ROUND_ROBIN)
    with pytest.warns(ResourceWarning, match="not closed"):
        del core
    assert descriptors() == before


# ---- workers that are no children ------------------------------------------------------------------------------------


def test_a_worker_that_is_sent_what_it_needs() -> None:
    """Two descriptors and its own page: what it does is seen on that, and on no other."""
    before = descriptors()
    with Core(3, Policy.ROUND_ROBIN) as core:
        core.share()
        for seat in range(3):
            core.begin(seat, 7, seat)
        fds = core.ends(1)
        held = descriptors() - before
        assert set(fds) <= held
        ends = WorkerEnds.of(EndFds(*map(os.dup, fds)), 1)
        assert descriptors() - before - held == {ends.pool_fd, ends.seat_fd}, "the scoreboard's file is closed"
        for size in (0, 1 << 30):
            with pytest.raises(PermissionError):  # the master would read beyond its end
                os.ftruncate(fds.scoreboard_fd, size)
        core.enter(1, pool=False, threads=0, size=8)
        Receiver(ends.seat_fd, ends, 0, 8).take_ready(8)
        ends.done()
        assert [core.look(seat).beat_ns > 0 for seat in range(3)] == [False, True, False]
        assert [core.look(seat).generation for seat in range(3)] == [7, 7, 7]
        os.close(ends.pool_fd)
        os.close(ends.seat_fd)
    assert descriptors() == before


def test_a_board_that_cannot_be_mapped_leaves_nothing_open(tmp_path: Path) -> None:
    before = descriptors()
    fds = EndFds(*(os.open(tmp_path, os.O_RDONLY) for _ in EndFds._fields))
    with pytest.raises(OSError, match="map page 0 of the scoreboard"):
        WorkerEnds.of(fds, 0)
    assert descriptors() == before


def test_a_core_that_cannot_be_shared_is_as_before() -> None:
    with Core(3, Policy.ROUND_ROBIN) as core:
        before = descriptors()
        with free_descriptors(0), pytest.raises(OSError, match="make a file of the scoreboard"):
            core.share()
        assert descriptors() == before
        core.begin(0, 1, 0)
        assert core.look(0).generation == 1


def test_the_wait_may_have_a_limit(house: MakeHouse) -> None:
    """SO_RCVTIMEO, which all who share the channel have then."""
    here = house()
    worker = here.worker(0, pool=True)
    with socket.socket(fileno=os.dup(worker.ends.pool_fd)) as channel:
        channel.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("@ll", 0, 20_000))
        assert worker.receiver.take(False) == -errno.EAGAIN
        assert here.core.look(0).busy_threads == 0
        feed(here, 1)
        assert worker.receiver.take(False) == 1
        os.close(worker.receiver.arrival.fd)
