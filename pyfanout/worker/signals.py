"""The signals of a worker: SIGTERM drains it, SIGQUIT stops it now, and that stays so whatever the application sets.

The master's own word comes over the control socket, and needs no handler. These are for who sends a signal to the
process itself, as systemd does to all at once. Handlers of the application, set at import, in a start hook or in a
request, are taken out again; the one for SIGTERM has its turn when the drain is over. The main thread's affair.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # has no stub
import _thread
import inspect
import logging
import os
import signal
import sys
from _thread import get_ident  # by name: gevent puts in another
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from pyfanout import exits, sigmask
from pyfanout.control import WAKE, says_drain

if TYPE_CHECKING:
    from types import FrameType

    from pyfanout.worker.worker import Worker

log = logging.getLogger("pyfanout.worker")

getsignal: Callable[[int], Any] = _signal.getsignal
"""The handler as it is. `signal.getsignal` first looks whether it is a member of an enum: 3 to 9 us a connection. It
has no `__wrapped__`."""


class Stopped(SystemExit):
    """A signal says: stop now, whatever you are doing."""


def _do_nothing(_signum: int, _frame: FrameType | None) -> None:
    """Not SIG_IGN, which a program that the worker executes would inherit."""


class Signals:
    """Of one worker. Without `begin` and `through` it leaves all signals alone: one that has joined a dispatcher may
    have a loop, and signals, of its own."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._thread = get_ident()
        self._soon: Callable[[Callable[[], None]], object] | None = None
        self._stop: Callable[[], None] | None = None
        self._mute: Callable[[], None] | None = None
        self.quit = False
        """SIGQUIT has come."""
        self._masks: dict[int, Iterable[int]] = {}
        """Of threads that fork, what was blocked before."""
        self.spares_children = False
        """SIGTERM does nothing to processes that this one forks: they serve its clients."""
        self._ours = False
        """They are to be."""
        self._theirs: Callable[[int, Any], object] | None = None
        """What the application has set for SIGTERM."""
        self.handler = getsignal(signal.SIGTERM)
        """What `getsignal(SIGTERM)` is while the application has set nothing."""

    def begin(self) -> None:
        """Before the application is imported. ^C and a hangup reach all in a terminal: they are for the master."""
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
        """As long as, and as soon as, no loop of a server's runs."""
        self._soon = self._stop = self._mute = None
        self._ours = True
        self.hold()

    def through(
        self,
        soon: Callable[[Callable[[], None]], object],
        stop: Callable[[], None],
        mute: Callable[[], None] | None = None,
    ) -> None:
        """From READY on: a loop has the main thread. `soon` has it call a function, and may be called in a signal
        handler; `stop` ends it now. `mute` takes SIGTERM from those that the loop itself calls something for. The loop
        must wake up for signals (`signal.set_wakeup_fd`)."""
        self._soon, self._stop, self._mute = soon, stop, mute
        self._ours = True

    def hold(self) -> None:
        """They are ours again if the application has set others. Does nothing in another thread than the main one."""
        if not self._ours or get_ident() != self._thread or self._worker.forked:
            return
        found = getsignal(signal.SIGTERM)
        if found is not self.handler:
            if callable(found):
                log.debug("worker=%d: the application's handler of SIGTERM comes after the drain", self._worker.slot)
                self._theirs = found
            if self._mute is not None:
                self._mute()
        self._set()

    def _set(self) -> None:
        signal.signal(signal.SIGTERM, self._terminate)
        signal.signal(signal.SIGQUIT, self._quit)
        self.handler = getsignal(signal.SIGTERM)

    def hand_over(self) -> None:
        """The drain is over, and its last step is what the application wants to do at SIGTERM. It ends nothing any
        more: an exit code of its own does not count."""
        theirs, self._theirs = self._theirs, None
        if theirs is None or self._worker.stopped or self._worker.forked:
            return
        try:
            theirs(signal.SIGTERM, inspect.currentframe())
        except SystemExit:
            pass
        except (Exception, KeyboardInterrupt):
            log.exception("worker=%d: the application's handler of SIGTERM failed", self._worker.slot)
        self._set()

    def end(self, code: int) -> None:
        """From now on only exit functions run. SIGQUIT: they have had their time."""
        signal.signal(signal.SIGTERM, _do_nothing)
        signal.signal(signal.SIGQUIT, lambda *_: exits.leave(code))

    def before_fork(self) -> None:
        """A signal to the child that comes before it has let go of them waits."""
        self._masks[get_ident()] = sigmask.block_all()

    def after_fork(self) -> None:
        sigmask.restore(self._masks.pop(get_ident()))

    def let_go(self) -> None:
        """In a child that the application forked: what is ours has its default action there, as in any program's."""
        spared = self.spares_children and not self._worker.forked  # which its own children are not
        term = _do_nothing if spared else signal.SIG_DFL
        for signum, ours, default in (
            (signal.SIGTERM, self._terminate, term),
            (signal.SIGQUIT, self._quit, signal.SIG_DFL),
            (WAKE, self.look, signal.SIG_DFL),
            (signal.SIGINT, _do_nothing, signal.default_int_handler),
            (signal.SIGHUP, _do_nothing, signal.SIG_DFL),
            (signal.SIGUSR1, _do_nothing, signal.SIG_DFL),
            (signal.SIGUSR2, _do_nothing, signal.SIG_DFL),
        ):
            if getsignal(signum) in (ours, _do_nothing):
                signal.signal(signum, default)

    # ---- handlers ----------------------------------------------------------------------------------------------

    def look(self, *_: object) -> None:
        """While it boots nobody reads the control socket. There is nothing to finish, and an import would not know
        what to do."""
        worker = self._worker
        if worker.on_drain is None and not worker.forked and says_drain(worker.control):
            exits.leave(0)

    def _terminate(self, _signum: int, _frame: FrameType | None) -> None:
        """However often it comes: a service manager sends it to all processes at once, and to this one the master's
        word may have come before."""
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
        if self._soon is None or self._stop is None:
            worker.stopped = True
            raise Stopped(0)
        self._soon(self._stop)


def _repeat_when_swallowed() -> None:
    """Where Python only prints exceptions (in a `__del__`, in a hook around os.fork), Stopped would be lost: then the
    signal is sent once more, from a thread, so that it comes when that place is left."""
    others = sys.unraisablehook

    def swallowed(what: sys.UnraisableHookArgs) -> None:
        if isinstance(what.exc_value, Stopped):
            _thread.start_new_thread(os.kill, (os.getpid(), signal.SIGQUIT))
        else:
            others(what)

    sys.unraisablehook = swallowed
