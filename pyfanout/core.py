"""The C core as Python sees it. The only importer of `_core`; `csrc/fanout.h` is the manual.

`Core` is the master's end, `WorkerEnds` what a worker keeps of it, `Receiver` one thread's reading end. Decides
nothing. Used by `master.supervisor` and by `worker`.
"""

from __future__ import annotations

import errno
import functools
import os
import socket
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, NamedTuple

from pyfanout.config import Policy
from pyfanout.errors import check

try:
    from pyfanout._core import ffi, lib
except ModuleNotFoundError as error:
    if error.name != "pyfanout._core":
        raise
    raise ModuleNotFoundError(
        f"{os.path.dirname(__file__)} is a source tree whose C core is not built here: an installed pyfanout is found"
        " from any other folder, or build it by `pip install --editable .`",
        name=error.name,
    ) from None

BATCH: int = lib.FAN_BATCH
"""Most connections that the master holds, and that one `Receiver.take_ready` returns."""

SEATS: int = lib.FAN_MAX_SEATS
"""The most workers of one core, those that are about to leave included."""

SHORTAGE_S = 0.05
"""Between two looks for a free descriptor, when a `Receiver` has none: nothing tells when there is one."""

OUT_OF_MEMORY = (-errno.ENOMEM, -errno.ENOBUFS)
"""Of `Receiver.take_ready`: nothing was taken, and it may be tried again after SHORTAGE_S."""

_AGAIN = -errno.EAGAIN

FREED: int = lib.FAN_PART_FREED
"""Of `Linger.part`: a descriptor is free now."""

SWEEP: int = lib.FAN_PART_SWEEP
"""Of `Linger.part`: `Linger.sweep` is to be called, until it returns 0."""

POOL = -1
"""In place of a seat: the channel that blocking workers share."""

_POLICIES = {
    Policy.ROUND_ROBIN: lib.FAN_ROUND_ROBIN,
    Policy.LEAST_CONNECTIONS: lib.FAN_LEAST_CONNECTIONS,
    Policy.SOURCE_HASH: lib.FAN_SOURCE_HASH,
}


def is_pooled(policy: Policy) -> bool:
    """Whether blocking workers share one channel, the pool's."""
    return bool(lib.fan_policy_pooled(_POLICIES[policy]))


class EventKind(IntEnum):
    """What an `Event` is about; each is explained beside its constant in fanout.h."""

    WATCHED = lib.FAN_EVENT_WATCHED
    PAUSED = lib.FAN_EVENT_PAUSED
    RESUMED = lib.FAN_EVENT_RESUMED
    LISTENER_FAILED = lib.FAN_EVENT_LISTENER_FAILED
    CHANNEL_BROKEN = lib.FAN_EVENT_CHANNEL_BROKEN
    FINISHED = lib.FAN_EVENT_FINISHED


class Event(NamedTuple):
    """One thing that `Core.run` has to say."""

    kind: EventKind
    error: int
    """A positive errno, or 0."""
    token: int
    """WATCHED: what `watch` was given. LISTENER_FAILED: the listener's number. CHANNEL_BROKEN: a seat, or POOL."""


@dataclass(frozen=True, slots=True)
class ScoreView:
    """What a worker says of itself on its page of the scoreboard; for looking only."""

    generation: int
    taken: int
    """Connections."""
    done: int
    """Connections closed or detached; never more than `taken`."""
    lost: int
    """Connections lost in the worker because it had no descriptor for them."""
    beat_ns: int
    """CLOCK_MONOTONIC when its serving loop last took something, or looked for it; 0: never."""
    busy_since_ns: int
    """When the oldest connection that is in a blocking handler was taken; 0: none is."""
    busy_threads: int
    threads: int
    in_hands: int
    """Connections that are lost if it is dead."""


