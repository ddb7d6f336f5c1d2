"""channel: its size against what the kernel then refuses; what passes through it, back out of it, or breaks it."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import random
import select
import signal
import socket
import stat
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pyfanout.core import BATCH, POOL, EventKind, Receiver, interrupt_with

from .kit import Faults, House, Worker, clients_of, descriptors, free_descriptors, state_of, wait_until

MakeHouse = Callable[..., House]

SO_ATTACH_FILTER, SO_LOCK_FILTER, SO_PASSRIGHTS = 26, 44, 83  # the socket module has no names for them
DEFAULT_BYTES = int(Path("/proc/sys/net/core/wmem_default").read_text())
BROKEN = (errno.EPIPE, errno.ECONNRESET, errno.ECONNREFUSED, errno.ENOTCONN)


def write_end(worker: Worker) -> socket.socket:
    """A duplicate of the master's end of a worker's channel, which is empty."""
    for fd in descriptors():
        if not stat.S_ISSOCK(os.fstat(fd).st_mode):
            continue
        found = socket.socket(fileno=os.dup(fd))
        if found.type == socket.SOCK_SEQPACKET:
            with contextlib.suppress(BrokenPipeError):  # a reading end: nothing goes back through it
                found.send(b"?", socket.MSG_DONTWAIT)
            if select.select([worker.fd], [], [], 0)[0]:
                os.read(worker.fd, 1)
                return found
        found.close()
    raise AssertionError("no descriptor writes into the channel")


# ---- size --------------------------------------------------------------------------------------------------------


def fill(end: socket.socket, example: bytes) -> int:
    """Put nudges into a channel until the kernel refuses; how many it took."""
    nudge = bytearray(len(example))
    struct.pack_into("=i", nudge, 16, -1)  # FAN_NUDGE in place of the listener, see fan_record
    count = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            end.send(nudge, socket.MSG_DONTWAIT)
            count += 1
    return count


@pytest.mark.parametrize("size", range(6, 65))
def test_the_kernel_takes_exactly_size_messages_and_is_hungry_at_a_quarter(house: MakeHouse, size: int) -> None:
    here = house()
    worker = here.worker(0, size)
    assert worker.size == size
    with write_end(worker) as end, socket.socket(fileno=os.dup(worker.fd)) as peeking:
        here.connect(size + 40)
        here.settle()
        passed = here.core.untaken(0)
        assert passed == min(size, BATCH)
        assert passed + fill(end, peeking.recv(4096, socket.MSG_PEEK)) == size

        granted = end.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
        quarter = (granted // 4 - 1) // here.core.message_bytes
        assert 1 <= quarter <= size // 4
        poll = select.poll()
        poll.register(end, select.POLLOUT)
        for left in range(size - 1, quarter - 1, -1):
            assert not poll.poll(0), f"POLLOUT with {left + 1} untaken of {size}"
            here.settle()
            assert here.core.untaken(0) == left + 1, "the master feeds one that is not hungry"
            peeking.recv(4096)  # and the connection, whose client sees it closed
        assert poll.poll(0)
        here.settle()
        assert here.core.untaken(0) == min(size, quarter + BATCH), "the master does not fill one that is hungry"
    assert here["full_channels"] == 0
    here.check()


def test_what_is_passed_arrives_in_order_however_slowly_it_is_taken(house: MakeHouse, rng: random.Random) -> None:
    here = house()
    worker = here.worker(0, 12)
    here.connect(150)
    order: list[int] = []
    while len(order) < 150:
        here.settle()
        order += clients_of(worker.take(rng.randint(1, 12)))
    assert order == list(range(150))
    assert here["full_channels"] == 0
    here.check()


def test_a_size_below_the_kernels_least_is_raised_and_true(house: MakeHouse) -> None:
    here = house()
    worker = here.worker(0, 1)
    here.connect(20)
    here.settle()
    assert here.core.untaken(0) == worker.size >= 1
    assert here["full_channels"] == 0


def test_a_size_above_the_kernels_most_is_cut_and_true(house: MakeHouse) -> None:
    here = house()
    worker = here.worker(0, 100_000)
    assert 64 < worker.size <= 100_000
    with write_end(worker) as end, socket.socket(fileno=os.dup(worker.fd)) as peeking:
        here.connect()
        here.settle()
        assert 1 + fill(end, peeking.recv(4096, socket.MSG_PEEK)) == worker.size


def test_a_channel_that_is_made_smaller_than_what_it_holds(house: MakeHouse) -> None:
    here = house(2)
    worker = here.worker(0, 32)
    here.connect(40)
    here.settle()
    worker.leave()
    here.begin(0)
    assert here.core.enter(0, pool=False, threads=0, size=6) == 6
    here.settle()
    assert here.untaken() == [32, 0, 0]
    assert here["full_channels"] == 0
    order = []
    while len(order) < 40:
        order += clients_of(worker.take(1))
        here.settle()
        here.check()
    assert order == list(range(40))


# ---- what passes through -----------------------------------------------------------------------------------------


def test_untaken_counts_messages(house: MakeHouse) -> None:
    here = house(2)
    workers = [here.worker(0), here.worker(1)]
    here.connect(6)
    here.settle()
    assert here.untaken() == [3, 3, 0]
    workers[1].take(2)
    assert here.untaken() == [3, 1, 0]
    workers[1].take()
    workers[0].take()
    assert here.untaken() == [0, 0, 0]


def test_records_arrive_as_they_were_accepted(house: MakeHouse) -> None:
    here = house()
    here.listen("", socket.AF_UNIX)
    worker = here.worker(0, 32)
    here.connect(20, 0)
    here.settle()
    taken = worker.take()
    here.connect(20, 1)
    here.settle()
    taken += worker.take()
    assert clients_of(taken) == list(range(40))
    assert [arrival.sequence for arrival in taken] == list(range(1, 41))
    assert [arrival.listener for arrival in taken] == [0] * 20 + [1] * 20
    times = [arrival.accepted_ns for arrival in taken]
    assert times == sorted(times)
    assert times[0] > 0


def test_addresses_are_those_that_accept_would_give(house: MakeHouse) -> None:
    here = house()
    worker = here.worker(0, 32)
    hosts = ["127.0.0.1", "127.0.0.9", "127.10.99.100", "127.109.200.1", "127.255.255.254"]
    sources = [client.getsockname() for host in hosts for client in here.connect(source=(host, 0))]
    here.settle()
    assert [arrival.peer for arrival in worker.take()] == sources


def test_connections_are_blocking_for_threads_and_not_for_loops(house: MakeHouse) -> None:
    here = house()
    worker = here.worker(0)
    here.connect()
    here.settle()
    assert [arrival.nonblocking for arrival in worker.take()] == [True]
    worker.leave()
    worker = here.worker(0, pool=True)
    here.connect()
    here.settle()
    assert [arrival.nonblocking for arrival in worker.take()] == [False]


def test_the_flag_is_the_descriptors_and_close_on_exec_is_set(house: MakeHouse) -> None:
    here = house()
    worker = here.worker(0)
    here.connect()
    here.settle()
    count, raws = worker.receiver.take_ready(1)
    (raw,) = raws
    assert count == 1
    try:
        assert os.get_blocking(raw.fd) is False
        assert os.get_inheritable(raw.fd) is False
    finally:
        os.close(raw.fd)


def test_the_master_keeps_no_copy(house: MakeHouse) -> None:
    here = house()
    worker = here.worker(0)
    (client,) = here.connect()
    here.settle()
    (arrival,) = worker.take()
    arrival.sock.close()
    client.settimeout(15)
    assert client.recv(1) == b""


# ---- recall ------------------------------------------------------------------------------------------------------


def test_recall_keeps_order_and_records(house: MakeHouse) -> None:
    here = house(2)
    first = here.worker(0)
    here.connect(20)
    here.settle()
    taken = first.take(5)
    first.leave()
    here.connect(10)
    second = here.worker(1, 32)
    here.settle()
    moved = second.take()
    here.settle()
    moved += second.take()
    assert clients_of(taken) == list(range(5))
    assert clients_of(moved) == list(range(5, 30))
    assert [arrival.sequence for arrival in moved] == list(range(6, 31))
    assert [arrival.peer for arrival in moved] == [here.clients[i].getsockname() for i in range(5, 30)]
    assert here["recalled"] == 15
    here.check()


@pytest.mark.parametrize("free", [0, 1, 2])
def test_recall_without_a_free_descriptor_loses_nothing(house: MakeHouse, free: int) -> None:
    """The kernel closes what it recalls into a full table; so the master must ask for a place first."""
    here = house(2)
    first = here.worker(0)
    here.connect(20)
    here.settle()
    second = here.worker(1, 32)
    first.leave()
    with free_descriptors(free):
        here.settle()
    assert here.take_until([second], 20) == list(range(20))
    assert here["lost"] == 0
    here.check()


def test_recall_goes_on_after_an_interrupt(house: MakeHouse, faults: Faults) -> None:
    here = house(2)
    first = here.worker(0)
    here.connect(8)
    here.settle()
    second = here.worker(1)
    faults.fail("recvmsg", errno.EINTR, after=3)
    first.leave()
    here.run_until(lambda: here.untaken() == [0, 8, 0], "all are recalled")
    assert clients_of(second.take()) == list(range(8))


# ---- nudge -------------------------------------------------------------------------------------------------------


class Sleeper(threading.Thread):
    """A thread that takes once."""

    def __init__(self, house: House, seat: int, thread: int = 0) -> None:
        super().__init__()
        self.ends = house.ends(seat)
        self.receiver = Receiver(self.ends.pool_fd, self.ends, thread)
        self.rc: int | None = None
        self.start()
        self.wait_asleep()

    def run(self) -> None:
        self.rc = self.receiver.take(False)

    def asleep(self) -> bool:
        return self.receiver.sleeps and state_of(os.getpid(), self.native_id) == "S"

    def wait_asleep(self) -> None:
        wait_until(self.asleep, "the thread sleeps in take")

    def end(self) -> None:
        self.receiver.cancel()
        while self.is_alive():
            with contextlib.suppress(ProcessLookupError):
                signal.pthread_kill(self.ident or 0, signal.SIGURG)
            self.join(0.001)


@pytest.fixture
def sleeper(house: MakeHouse) -> Iterator[Callable[..., Sleeper]]:
    """Makes sleepers; each is woken and joined in the end."""
    before = signal.getsignal(signal.SIGURG)
    interrupt_with(signal.SIGURG)
    made: list[Sleeper] = []

    def make(*arguments: Any) -> Sleeper:
        made.append(Sleeper(*arguments))
        return made[-1]

    yield make
    for each in made:
        each.end()
        if each.rc == 1:
            os.close(each.receiver.arrival.fd)
    signal.signal(signal.SIGURG, before or signal.SIG_DFL)


class Dying(Sleeper):
    """A worker that was woken by a message, and died before it took it."""

    def run(self) -> None:
        self.receiver._wait()


def test_a_wake_up_that_died_is_given_to_exactly_one_other(house: MakeHouse, sleeper: Callable[..., Sleeper]) -> None:
    here = house(3)
    for seat in range(3):
        here.enter(seat, 12, pool=True)
    first, second, third = Dying(here, 0), sleeper(here, 1), sleeper(here, 2)
    here.connect()
    here.run_until_passed(1)
    first.join()
    assert second.asleep()
    wait_until(lambda: here.core.run(0) or here["nudges"], "the next one is nudged")
    wait_until(lambda: not second.is_alive(), "it wakes")
    assert second.rc == 1
    assert third.asleep()
    assert here["nudges"] == 1
    assert here.core.untaken(POOL) == 1, "the nudge itself"
    here.check()
    # The nudge is no connection: it is skipped by who comes across it.
    here.connect()
    here.run_until(lambda: not third.is_alive(), "the third one wakes")
    assert third.rc == 1
    assert here.core.untaken(POOL) <= here["nudges"] - 1, "no more than it was nudged again"
    assert [here.core.look(seat).taken for seat in range(3)] == [0, 1, 1]


def test_a_worker_that_leaves_has_the_next_one_woken(house: MakeHouse, sleeper: Callable[..., Sleeper]) -> None:
    here = house(2)
    for seat in range(2):
        here.enter(seat, 8, pool=True)
    first, other = Dying(here, 0), sleeper(here, 1)
    here.connect()
    here.run_until_passed(1)
    first.join()
    assert other.asleep()
    here.core.leave(0)
    assert here["nudges"] == 1
    wait_until(lambda: not other.is_alive(), "the other one wakes")
    assert other.rc == 1


def test_nobody_is_nudged_when_all_are_busy(house: MakeHouse, faults: Faults) -> None:
    here = house()
    worker = here.worker(0, 8, pool=True)
    here.connect(4)
    here.run_until_passed(4)
    assert worker.receiver.take(False) == 1  # marks the thread as busy
    here.run_for(60_000_000)
    assert here["nudges"] == 0
    assert here.core.untaken(POOL) == 3
    here.arrived(worker.receiver.arrival)


def test_nudges_are_not_repeated_for_ever(house: MakeHouse) -> None:
    """A reader that seems idle and does not take, for it is stopped, gets one nudge for each of its threads."""
    here = house()
    here.enter(0, 16, pool=True, threads=3)
    here.connect(2)
    here.run_until(lambda: here["nudges"] == 3, "each is nudged")
    here.run_for(60_000_000)
    assert here["nudges"] == 3
    assert here.core.untaken(POOL) == 5
    here.check()


def test_nudges_for_one_client_are_none_for_the_next(house: MakeHouse) -> None:
    """What was sent for the first, and read by somebody who took nothing, has woken nobody for the second."""
    here = house(2)
    busy, idle = (here.worker(seat, 16, pool=True) for seat in range(2))
    here.connect()
    here.run_until(lambda: here["nudges"] > 0, "one is nudged")
    assert busy.receiver.take(False) == 1
    here.run_for(60_000_000)
    with socket.socket(fileno=os.dup(idle.fd)) as channel, contextlib.suppress(BlockingIOError):
        while channel.recv(100, socket.MSG_DONTWAIT):
            pass
    before = here["nudges"]
    here.connect()
    here.run_until(lambda: here["nudges"] == before + 1, "one is nudged again")
    here.run_for(60_000_000)
    assert here["nudges"] == before + 1, "and no other is idle"
    assert idle.receiver.take(False) == 1
    for each in (busy, idle):
        here.arrived(each.receiver.arrival)
    here.check()


# ---- a channel is shut down by a worker ----------------------------------------------------------------------------


HOW = {"both": socket.SHUT_RDWR, "reading": socket.SHUT_RD}


@pytest.mark.parametrize("how", HOW.values(), ids=HOW)
@pytest.mark.parametrize("pool", [False, True], ids=["own", "pool"])
def test_a_broken_channel_is_replaced_and_nothing_in_it_is_lost(house: MakeHouse, how: int, pool: bool) -> None:
    here = house(2)
    before = here.own_descriptors()
    first = here.worker(0, 12, pool=pool)
    here.connect(5)
    here.settle()
    if how == socket.SHUT_RD:
        first.take(3)  # found out by what is passed next, so it must be hungry
    first.shut_down(how)
    here.connect(1)
    here.run_until(lambda: here.said(EventKind.CHANNEL_BROKEN), "it is reported")
    assert [event.token for event in here.said(EventKind.CHANNEL_BROKEN)] == [POOL if pool else 0]
    assert here["broken_channels"] == 1
    assert here["lost"] == 0
    here.check()

    second = here.worker(0, 12, pool=pool)
    here.connect(3)
    taken = here.take_until([second], 6 if how == socket.SHUT_RD else 9)
    assert sorted(taken) == list(range(9 - len(taken), 9))
    assert first.rest() == []
    here.settle()
    assert len(here.own_descriptors()) == len(before)


def test_what_waits_in_a_broken_channel_goes_to_others(house: MakeHouse) -> None:
    here = house(2)
    first = here.worker(0)
    here.connect(10)
    here.settle()
    second = here.worker(1)
    first.shut_down(socket.SHUT_RDWR)
    here.run_until(lambda: here.untaken() == [0, 10, 0], "the other one gets them")
    assert clients_of(second.take()) == list(range(10))
    assert here["broken_channels"] == 1
    here.check()


def test_a_worker_that_ends_only_its_own_direction_breaks_nothing(house: MakeHouse) -> None:
    here = house()
    worker = here.worker(0)
    worker.shut_down(socket.SHUT_WR)
    here.connect(50)
    taken: list[int] = []
    while len(taken) < 50:
        here.settle()
        taken += clients_of(worker.take())
    assert here["broken_channels"] == 0


@contextlib.contextmanager
def reading_end(worker: Worker) -> Iterator[socket.socket]:
    """Of the worker's channel, as the worker may use it."""
    with socket.socket(fileno=os.dup(worker.fd)) as end:
        yield end


