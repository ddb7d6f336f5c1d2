"""When a worker is hung, when a slot gets its next worker, when it is said to be broken, how much a channel holds.
Pure: takes times and counts.

All times are CLOCK_MONOTONIC nanoseconds.
"""

from __future__ import annotations

GRACE_NS = 2_000_000_000
"""From "stop now" to SIGKILL: long enough for an exit hook, short for a user who presses ^C. The same again until a
worker that SIGKILL does not end is left behind."""

FIRST_DELAY_NS = 100_000_000
"""0.1 s before the second try: a crash loop costs a few percent of one core."""

LONGEST_DELAY_NS = 15_000_000_000
"""15 s: what a healed application waits at most, and PM2's limit too."""

BROKEN_ROW = 6
"""Deaths in a row, none of them after `min_uptime` or a connection served, that make a slot FAILED: after 3 s of trying
again."""

BROKEN_WINDOW = 60
"""Deaths that make it FAILED, too, if they come faster than one in each `min_uptime`: those that always die just after
it never have a row."""

ASYNCIO_SIZE = 8
"""Messages in an event loop's channel: refilled at one. With 32, refilled at seven, the master was woken for each of
the first seven clients, into the loop's work: measured on 2026-11-22, conn/s to SO_REUSEPORT 1.00 and 1.02 (one core,
core each) with 32, 1.04 and 1.16 with 8, on the machine of bench/README.md."""

SIZE_PER_THREAD = 4
"""Messages per blocking thread in its channel: refilled at one, so no thread waits for the master."""


def channel_size(threads: int, most: int) -> int:
    """Messages that a channel shall take, which `threads` read, or an event loop (0); `most` if that is less, but 1."""
    return min(SIZE_PER_THREAD * threads or ASYNCIO_SIZE, max(most, 1))


def open_files(workers: int, threads: int) -> int:
    """The limit that a master needs: for its sockets and each worker's, those that drain included; and because the
    descriptors that the user has in flight are bounded by it (unix(7), ETOOMANYREFS), those of the user's other
    processes included. Its own in flight are at most a sixteenth."""
    in_flight = workers * max(SIZE_PER_THREAD * threads, ASYNCIO_SIZE)
    return 256 + 32 * workers + 16 * in_flight


def has_lived(ready_for_ns: int | None, served: bool, min_uptime_ns: int) -> bool:
    """Whether a worker has shown that the application can start. `ready_for_ns` is None if it never was ready.

    Also one that has `served`, a connection or more from its beginning to its end: if the deaths of such were held
    back, workers that an operator kills again and again would soon all be, although each of them works.
    """
    return ready_for_ns is not None and (served or ready_for_ns >= min_uptime_ns)


def deaths_in_a_row(before: int, lived: bool, resigned: bool) -> int:
    """How many deaths this one makes, after `before`; one that has lived and left by itself is no death."""
    if lived:
        return 0 if resigned else 1
    return before + 1


def respawn_delay_ns(deaths: int, chance: float, failed: bool = False) -> int:
    """Nanoseconds to wait after the `deaths`-th death in a row: none after the first, then doubling. The longest at
    once if the slot has FAILED.

    `chance`, from 0 to 1, takes away up to half, so that workers which die together do not come back together.
    """
    if deaths <= 1 and not failed:
        return 0
    full = LONGEST_DELAY_NS if failed else min(FIRST_DELAY_NS << min(deaths - 2, 20), LONGEST_DELAY_NS)
    return int(full * (1 - chance / 2))


def is_broken(deaths: int, window_ns: int | None, min_uptime_ns: int) -> bool:
    """Whether to say that the application is broken, after the `deaths`-th death in a row. `window_ns`: since the death
    that was BROKEN_WINDOW deaths ago, None if there was none."""
    return deaths >= BROKEN_ROW or (window_ns is not None and window_ns < BROKEN_WINDOW * min_uptime_ns)


def hang(
    *,
    now_ns: int,
    pinged_ns: int | None,
    ping_timeout_ns: int,
    threads: int,
    busy_threads: int,
    busy_since_ns: int,
    still_ns: int,
    timeout_ns: int,
) -> str | None:
    """Why a READY worker is hung, in words; None if it is not.

    `pinged_ns`: since when a ping waits for its pong, None if none does. `threads`: blocking threads of pyfanout, 0 for
    an event loop or a server with its own. `busy_since_ns`: since when the longest connection is in a handler, 0 if
    none is; `timeout_ns` 0: it may be there for ever. `still_ns`: for how long all threads, pyfanout's or the server's,
    have been in the same requests, and no byte has moved.

    A blocking handler may run for `timeout`, and a worker whose handler runs need not answer meanwhile: the handler may
    hold the interpreter's lock. A worker without a running handler has to answer.
    """
    late = pinged_ns is not None and now_ns - pinged_ns >= ping_timeout_ns
    if late and (threads == 0 or busy_threads == 0):
        return f"no answer to a ping for {(now_ns - (pinged_ns or 0)) / 1e9:.1f} s"
    busy_ns = now_ns - busy_since_ns
    if late and timeout_ns and busy_since_ns and busy_ns >= timeout_ns:
        return f"a handler has run for {busy_ns / 1e9:.1f} s"
    if timeout_ns and busy_threads >= threads and still_ns >= timeout_ns:
        what = "a handler has run" if threads == 1 else "every thread has been in the same request"
        return f"{what} for {still_ns / 1e9:.1f} s"
    return None