class Core:
    """The master's end: listeners, channels, scoreboard. Close it at a known time: `with Core(...) as core`."""

    def __init__(self, seats: int, policy: Policy) -> None:
        """Room for `seats` workers, 1 to SEATS. Raises CoreError if the system has no room for it or refuses a call."""
        out = ffi.new("fan_core **")
        rc = lib.fan_core_new(seats, _POLICIES[policy], out)
        refused = lib.fan_core_refused() if rc < 0 else ffi.NULL
        needs = f": it needs {ffi.string(refused).decode()}, which a sandbox has to allow" if refused else ""
        check(rc, f"make the core for {seats} workers{needs}")
        self._core: Any = out[0]
        self._events = ffi.new("fan_event[]", 64)
        self._counters = ffi.new("fan_counters *")

    def __enter__(self) -> Core:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_core", None):
            warnings.warn("a Core was not closed", ResourceWarning, source=self, stacklevel=2)
            self.close()

    def close(self) -> None:
        """Close everything, connections in the master's hands included. May be called again."""
        core, self._core = self._core, None
        if core:
            lib.fan_core_free(core)

    def listen(self, fd: int) -> int:
        """Take over a non-blocking listening socket; its number. On CoreError `fd` stays the caller's."""
        return check(lib.fan_core_listen(self._core, fd), f"add listener {fd}")

    def share(self) -> None:
        """Before the first `begin`: there will be workers that are no children of this process, see `ends`."""
        check(lib.fan_core_share(self._core), "make a file of the scoreboard")

    def watch(self, fd: int, token: int) -> None:
        """Report WATCHED with `token` while `fd` is readable. Call `unwatch` before `fd` is closed."""
        check(lib.fan_core_watch(self._core, fd, token), f"watch descriptor {fd}")

    def unwatch(self, fd: int) -> None:
        check(lib.fan_core_unwatch(self._core, fd), f"stop watching descriptor {fd}")

    def run(self, timeout_ns: int | None) -> list[Event]:
        """Dispatch connections until there is news. [] after `timeout_ns` (None: never) and when a signal came."""
        timeout = -1 if timeout_ns is None else max(timeout_ns, 0)
        count = check(lib.fan_core_run(self._core, timeout, self._events, len(self._events)), "dispatch")
        return [Event(EventKind(e.kind), e.error, e.token) for e in self._events[0:count]] if count else []

    def poll_fd(self) -> int:
        """A descriptor that is readable when `run` has something to do; it stays the core's."""
        return check(lib.fan_core_poll_fd(self._core), "make a descriptor for a loop of the program's own")

    def arm(self, timeout_ns: int | None) -> None:
        """After each `run`: for how long `poll_fd` may stay silent."""
        check(lib.fan_core_arm(self._core, -1 if timeout_ns is None else max(timeout_ns, 0)), "set a timer")

    def stop_new(self, number: int) -> None:
        """Before `finish`: no new client gets into the queue of this TCP listener, which no other process has."""
        lib.fan_core_stop_new(self._core, number)

    def finish(self, limit: int) -> None:
        """Pass on what is queued (at most `limit` a listener), close the listeners, end the channels; see fanout.h."""
        lib.fan_core_finish(self._core, limit)

    def count(self) -> dict[str, int]:
        """The counters of fanout.h by name, since the core was made."""
        lib.fan_core_count(self._core, self._counters)
        return {name: getattr(self._counters, name) for name in dir(self._counters)}

    @property
    def lost(self) -> int:
        """Connections that the kernel closed on their way back from a channel, for want of a descriptor."""
        lib.fan_core_count(self._core, self._counters)
        return int(self._counters.lost)

    @property
    def message_bytes(self) -> int:
        """Bytes of SO_SNDBUF that one message takes on this kernel."""
        return int(lib.fan_core_message_bytes(self._core))

    def begin(self, seat: int, generation: int, identity: int) -> None:
        """Before each fork: a channel, a clean page of the scoreboard. `identity`: source-hash's name for it."""
        rc = lib.fan_seat_begin(self._core, seat, generation, identity)
        check(rc, "make its channel")

    def end(self, seat: int) -> None:
        """Close the channel of a seat that is not needed, as soon as it is empty. Its worker is dead."""
        lib.fan_seat_end(self._core, seat)

    def enter(self, seat: int, *, pool: bool, threads: int, size: int, most: int = 0) -> int:
        """Put a ready worker into rotation; `size` in messages, `most` in connections. Returns the size granted."""
        rc = lib.fan_seat_enter(self._core, seat, pool, threads, size, most)
        return check(rc, "size its channel")

    def leave(self, seat: int) -> None:
        """Take a worker out of rotation, alive or not. No-op if it is not in."""
        lib.fan_seat_leave(self._core, seat)

    def ends(self, seat: int) -> EndFds:
        """For a worker that is no child of the master's. They stay the core's."""
        ends = ffi.new("fan_ends *")
        lib.fan_seat_ends(self._core, seat, ends)
        return EndFds(ends.pool_fd, ends.seat_fd, ends.scoreboard_fd)

    def untaken(self, seat: int) -> int:
        """Messages that wait in the seat's own channel, or in the POOL's. 1 if the kernel does not say: then somebody
        shall look, for a client may wait there."""
        count: int = lib.fan_seat_untaken(self._core, seat)
        return 1 if count < 0 else count

    def look(self, seat: int) -> ScoreView:
        out = ffi.new("fan_score_view *")
        lib.fan_seat_look(self._core, seat, out)
        return ScoreView(*(getattr(out, name) for name in ScoreView.__slots__))

    def abandon(self, seat: int) -> WorkerEnds:
        """In the child, at once: close all that is not this seat's worker's. The core is gone afterwards."""
        core, self._core = self._core, None
        ends = ffi.new("fan_ends *")
        lib.fan_core_abandon(core, seat, ends)
        return WorkerEnds(ends, seat)