def all_arrive(here: House, worker: Worker, count: int = 50) -> None:
    here.connect(count)
    assert sorted(here.take_until([worker], count)) == list(range(count))
    here.check()


def test_nothing_goes_back_through_a_reading_end(house: MakeHouse) -> None:
    """Descriptors that nobody reads would stay in flight, for all of the user's processes, after the worker's death."""
    here = house()
    worker = here.worker(0)
    with reading_end(worker) as end:
        with pytest.raises(BrokenPipeError):
            end.send(b"x")
        with pytest.raises(BrokenPipeError):
            socket.send_fds(end, [b"x"], [0])
    all_arrive(here, worker)
    assert here["broken_channels"] == 0


def test_nobody_puts_a_filter_before_a_reading_end(house: MakeHouse) -> None:
    """One that drops what is passed, with the kernel saying that it was taken."""
    here = house()
    worker = here.worker(0)
    drop_all = ctypes.create_string_buffer(struct.pack("=HBBI", 6, 0, 0, 0))  # BPF_RET | BPF_K, 0
    program = struct.pack("@HP", 1, ctypes.addressof(drop_all))
    with reading_end(worker) as end:
        for option, value in ((SO_ATTACH_FILTER, program), (SO_LOCK_FILTER, struct.pack("i", 0))):
            with pytest.raises(PermissionError):
                end.setsockopt(socket.SOL_SOCKET, option, value)
    all_arrive(here, worker)


