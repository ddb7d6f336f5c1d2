"""What the tests of the core share: a house of workers in one process, faults, shortages, children.

A `House` is a core with its listeners, clients and workers, all in the test's own process: a forked child that calls
`Core.abandon` tells under which numbers and at which address it finds its reading ends and its page. They are the same
in the process that forked it, so that the test can be each of the workers itself, one step after the other.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import resource
import select
import signal
import socket
import struct
import sysconfig
import termios
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from pyfanout._core import ffi, lib

from pyfanout.config import Policy
from pyfanout.core import BATCH, POOL, Core, Event, EventKind, Receiver, WorkerEnds

DEADLINE_S = 10.0
"""Before a test says that something does not happen: far more than it takes on a busy machine of two cores."""

POKE = (1 << 48) - 1
"""The token of what ends `House.run_until`."""


def wait_until(condition: Callable[[], object], what: str) -> None:
    """AssertionError if `condition` does not become true before the deadline."""
    end = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end, f"not within {DEADLINE_S:g} s: {what}"
        time.sleep(0.001)


# ---- faults ------------------------------------------------------------------------------------------------------


class Faults:
    """Lets system calls of the core, and only of the core, fail; counts them. See faults.c."""

    def __init__(self, library: Path) -> None:
        self._library = ctypes.CDLL(str(library))
        for name in ("faults_calls", "faults_failed"):
            getattr(self._library, name).restype = ctypes.c_long
        inside = int(ffi.cast("uintptr_t", ffi.addressof(lib, "fan_core_new")))
        met = self._library.faults_install(ctypes.c_void_p(inside))
        assert met > 10, f"cannot meet the calls of the core: {met}"

    def fail(self, call: str, error: int, *, after: int = 0, times: int = 1) -> None:
        """After `after` more calls of `call`, the next `times` fail with `error`."""
        self._library.faults_set(call.encode(), error, ctypes.c_long(after), ctypes.c_long(times))

    def calls(self, call: str) -> int:
        """How often the core has called it since the test began."""
        return int(self._library.faults_calls(call.encode()))

    def failed(self, call: str) -> int:
        """How many of those calls were made to fail."""
        return int(self._library.faults_failed(call.encode()))

    def limit(self, messages: int) -> None:
        """sendmmsg takes no more than `messages` at once from now on."""
        self._library.faults_limit(messages)

    def stop_clock(self) -> None:
        """The core's clock stands still from now on: what it does by the clock, it does not, however slow the machine.
        Its waits last as long as they would."""
        self._library.faults_stop_clock()

    def reset(self) -> None:
        self._library.faults_reset()


@contextmanager
def free_descriptors(count: int) -> Iterator[None]:
    """This process can open `count` more descriptors at one time, no more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = 0
    number = 0
    while True:
        try:
            fcntl.fcntl(number, fcntl.F_GETFD)
        except OSError:
            if free == count:
                break
            free += 1
        number += 1
    resource.setrlimit(resource.RLIMIT_NOFILE, (number, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def descriptors() -> set[int]:
    """Those that are open in this process."""
    numbers = {int(name) for name in os.listdir("/proc/self/fd")}
    return {number for number in numbers if is_open(number)}  # without the one that listed them


def is_open(fd: int) -> bool:
    try:
        fcntl.fcntl(fd, fcntl.F_GETFD)
    except OSError:
        return False
    return True


# ---- children ----------------------------------------------------------------------------------------------------


def in_child(act: Callable[[], object], meanwhile: Callable[[], object] | None = None) -> None:
    """Run `act` in a forked child, and `meanwhile` here. AssertionError with the child's traceback, or how it died."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.close(reading)
            act()
            code = 0
        except BaseException:
            os.write(writing, traceback.format_exc()[-60_000:].encode())
        finally:
            os._exit(code)
    os.close(writing)
    said = b""
    end = time.monotonic() + 2 * DEADLINE_S
    try:
        if meanwhile is not None:
            meanwhile()
        while True:
            ready, _, _ = select.select([reading], [], [], max(end - time.monotonic(), 0))
            if not ready:
                os.kill(pid, signal.SIGKILL)
                said += b"it did not end before the deadline"
                break
            part = os.read(reading, 65536)
            if not part:
                break
            said += part
    finally:
        os.close(reading)
        _, status = os.waitpid(pid, 0)
    assert (status, said) == (0, b""), f"in the child (status {status}): {said.decode()}"


def state_of(pid: int, thread: int | None = None) -> str:
    """As /proc has it: R, S, T and so on."""
    path = f"/proc/{pid}/task/{thread or pid}/stat"
    return Path(path).read_text().rpartition(")")[2].split()[0]


# ---- the house ---------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Arrival:
    """A connection that a worker has taken."""

    sock: socket.socket
    client: int
    """The number of the client, which is the first that it sends."""
    peer: Any
    """As `socket.accept` would give it."""
    listener: int
    sequence: int
    nonblocking: bool
    accepted_ns: int


def peer_of(arrival: Any) -> Any:
    """The address in a fan_connection, as `socket.accept` would give it."""
    host = ffi.unpack(arrival.host, arrival.host_bytes)
    if arrival.family == socket.AF_INET:
        return host.decode(), arrival.port
    if arrival.family == socket.AF_INET6:
        return host.decode(), arrival.port, arrival.flowinfo, arrival.scope_id
    return host if host[:1] == b"\0" else os.fsdecode(host)


class House:
    """A core, its listeners and clients, and the workers, which are played by the test."""

    def __init__(self, seats: int = 1, policy: Policy = Policy.ROUND_ROBIN, *, shared: bool = False) -> None:
        """`shared`: with a file of the scoreboard, for joined workers."""
        self.core = Core(seats, policy)
        self.seats = seats
        self.clients: list[socket.socket] = []
        self.events: list[Event] = []
        self.addresses: list[Any] = []
        """Of the listeners, by number."""
        self._families: list[int] = []
        self._generations = [0] * seats
        self._all_ends: list[WorkerEnds] = []
        self._arrivals: list[Arrival] = []
        try:
            if shared:
                self.core.share()
            for seat in range(seats):
                self.core.begin(seat, 0, seat)
        except BaseException:
            self.core.close()
            raise

    def __enter__(self) -> House:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.core.close()
        for arrival in self._arrivals:
            arrival.sock.close()
        for client in self.clients:
            client.close()
        for ends in self._all_ends:
            os.close(ends.pool_fd)
            os.close(ends.seat_fd)

    # ---- listeners and clients

    def listen(self, address: Any = ("127.0.0.1", 0), family: int = socket.AF_INET, *, dual: bool = False) -> int:
        """One more listener; its number."""
        with socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as listener:
            if family == socket.AF_INET6:
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not dual)
            listener.bind(address)
            listener.listen(4096)
            name = listener.getsockname()
            number = self.core.listen(listener.fileno())
            listener.detach()
        self.addresses.append(name)
        self._families.append(family)
        return number

    def connect(self, count: int = 1, number: int = 0, *, to: Any = None, source: Any = None) -> list[socket.socket]:
        """`count` more clients. Each says its number, which is its index in `clients`, at once."""
        family, new = self._families[number] if to is None else socket.AF_INET, []
        for _ in range(count):
            client = socket.socket(family)
            self.clients.append(client)
            new.append(client)
            if family != socket.AF_UNIX:  # else thousands of ports rest in TIME_WAIT
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            if source is not None:
                client.bind(source)
            client.connect(self.addresses[number] if to is None else to)
            client.sendall(struct.pack("!I", len(self.clients) - 1))
        return new

    # ---- workers

    def ends(self, seat: int) -> WorkerEnds:
        """What a worker forked now would have. A forked child says where it is; the descriptors are duplicates."""
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                ends = self.core.abandon(seat)
                places = [int(ffi.cast("uintptr_t", each)) for each in (ends.score, ends.turns)]
                os.write(writing, struct.pack("iiQQ", ends.pool_fd, ends.seat_fd, *places))
            finally:
                os._exit(0)
        os.waitpid(pid, 0)
        pool_fd, seat_fd, score, turns = struct.unpack("iiQQ", os.read(reading, 24))
        places = {"score": ffi.cast("fan_score *", score), "turns": ffi.cast("fan_turns *", turns)}
        raw = ffi.new(
            "fan_ends *", {"pool_fd": os.dup(pool_fd), "seat_fd": os.dup(seat_fd), "scoreboard_fd": -1, **places}
        )
        os.close(reading)
        os.close(writing)
        ends = WorkerEnds(raw, seat)
        self._all_ends.append(ends)
        return ends

    def enter(self, seat: int, size: int = 32, *, pool: bool = False, threads: int = 0) -> int:
        """A new worker, ready; the size that it was granted."""
        self.begin(seat)
        return self.core.enter(seat, pool=pool, threads=threads or pool, size=size)

    def begin(self, seat: int, identity: int | None = None) -> None:
        self._generations[seat] += 1
        self.core.begin(seat, self._generations[seat], seat if identity is None else identity)

    def worker(
        self,
        seat: int,
        size: int = 32,
        *,
        pool: bool = False,
        threads: int = 0,
        most: int = 0,
        identity: int | None = None,
    ) -> Worker:
        """A new worker, forked and ready. Its seat must be empty."""
        self.begin(seat, identity)
        worker = Worker(self, seat, self.ends(seat), pool)
        worker.size = self.core.enter(seat, pool=pool, threads=threads or pool, size=size, most=most)
        return worker

    def arrived(self, raw: Any, *, keep: bool = True) -> Arrival:
        """What a worker makes of a fan_connection; closed at once unless it shall be kept."""
        sock = socket.socket(raw.family, socket.SOCK_STREAM, 0, raw.fd)
        sock.setblocking(True)
        sock.settimeout(DEADLINE_S)
        (client,) = struct.unpack("!I", sock.recv(4))
        arrival = Arrival(
            sock, client, peer_of(raw), raw.listener, raw.sequence, bool(raw.nonblocking), raw.accepted_ns
        )
        if keep:
            self._arrivals.append(arrival)
        else:
            sock.close()
        return arrival

    # ---- time

    def settle(self) -> None:
        """Run the core until it has nothing more to do at once."""
        quiet = rounds = 0
        while quiet < 2:
            rounds += 1
            assert rounds < 1000, f"the core does not come to rest: {self.core.count()}"
            before = self.core.count()
            events = self.core.run(0)
            self.events += events
            quiet = 0 if events or self.core.count() != before else quiet + 1

    def run_until_passed(self, count: int) -> None:
        """Run the core until it has passed `count` connections, and not once more: on a busy machine their readers may
        not have taken any within 10 ms, and it nudges."""

        def passed() -> bool:
            self.events += self.core.run(0)
            return self["passed"] == count

        wait_until(passed, f"{count} connections are passed")

    def run_until(self, condition: Callable[[], object], what: str) -> None:
        """Run the core until `condition` is true; AssertionError if it does not become so.

        Nothing wakes the core meanwhile but its own affairs: a thread looks at the condition. So a core that sleeps
        although it has something to do is found out.
        """
        reading, writing = socket.socketpair()
        failures: list[BaseException] = []
        end = time.monotonic() + DEADLINE_S

        def look() -> None:
            try:
                while not condition() and time.monotonic() < end:
                    time.sleep(0.001)
                assert condition(), f"not within {DEADLINE_S:g} s: {what}; {self.core.count()}; {self.events}"
            except BaseException as error:
                failures.append(error)
            finally:
                writing.send(b"!")

        with reading, writing:
            self.core.watch(reading.fileno(), POKE)
            thread = threading.Thread(target=look)
            thread.start()
            try:
                poked = False
                while not poked:
                    events = self.core.run(None)
                    self.events += (event for event in events if event.token != POKE)
                    poked = any(event.token == POKE for event in events)
            finally:
                end = 0
                thread.join()
                self.core.unwatch(reading.fileno())
        if failures:
            raise failures[0]

    def take_until(self, workers: Sequence[Worker], count: int, *, keep: bool = True) -> list[int]:
        """Run the core while the workers take what they get; the clients, until there are `count`."""
        taken: list[int] = []

        def enough() -> bool:
            for worker in workers:
                taken.extend(clients_of(worker.take(keep=keep)))
            return len(taken) >= count

        self.run_until(enough, f"{count} connections arrive")
        return taken

    def run_for(self, timeout_ns: int) -> None:
        """Run the core for this time, whatever it has to say in between."""
        end_ns = time.monotonic_ns() + timeout_ns
        while (left_ns := end_ns - time.monotonic_ns()) > 0:
            self.events += self.core.run(left_ns)

    # ---- looking

    def __getitem__(self, counter: str) -> int:
        return self.core.count()[counter]

    def untaken(self) -> list[int]:
        """By seat, and the pool's at the end."""
        return [self.core.untaken(seat) for seat in (*range(self.seats), POOL)]

    def own_descriptors(self) -> dict[int, int]:
        """What is open in this process, with its inode, without what is the clients' and the workers'."""
        theirs = {fd for ends in self._all_ends for fd in (ends.pool_fd, ends.seat_fd)}
        theirs |= {client.fileno() for client in self.clients}
        theirs |= {arrival.sock.fileno() for arrival in self._arrivals}
        return {fd: os.fstat(fd).st_ino for fd in descriptors() - theirs}

    def said(self, kind: EventKind) -> list[Event]:
        return [event for event in self.events if event.kind is kind]

    def check(self) -> None:
        """The one identity of the counters."""
        count = self.core.count()
        assert count["accepted"] + count["recalled"] == count["passed"] + count["held"] + count["discarded"], count
        assert 0 <= count["held"] <= BATCH, count


class Worker:
    """One worker of a house, played by the test: takes when it is told to."""

    def __init__(self, house: House, seat: int, ends: WorkerEnds, pool: bool) -> None:
        self.house = house
        self.seat = seat
        self.ends = ends
        self.pool = pool
        self.fd = ends.pool_fd if pool else ends.seat_fd
        self.receiver = Receiver(self.fd, ends, 0, BATCH)
        self.size = 0
        self.lost = 0
        """By its takes with MSG_CTRUNC."""

    def take(self, cap: int = 1 << 30, *, keep: bool = True) -> list[Arrival]:
        """What waits, at most `cap`."""
        taken: list[Arrival] = []
        while len(taken) < cap:
            rc, raws = self.receiver.take_ready(min(cap - len(taken), BATCH))
            if rc == 0 or (rc == -errno.EAGAIN and self.waiting() == 0):
                break  # else it was a nudge, or a connection was lost
            assert rc > 0 or rc == -errno.EAGAIN, f"take_ready: {rc}"
            taken += [self.house.arrived(raw, keep=keep) for raw in raws]
        return taken

    def waiting(self) -> int:
        """Bytes in its channel."""
        return int(struct.unpack("i", fcntl.ioctl(self.fd, termios.FIONREAD, b"\0" * 4))[0])

    def rest(self) -> list[Arrival]:
        """All until end-of-file."""
        taken: list[Arrival] = []
        while True:
            rc, raws = self.receiver.take_ready(BATCH)
            if rc == 0:
                return taken
            assert rc > 0, f"take_ready: {rc}"
            taken += [self.house.arrived(raw) for raw in raws]

    def done(self, count: int = 1) -> None:
        for _ in range(count):
            self.ends.done()

    def shut_down(self, how: int) -> None:
        """Break the channel, for all who have it."""
        end = socket.socket(fileno=os.dup(self.fd))
        with suppress(OSError):
            end.shutdown(how)
        end.close()

    def leave(self) -> None:
        self.house.core.leave(self.seat)


def clients_of(arrivals: list[Arrival]) -> list[int]:
    return [arrival.client for arrival in arrivals]


def has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


def compiler() -> list[str]:
    """The one that Python was built with, unless CC names another."""
    return (os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc").split()


def is_root() -> bool:
    return os.geteuid() == 0