class EndFds(NamedTuple):
    """The descriptors of which a worker that is no child of the master's makes its `WorkerEnds`."""

    pool_fd: int
    seat_fd: int
    scoreboard_fd: int


class WorkerEnds:
    """The parts of the core that a worker has: two reading ends, of which it will use one; its page of the scoreboard;
    and the turns of the workers that read the pool's channel."""

    __slots__ = ("done", "pool_fd", "score", "seat", "seat_fd", "turns")

    def __init__(self, ends: Any, seat: int) -> None:
        """`ends`: a fan_ends of fanout.h."""
        self.seat = seat
        self.turns = ends.turns
        self.pool_fd: int = ends.pool_fd
        self.seat_fd: int = ends.seat_fd
        self.score = ends.score
        self.done: Callable[[], int] = functools.partial(lib.fan_score_done, ends.score)
        """A taken connection was closed or detached; true if the master waits for that, and has to be told. A C
        function without a Python frame, because it is called for each connection."""

    @classmethod
    def of(cls, sent: EndFds, seat: int) -> WorkerEnds:
        """From what `Core.ends` of another process has sent. Takes over all three. Raises CoreError."""
        ends = ffi.new("fan_ends *", sent._asdict())
        try:
            check(lib.fan_ends_map(ends, seat), f"map page {seat} of the scoreboard")
        except BaseException:
            os.close(sent.pool_fd)
            os.close(sent.seat_fd)
            raise
        finally:
            os.close(sent.scoreboard_fd)
        return cls(ends, seat)

    def close(self) -> None:
        """Both reading ends, of a worker that cannot begin."""
        os.close(self.pool_fd)
        os.close(self.seat_fd)

    def done_cell(self) -> Any:
        """The counter behind `done`, for a caller of `cell[0] += 1` that has a lock of its own, and never calls `done`,
        which releases the interpreter's lock, so that a server's threads queue for it. Not with `max_connections`."""
        return lib.fan_score_done_cell(self.score)

    def disown(self) -> None:
        """In a child that the worker forked: what it writes to the page goes nowhere."""
        lib.fan_score_disown(self.score)


class Linger:
    """Connections that this worker has ended, and whose client may still send. See linger.c."""

    __slots__ = ("_linger", "part")

    def __init__(self, most: int) -> None:
        """Holds `most` at once, 1 or more."""
        linger = lib.fan_linger_new(most)
        if not linger:
            raise MemoryError
        self._linger = ffi.gc(linger, lib.fan_linger_free)
        self.part: Callable[[int], int] = functools.partial(lib.fan_linger_part, self._linger)
        """Takes over a descriptor and shuts down the sending side. FREED and SWEEP say what follows."""

    def sweep(self, patience_ns: int) -> float:
        """Close connections whose client has closed, and older ones. Returns the seconds until the next call; 0:
        none."""
        return lib.fan_linger_sweep(self._linger, patience_ns) / 1000  # type: ignore[no-any-return]

    def drop(self) -> int:
        """Close all, because no descriptor is free. Returns how many there were."""
        return lib.fan_linger_drop(self._linger)  # type: ignore[no-any-return]

    def copied(self) -> None:
        """A child was forked: it may have copies of all descriptors."""
        lib.fan_linger_copied(self._linger)

    def disown(self) -> None:
        """In a child that the worker forked: held connections are the worker's; those that the child closes are not
        shut down."""
        lib.fan_linger_disown(self._linger)