def passes_rights(end: socket.socket) -> bool:
    """False before Linux 6.16, too."""
    with contextlib.suppress(OSError):
        return bool(end.getsockopt(socket.SOL_SOCKET, SO_PASSRIGHTS))
    return False


def test_a_reading_end_that_refuses_descriptors_is_mended(house: MakeHouse) -> None:
    here = house(2)
    worker = here.worker(0)
    with reading_end(worker) as end:
        if not passes_rights(end):
            pytest.skip("this kernel has no SO_PASSRIGHTS")
        end.setsockopt(socket.SOL_SOCKET, SO_PASSRIGHTS, 0)
        all_arrive(here, worker)
        assert passes_rights(end)
    assert not here.said(EventKind.PAUSED)


def test_what_a_security_module_refuses_is_said_and_tried_again(house: MakeHouse, faults: Faults) -> None:
    here = house()
    worker = here.worker(0)
    faults.fail("sendmmsg", errno.EPERM, times=3)
    here.connect(5)
    assert here.take_until([worker], 5) == list(range(5))
    assert [event.error for event in here.said(EventKind.PAUSED)] == [errno.EPERM]
    assert here.said(EventKind.RESUMED)
    assert faults.calls("sendmmsg") <= 6, "it spins"


@pytest.mark.parametrize("call", ["setsockopt", "getsockopt"])
def test_a_size_that_the_kernel_refuses(house: MakeHouse, faults: Faults, call: str) -> None:
    """It keeps the one that it has, and the worker comes into rotation."""
    here = house()
    faults.fail(call, errno.ENOMEM)
    worker = here.worker(0, 12)
    assert faults.failed(call) == 1
    assert worker.size == (12 if call == "getsockopt" else (DEFAULT_BYTES - 1) // here.core.message_bytes + 1)
    all_arrive(here, worker)


def test_what_waits_in_a_pool_that_nobody_reads_goes_to_others(house: MakeHouse) -> None:
    """A worker said that it reads the pool's channel, and the others have one each."""
    here = house(2)
    liar = here.worker(0, 8, pool=True)
    here.connect(6)
    here.settle()
    assert here.untaken() == [0, 0, 6 + here["nudges"]]
    honest = here.worker(1)
    liar.leave()
    assert sorted(here.take_until([honest], 6)) == list(range(6))
    here.check()


def test_so_it_does_when_the_others_come_later(house: MakeHouse) -> None:
    here = house(2)
    liar = here.worker(0, 8, pool=True)
    here.connect(6)
    here.settle()
    liar.leave()
    here.settle()
    assert here.untaken() == [0, 0, 6 + here["nudges"]]
    honest = here.worker(1)
    assert sorted(here.take_until([honest], 6)) == list(range(6))
    here.check()


@pytest.mark.parametrize("error", BROKEN)
def test_a_refusal_that_says_broken(house: MakeHouse, faults: Faults, error: int) -> None:
    here = house(2)
    first, second = here.worker(0), here.worker(1)
    here.connect(2)
    here.settle()
    faults.fail("sendmmsg", error)
    here.connect(4)
    here.run_until(lambda: here.untaken()[1] == 6, "all go to the other one")
    assert here["broken_channels"] == 1
    assert sorted(clients_of(second.take())) == list(range(6))
    assert first.rest() == []
    here.check()


@pytest.mark.parametrize("pool", [False, True], ids=["own", "pool"])
@pytest.mark.parametrize("free", range(5))
def test_a_channel_breaks_while_descriptors_are_short(house: MakeHouse, free: int, pool: bool) -> None:
    """The new pair needs two descriptors, what moves into it one more; whatever is missing, nothing may be lost and
    no descriptor of somebody else's may be closed."""
    here = house(2)
    first = here.worker(0, 12, pool=pool)
    here.connect(5)
    here.settle()
    before = here.own_descriptors()
    first.shut_down(socket.SHUT_RDWR)
    with free_descriptors(free):
        here.settle()
        here.settle()
    after = here.own_descriptors()
    assert len(set(before.items()) - set(after.items())) <= 2, "only the pair may be gone"
    assert here["lost"] == 0
    here.connect(1)
    reported = len(here.said(EventKind.CHANNEL_BROKEN))
    second = here.worker(0, 12, pool=pool)
    here.settle()
    if len(here.said(EventKind.CHANNEL_BROKEN)) > reported:  # the old pair had stayed, and broke again
        second = here.worker(0, 12, pool=pool)
    assert sorted(here.take_until([second], 6, keep=False)) == list(range(6))
    here.check()
    here.settle()
    assert len(here.own_descriptors()) == len(before)


def test_more_waits_in_a_broken_channel_than_its_size(house: MakeHouse) -> None:
    """It was made smaller when its worker was replaced, and what waited in it stayed."""
    here = house()
    first = here.worker(0, 32)
    here.connect(32)
    here.settle()
    first.leave()
    second = here.worker(0, 6)
    second.shut_down(socket.SHUT_RDWR)
    here.run_until(lambda: here.said(EventKind.CHANNEL_BROKEN), "it is reported")
    assert here["lost"] == 0
    third = here.worker(0, 32)
    assert sorted(here.take_until([third], 32)) == list(range(32))


@pytest.mark.parametrize("error", [errno.ENOBUFS, errno.ETOOMANYREFS, errno.ENOMEM])
def test_the_kernel_refuses_while_a_broken_channel_is_moved(house: MakeHouse, faults: Faults, error: int) -> None:
    here = house()
    first = here.worker(0, 12)
    here.connect(5)
    here.settle()
    first.shut_down(socket.SHUT_RDWR)
    faults.fail("sendmmsg", error, after=2, times=2)
    here.run_until(lambda: here.said(EventKind.CHANNEL_BROKEN), "it is reported")
    assert here["lost"] == 0
    second = here.worker(0, 12)
    assert sorted(here.take_until([second], 5)) == list(range(5))
    here.check()


def test_many_channels_that_break_at_once_are_all_reported(house: MakeHouse) -> None:
    here = house(12)
    workers = [here.worker(seat) for seat in range(12)]
    for worker in workers:
        worker.shut_down(socket.SHUT_RDWR)
    here.run_until(lambda: here["broken_channels"] == 12, "all are found")
    here.settle()
    assert sorted(event.token for event in here.said(EventKind.CHANNEL_BROKEN)) == list(range(12))


def test_a_channel_that_is_broken_again_before_it_was_emptied(house: MakeHouse) -> None:
    """The only worker breaks it, and so does its replacement, before anybody could take what waited: the third can."""
    here = house(1)
    first = here.worker(0, 12)
    here.connect(6)
    here.settle()
    first.shut_down(socket.SHUT_RDWR)
    here.settle()
    second = here.worker(0, 12)
    second.shut_down(socket.SHUT_RDWR)
    here.settle()
    third = here.worker(0, 12)
    here.connect(2)
    assert sorted(here.take_until([third], 8)) == list(range(8))
