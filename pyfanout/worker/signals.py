"""The signals of a worker: SIGTERM drains it, SIGQUIT stops it now, whatever handlers the application sets.

The master itself says DRAIN over the control socket, and needs no handler. The handlers are for a signal that is sent
to the process itself, as systemd sends it to all at once. If the application replaces them, at import, in a start hook
or in a request, they are set again; its handler for SIGTERM is called when the drain is over. In the main thread only.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # has no stub
import _thread
import contextlib
import inspect
import logging
import os
import signal
import sys
from _thread import get_ident  # by name: gevent puts in another
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from pyfanout import exits
from pyfanout.host import sigmask
from pyfanout.link.messages import WAKE, is_drain_next

if TYPE_CHECKING:
    from types import FrameType

    from pyfanout.worker.host import Host

log = logging.getLogger("pyfanout.worker")

getsignal: Callable[[int], Any] = _signal.getsignal
"""The handler as it is. `signal.getsignal` first looks for a member of an enum, which costs 3 to 9 us for each
connection. It has no `__wrapped__`."""


class Stopped(SystemExit):
    """A signal tells the worker to stop now, whatever it is doing."""


def _do_nothing(_signum: int, _frame: FrameType | None) -> None:
    """Not SIG_IGN, which a program that the worker executes would inherit."""


class Signals:
    """The signals of one worker. Without `begin` and `through` it leaves all signals alone: a worker that has joined a
    dispatcher may have a loop, and handlers, of its own."""

    def __init__(self, worker: Host) -> None:
        self._worker = worker
        self._thread = get_ident()
        self._soon: Callable[[Callable[[], None]], object] | None = None
        self._stop: Callable[[], None] | None = None
        self._mute: Callable[[], None] | None = None
        self.quit = False
        """SIGQUIT has come."""
        self._masks: dict[int, Iterable[int]] = {}
        """The signals that were blocked before, by thread that forks."""
        self._spares_child = False
        """See `forking`."""
        self._unbroken = False
        """See `unbroken`."""
        self._late = False
        """SIGQUIT has come meanwhile."""
        self._ours = False
        """Whether the worker has its own handlers."""
        self._theirs: Callable[[int, Any], object] | None = None
        """What the application has set for SIGTERM."""
        self.handler = getsignal(signal.SIGTERM)
        """What `getsignal(SIGTERM)` is while the application has set nothing."""

    def begin(self) -> None:
        """Before the application is imported. ^C and a hangup go to all processes of a terminal: the master reacts to
        them."""
        for signum in (signal.SIGUSR1, signal.SIGUSR2):  # which a service manager sends to all processes, too
            if signal.getsignal(signum) is signal.SIG_DFL:
                signal.signal(signum, _do_nothing)
        for signum in (signal.SIGINT, signal.SIGHUP):
            signal.signal(signum, _do_nothing)
            signal.siginterrupt(signum, False)
        self.plain()
        signal.signal(WAKE, self.look)
        self.look()  # the signal may have come before
        _repeat_when_swallowed()

    def plain(self) -> None:
        """While no server's loop runs."""
        self._soon = self._stop = self._mute = None
        self._ours = True
        self.hold()

    def through(
        self,
        soon: Callable[[Callable[[], None]], object],
        stop: Callable[[], None],
        mute: Callable[[], None] | None = None,
    ) -> None:
        """From READY on: a loop has the main thread. `soon` schedules a callback on it, and may be called in a signal
        handler; `stop` ends the loop now. `mute` removes a handler of SIGTERM that the application has given to the
        loop. The loop must wake up for signals (`signal.set_wakeup_fd`)."""
        self._soon, self._stop, self._mute = soon, stop, mute
        self._ours = True

    def hold(self) -> None:
        """Set the worker's handlers again if the application has set others. Does nothing in another thread than the
        main one."""
        if not self._ours or get_ident() != self._thread or self._worker.forked:
            return
        found = getsignal(signal.SIGTERM)
        if found is not self.handler:
            if callable(found):
                log.debug(
                    "worker=%d: the application's handler of SIGTERM is called after the drain, not at once",
                    self._worker.slot,
                )
                self._theirs = found
            if self._mute is not None:
                self._mute()
        self._set()

    def _set(self) -> None:
        signal.signal(signal.SIGTERM, self._terminate)
        signal.signal(signal.SIGQUIT, self._quit)
        self.handler = getsignal(signal.SIGTERM)

    def hand_over(self) -> None:
        """The drain is over: call the handler that the application has set for SIGTERM. It does not end the worker: its
        exit code does not count."""
        theirs, self._theirs = self._theirs, None
        if theirs is None or self._worker.stopped or self._worker.forked:
            return
        try:
            theirs(signal.SIGTERM, inspect.currentframe())
        except (SystemExit, KeyboardInterrupt):  # signal.default_int_handler raises the latter
            pass
        except BaseException:
            log.exception(
                "worker=%d: the application's handler of SIGTERM raised an exception; the worker exits all the same",
                self._worker.slot,
            )
        self._set()

    def end(self, code: int) -> None:
        """From now on only exit functions run. SIGQUIT: their time is over."""
        signal.signal(signal.SIGTERM, _do_nothing)
        signal.signal(signal.SIGQUIT, lambda *_: exits.leave(code))

    @contextlib.contextmanager
    def unbroken(self) -> Iterator[None]:
        """SIGQUIT interrupts nothing in this block, and has its effect at the block's end. On the main thread: no
        handler runs on another one."""
        if get_ident() != self._thread or self._unbroken:
            yield
            return
        self._unbroken = True
        try:
            yield
        finally:
            self._break()

    def _break(self) -> None:
        self._unbroken = False
        if self._late:
            self._quit(signal.SIGQUIT, None)

    @contextlib.contextmanager
    def forking(self) -> Iterator[None]:
        """A child that is forked in this block serves clients. SIGTERM has no effect on it; SIGQUIT stops it as it
        stops a worker, once it has called `serves`; SIGURG only interrupts it, since SIGQUIT may have come just before
        it began to wait. The block is unbroken, so that the worker knows each such child."""
        with self.unbroken():
            self._spares_child = True
            try:
                yield
            finally:
                self._spares_child = False

    def serves(self) -> None:
        """In such a child: from now on SIGQUIT may raise Stopped, and what it forks itself has the default actions."""
        self._spares_child = False
        self._break()

    def before_fork(self) -> None:
        """Block signals, so that one to the child waits until `let_go`."""
        self._masks[get_ident()] = sigmask.block_all()

    def after_fork(self) -> None:
        sigmask.restore(self._masks.pop(get_ident()))

    def let_go(self) -> None:
        """In a child that the application forked: signals that the worker handles have their default actions, as in any
        program."""
        spared = self._spares_child and get_ident() == self._thread  # another thread may fork, too
        self._spares_child = self._late = self.quit = False
        self._unbroken = spared
        term, stop, wake = (_do_nothing, self._quit, self.look) if spared else (signal.SIG_DFL,) * 3
        for signum, ours, default in (
            (signal.SIGTERM, self._terminate, term),
            (signal.SIGQUIT, self._quit, stop),
            (WAKE, self.look, wake),
            (signal.SIGINT, _do_nothing, signal.default_int_handler),
            (signal.SIGHUP, _do_nothing, signal.SIG_DFL),
            (signal.SIGUSR1, _do_nothing, signal.SIG_DFL),
            (signal.SIGUSR2, _do_nothing, signal.SIG_DFL),
        ):
            if getsignal(signum) in (ours, _do_nothing):
                signal.signal(signum, default)

    def looks(self) -> bool:
        """Whether `look` is the handler of WAKE."""
        return bool(getsignal(WAKE) == self.look)

    # ---- handlers ----------------------------------------------------------------------------------------------

    def look(self, *_: object) -> None:
        """While the worker boots, no loop reads the control socket. There is no request to finish, and an import would
        not know what to do with an exception. Later it is called after some forks, see `Background`."""
        worker = self._worker
        worker.background.resume()
        if worker.on_drain is None and not worker.forked and is_drain_next(worker.link.sock):
            exits.leave(0)

    def _terminate(self, _signum: int, _frame: FrameType | None) -> None:
        """However often SIGTERM comes: a service manager sends it to all processes at once, and the master's DRAIN may
        have come before."""
        worker = self._worker
        if worker.on_drain is None:
            exits.leave(0)
        if self._soon is None:
            worker.drain()
        else:
            self._soon(worker.drain)

    def _quit(self, _signum: int, _frame: FrameType | None) -> None:
        worker = self._worker
        self.quit = True
        if worker.on_drain is None:
            exits.leave(0)
        self._late = self._unbroken
        if self._late:
            return
        if self._soon is None or self._stop is None:
            worker.stopped = True
            raise Stopped(0)
        self._soon(self._stop)


def _repeat_when_swallowed() -> None:
    """Where Python only prints exceptions (in a `__del__`, in a hook around os.fork), Stopped would be lost. Then the
    signal is sent once more, from a thread, so that it comes after that place."""
    others = sys.unraisablehook

    def swallowed(what: sys.UnraisableHookArgs) -> None:
        if isinstance(what.exc_value, Stopped):
            _thread.start_new_thread(os.kill, (os.getpid(), signal.SIGQUIT))
        else:
            others(what)

    sys.unraisablehook = swallowed