class Receiver:
    """One thread's reading end. Not closed: it lives as long as its worker."""

    __slots__ = ("_arrivals", "_receiver", "_slow", "_take", "_wait", "arrival", "conn")

    def __init__(self, fd: int, ends: WorkerEnds, thread: int, batch: int = 1) -> None:
        """Reads from `fd`, which stays the caller's; marks its doings as thread number `thread` of the scoreboard."""
        turns = ends.turns if fd == ends.pool_fd else ffi.NULL
        receiver = lib.fan_receiver_new(fd, ends.score, thread, turns, ends.seat)
        if not receiver:
            raise MemoryError
        self._receiver = ffi.gc(receiver, lib.fan_receiver_free)
        self._arrivals = ffi.new("fan_connection[]", batch)
        self.arrival: Any = self._arrivals + 0  # a pointer to the first
        """What `take` has filled: a fan_connection of fanout.h."""
        self.conn: Any = None
        """Scratch field of the caller: the Connection made of the last arrival."""
        self._take: Callable[[bool], int] = functools.partial(lib.fan_take, self._receiver, self.arrival)
        self._wait: Callable[[], int] = functools.partial(lib.fan_take_wait, self._receiver)
        self._slow = False
        """The last connection had to be waited for, so the next one will be, too: no look in vain."""

    def take(self, fd_is_free: bool) -> int:
        """Block until a connection is there, which fills `arrival`; `fan_take`'s result (1, 0 at the end, -errno), or
        -EAGAIN if the socket has a timeout, and that is over."""
        rc = _AGAIN if self._slow else self._take(fd_is_free)
        while rc == _AGAIN:
            slept = self._wait()
            if slept < 0:
                return slept
            self._slow = slept > 0
            rc = self._take(False)
        return rc

    def take_now(self) -> int:
        """The same, but -EAGAIN if none is there."""
        return self._take(False)

    def resume(self) -> None:
        """The thread goes on with a connection that was taken before: busy, until it asks for the next one."""
        lib.fan_receiver_resume(self._receiver)

    def take_ready(self, cap: int) -> tuple[int, Iterator[Any]]:
        """The result of `fan_take_ready`, and the arrivals if it is positive."""
        count = lib.fan_take_ready(self._receiver, self._arrivals, min(cap, len(self._arrivals)))
        return count, iter(self._arrivals[0:count] if count > 0 else ())

    def cancel(self) -> None:
        """From any thread: no more is taken. A sleeping receiver must be woken by a signal, too."""
        lib.fan_receiver_cancel(self._receiver)

    @property
    def sleeps(self) -> bool:
        """Whether the thread waits for a connection."""
        return bool(lib.fan_receiver_sleeps(self._receiver))


def stop_new(listener: socket.socket) -> None:
    """As `Core.stop_new`, of one that no core has. No other process may go on with it."""
    if listener.family != socket.AF_UNIX:
        lib.fan_listener_stop_new(listener.fileno())


def interrupt_with(signum: int) -> None:
    """Make the signal `signum` interrupt `Receiver.take` and do nothing else in this process."""
    check(lib.fan_interrupt_with(signum), f"set signal {signum}")


def is_subreaper() -> bool:
    """Whether the kernel gives this process the orphans among its descendants."""
    return bool(lib.fan_is_subreaper())


def keep_heap() -> None:
    """Have the C library keep freed memory, up to 8 MiB, instead of asking the kernel for it again and again."""
    lib.fan_keep_heap()


unpack: Callable[[Any, int], bytes] = ffi.unpack
"""The first bytes of a char array, such as the host of a fan_connection."""
