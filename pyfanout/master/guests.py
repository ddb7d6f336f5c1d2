"""Guests: workers that somebody else has forked, and who come to this process for connections. Its whole life.

Decides when a guest is in rotation, and nothing about its life: that is its parent's affair. `dispatcher` is the other
side. As `supervisor`, but without processes: a guest is there while its control socket is open.
"""

from __future__ import annotations

import functools
import logging
import math
import os
import socket
import time
from collections import Counter
from dataclasses import dataclass, field

from pyfanout import control, joining
from pyfanout.config import Config
from pyfanout.control import Closing, DecodeError, Drain, Failed, Message, Ping, Pong, Ready, Retiring, Short, Spent
from pyfanout.core import POOL, SEATS, Core, Event, News
from pyfanout.errors import CoreError, FanoutError
from pyfanout.joining import Knock
from pyfanout.limits import ANY, OpenFiles
from pyfanout.log import counted_are
from pyfanout.master import policy
from pyfanout.master.listeners import Endpoint
from pyfanout.master.outbox import AGAIN_NS, Outbox
from pyfanout.master.shortage import Shortage
from pyfanout.master.watches import Watches

log = logging.getLogger("pyfanout.master")

RELEASE_NS = 1_000_000_000
"""How long the last one in rotation waits for others before it may leave. Who stops all processes at once stops their
parent, too, whose word comes sooner."""

IN_FLIGHT = 4
"""At most one in this many descriptors of this process's limit is in a channel."""

MESSAGES = 16
"""Read of one guest before the others have their turn."""


@dataclass(slots=True, eq=False)
class Guest:
    """One worker."""

    seat: int
    """Its number in the core."""
    generation: int
    pid: int
    control: socket.socket
    outbox: Outbox = field(init=False)
    """What it is told."""
    ready: Ready | None = None
    """What it said when it was."""
    spent_ns: int | None = None
    """Since when it wants to leave, and serves on."""
    leaving: bool = False
    """It takes no more."""
    silent: bool = False
    """It owes an answer: others have its connections until it gives it."""
    stuck: bool = False
    """Each of its threads has been in the same request for too long: others get its connections until one makes
    progress."""
    short: bool = False
    """It cannot take connections: others get them until it can."""
    entered: bool = False
    """It is in rotation."""
    ping_number: int = 0
    pinged_ns: int | None = None
    """When the ping was said that waits for its pong; None: none does."""

    def __post_init__(self) -> None:
        self.outbox = Outbox(self.control)

    def __str__(self) -> str:
        return f"worker={self.seat} gen={self.generation} pid={self.pid}"

    @property
    def asked_ns(self) -> int:
        """Since when it has been its turn, if it owes a pong."""
        return max(self.pinged_ns or 0, self.outbox.short_ns)

    @property
    def wanted(self) -> bool:
        """It shall be in rotation."""
        return self.ready is not None and not (self.leaving or self.silent or self.stuck or self.short)


class Guests:
    """`Guests(...).run()`, once."""

    def __init__(self, config: Config, endpoints: list[Endpoint], door: socket.socket, owner_fd: int) -> None:
        """Takes over the endpoints' descriptors, `door`, and `owner_fd`, the pidfd of the owner: others that it has
        forked may hold the door open."""
        self._config = config
        self._endpoints = endpoints
        self._door = door
        self._owner_fd = owner_fd
        self._open_files = OpenFiles()
        self._guests: dict[int, Guest] = {}
        """By seat."""
        self._generations: Counter[int] = Counter()
        self._shortage = Shortage()
        self._interval_ns = math.ceil(config.ping_interval * 1e9)  # what is not 0 is not never
        self._timeout_ms = math.ceil(config.timeout * 1e3)
        self._patience_ns = int(config.ping_timeout * 1e9)
        self._round_ns: int | None = None
        """When the next round of pings is due; None: there are none."""
        self._end_ns: int | None = None
        """The owner has stopped, or is gone: until when guests may finish what they have."""

    def run(self) -> int:
        """Until the owner and all guests are gone. The exit code."""
        try:
            self._run()
        except FanoutError as error:
            log.critical("the dispatcher cannot go on: %s", error)
            return error.exit_code
        return 0

    def _run(self) -> None:
        self._open_files.raise_to(ANY)  # any number of guests; no program is executed here
        with Core(SEATS, self._config.policy) as self._core:
            self._core.share()
            self._watches = Watches(self._core)
            for endpoint in self._endpoints:
                self._core.listen(endpoint.sock.fileno())
                endpoint.detach()
            self._watches.add(self._door.fileno(), self._on_knock)
            self._watches.add(self._owner_fd, self._stop)
            where = ", ".join(endpoint.address for endpoint in self._endpoints)
            log.info("dispatching %s to who joins, %s", where, self._config.policy)
            if self._interval_ns:
                self._round_ns = time.monotonic_ns() + self._interval_ns
            while not self._over():
                self._step()

    def _over(self) -> bool:
        if self._end_ns is None:
            return False
        if self._guests and time.monotonic_ns() >= self._end_ns:
            log.warning("%g s are over: %s left alone", self._config.drain_timeout, counted_are(len(self._guests)))
            return True
        return not self._guests

    def _step(self) -> None:
        late_ns = [guest.asked_ns + self._patience_ns for guest in self._debtors()]
        release_ns = [guest.spent_ns + RELEASE_NS for guest in self._waiting() if guest.spent_ns is not None]
        undone = any(guest.outbox or guest.wanted != guest.entered for guest in self._guests.values())
        again_ns = time.monotonic_ns() + AGAIN_NS if undone else None
        deadlines_ns = late_ns + release_ns
        deadlines_ns += [ns for ns in (self._round_ns, self._end_ns, again_ns) if ns is not None]
        timeout_ns = min(deadlines_ns) - time.monotonic_ns() if deadlines_ns else None
        events = self._core.run(timeout_ns)
        for event in events:
            self._on_event(event)
        if not events:  # else an answer may wait among those that were not read yet
            self._ask_and_judge()
        self._release()
        for guest in self._guests.values():  # what the system had no room for
            guest.outbox.flush()
            self._arrange(guest)
        self._shortage.lost(self._core.truncated)

    # ---- events -------------------------------------------------------------------------------------------------

    def _on_event(self, event: Event) -> None:
        match event.news:
            case News.WATCHED:
                self._watches.call(event.token)
            case News.PAUSED:
                self._shortage.begins(event.error)
            case News.RESUMED:
                self._shortage.ends()
            case News.LISTENER_FAILED:
                address = self._endpoints[event.token].address
                log.critical("lost listener %s: %s", address, os.strerror(event.error))
            case News.CHANNEL_BROKEN:
                self._on_broken(event.token)

    def _on_broken(self, seat: int) -> None:
        """Its readers see end-of-file, and leave by themselves."""
        for guest in self._guests.values():
            if guest.entered and (seat == POOL if guest.ready and guest.ready.pool else seat == guest.seat):
                log.error("%s: its channel was shut down by a worker; it leaves", guest)
                guest.leaving = True
                self._arrange(guest)

    def _on_knock(self) -> bool:
        """Whether there was anybody."""
        try:
            found = joining.answer(self._door)
        except OSError as error:
            log.error("somebody could not join: %s", error.strerror)
            return True
        if isinstance(found, socket.socket):
            try:
                self._admit(found)
            except OSError as error:
                log.error("somebody could not join: %s", error.strerror)
                found.close()
        elif found is Knock.STOP:
            self._stop()
        return found is not Knock.NOBODY

    def _admit(self, their_control: socket.socket) -> None:
        seat = next((each for each in range(SEATS) if each not in self._guests), None)
        if seat is None:
            raise OSError(0, f"all {SEATS} seats are taken")
        generation = self._generations[seat] + 1
        guest = Guest(seat, generation, joining.pid_of(their_control), their_control)
        self._core.begin(seat, generation, seat)
        try:
            self._watches.add(their_control.fileno(), functools.partial(self._on_message, guest))
            joining.welcome(their_control, seat, generation, self._core.ends(seat))
        except OSError:
            self._watches.remove(their_control.fileno())
            self._core.end(seat)
            raise
        self._generations[seat] = generation
        self._guests[seat] = guest
        log.debug("%s has joined", guest)

    def _stop(self) -> None:
        """Pass on what is queued, end the channels; and nobody joins any more."""
        self._end_ns = time.monotonic_ns() + int(self._config.drain_timeout * 1e9)
        self._round_ns = None
        self._watches.remove(self._owner_fd)
        self._watches.remove(self._door.fileno())
        self._door.close()  # whoever is on the way in sees the end
        for guest in self._guests.values():
            guest.pinged_ns = None
            guest.outbox.say(Closing())
        self._core.finish(self._config.backlog + 1)

    def _on_message(self, guest: Guest) -> None:
        for _ in range(MESSAGES):
            try:
                message = control.hear(guest.control)
            except OSError:  # there is none; or no memory for it now, and it is told of again
                return
            except DecodeError as error:
                log.error("%s talks nonsense on its control socket (%s) and gets nothing any more", guest, error)
                message = None
            if message is None:
                self._on_gone(guest)
                return
            self._on_word(guest, message)

    def _on_word(self, guest: Guest, message: Message) -> None:
        match message:
            case Ready():
                if guest.ready is None:
                    log.debug("%s is ready", guest)
                    if self._end_ns is not None:
                        guest.outbox.say(Closing())
                elif guest.entered:  # with another limit: out, and in again
                    guest.entered = False
                    self._core.leave(guest.seat)
                guest.ready = message
            case Failed(_, reason, details):
                log.error("%s could not start: %s%s", guest, reason, details and f"\n{details.rstrip()}")
            case Short(short):
                guest.short = short
            case Retiring():
                guest.leaving = True
            case Spent() if guest.spent_ns is None:
                guest.spent_ns = time.monotonic_ns()
                for _ in range(SEATS):  # the owner may have said before that it stops
                    if self._end_ns is not None or not self._on_knock():
                        break
            case Pong(number, still_ms) if number == guest.ping_number:
                guest.pinged_ns = None
                if guest.silent:
                    guest.silent = False
                    log.info("%s answers again", guest)
                self._on_still(guest, still_ms)
        self._arrange(guest)

    def _on_still(self, guest: Guest, still_ms: int) -> None:
        stuck = 0 < self._timeout_ms <= still_ms
        if stuck and not guest.stuck:
            what = "every thread has been in the same request for %.1f s; others have its connections"
            log.warning("%s: " + what, guest, still_ms / 1e3)
        elif guest.stuck and not stuck:
            log.info("%s: a thread makes progress again", guest)
        guest.stuck = stuck

    def _waiting(self) -> list[Guest]:
        """Who wants to leave, and may not yet. If the owner has stopped all stay, and find the end in their channel."""
        if self._end_ns is not None:
            return []
        return [guest for guest in self._guests.values() if guest.spent_ns is not None and not guest.leaving]

    def _release(self) -> None:
        """Those that others can stand in for, or that have waited long enough for others."""
        for guest in self._waiting():
            others = any(each.entered for each in self._guests.values() if each is not guest)
            if guest.entered and not others and time.monotonic_ns() < (guest.spent_ns or 0) + RELEASE_NS:
                continue
            guest.leaving = True
            self._arrange(guest)
            guest.outbox.say(Drain())

    def _on_gone(self, guest: Guest) -> None:
        lost = self._core.look(guest.seat).in_hands
        guest.leaving = True
        self._arrange(guest)
        self._core.end(guest.seat)
        self._watches.remove(guest.control.fileno())
        guest.control.close()
        del self._guests[guest.seat]
        level, plural = (logging.WARNING if lost else logging.DEBUG), "" if lost == 1 else "s"
        log.log(level, "%s is gone, with %d connection%s in its hands", guest, lost, plural)

    # ---- rotation -----------------------------------------------------------------------------------------------

    def _arrange(self, guest: Guest) -> None:
        """In rotation or out of it, as it should be."""
        ready = guest.ready
        if guest.wanted == guest.entered:
            return
        if ready is None or not guest.wanted:
            guest.entered = False
            self._core.leave(guest.seat)
            return
        count = len(self._guests)
        most = self._open_files.soft // IN_FLIGHT // (1 if ready.pool else count)
        size = policy.channel_size(ready.threads * (count if ready.pool else 1), most)
        try:
            self._core.enter(guest.seat, pool=ready.pool, threads=ready.threads, size=size, most=ready.most)
        except CoreError as error:
            log.error("%s cannot have connections yet: %s", guest, error.strerror)
        else:
            guest.entered = True

    def _debtors(self) -> list[Guest]:
        """Who owes a pong, and is not known for it yet."""
        return [guest for guest in self._guests.values() if guest.pinged_ns is not None and not guest.silent]

    def _ask_and_judge(self) -> None:
        """Who reads from the pool is not asked: nothing waits for it alone."""
        now_ns = time.monotonic_ns()
        for guest in self._debtors():
            silent_ns = now_ns - guest.asked_ns
            if silent_ns >= self._patience_ns:
                log.warning("%s: no answer to a ping for %.1f s; others have its connections", guest, silent_ns / 1e9)
                guest.silent = True
                self._arrange(guest)
        if self._round_ns is not None and now_ns >= self._round_ns:
            self._round_ns = now_ns + self._interval_ns
            for guest in self._guests.values():
                if (guest.entered or guest.stuck) and guest.pinged_ns is None and guest.ready and not guest.ready.pool:
                    guest.ping_number = (guest.ping_number + 1) % 2**32
                    guest.pinged_ns = now_ns
                    guest.outbox.say(Ping(guest.ping_number))
