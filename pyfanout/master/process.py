"""Processes: fork, the child's first steps, pidfd, how one ended.

Owns a child's pidfd. Knows nothing of slots or states; is handed what the child shall run.
"""

from __future__ import annotations

import gc
import logging
import os
import resource
import select
import signal
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from pyfanout import exits
from pyfanout.errors import CoreError, is_refusal
from pyfanout.host import sigmask, stdio
from pyfanout.master.signals import name_of

log = logging.getLogger("pyfanout.master")

DEBUGGER_S = 1.0
"""How long a debugger that traces a dead worker may keep it. After that the master does not wait, and the worker stays
a zombie."""


@dataclass(frozen=True, slots=True)
class ExitReport:
    """How a process ended."""

    code: int | None
    """Its exit code, or None."""
    signum: int | None = None
    """The signal that killed it, or None. Both None: its status was reaped elsewhere (SIGCHLD ignored), or a debugger
    keeps it."""
    dumped: bool = False
    """It has left a core."""

    def __str__(self) -> str:
        if self.code is not None:
            return f"exited with code {self.code}"
        if self.signum is None:
            return "ended, but its exit status was reaped elsewhere"
        return f"was killed by {name_of(self.signum)}{', and has left a core' if self.dumped else ''}"


class Process:
    """A child of this process, known by its pidfd: its pid cannot become another's while we hold that."""

    __slots__ = ("pid", "pidfd")

    def __init__(self, pid: int, pidfd: int) -> None:
        self.pid = pid
        self.pidfd = pidfd
        """Readable when the process is dead."""

    def send(self, signum: int) -> None:
        """A process that is already dead is left in peace. So is one that has become a user whom we may not signal."""
        try:
            try:
                signal.pidfd_send_signal(self.pidfd, signum)
            except OSError as error:
                if not is_refusal(error):
                    raise
                if not self.is_over(0):  # then its number is still its own
                    os.kill(self.pid, signum)
        except ProcessLookupError:
            return
        except OSError as error:
            log.error(
                "process pid=%d cannot be sent %s: %s; it goes on without this signal",
                self.pid,
                name_of(signum),
                error.strerror,
            )

    def abort(self, *, core: bool) -> None:
        """SIGABRT: it writes the stacks of its threads, and dies; with a core only if `core`. SIGKILL if it would leave
        one, or is stopped: a stopped process cannot write, and must not be woken, because it might take a connection
        first."""
        may = not self.is_stopped() and (core or self._can_leave_no_core())
        self.send(signal.SIGABRT if may else signal.SIGKILL)

    def _can_leave_no_core(self) -> bool:
        """Sets its limit, just before its end: a limit from its start on would hold for its children, too. Not 0 but
        one byte, too small for any core: a program that reads cores from a pipe (core_pattern) gets them whatever the
        limit is, except for this one, see `do_coredump` in the kernel's fs/coredump.c."""
        try:
            _, hard = resource.prlimit(self.pid, resource.RLIMIT_CORE)
            resource.prlimit(self.pid, resource.RLIMIT_CORE, (1, hard or 1))
        except (OSError, ValueError):  # it has another user now; or its limit is 0 and cannot be raised
            return self._core_is_forbidden()
        return True

    def _core_is_forbidden(self) -> bool:
        try:
            with open("/proc/sys/kernel/core_pattern", "rb") as pattern:
                return pattern.read(1) not in (b"|", b"@") and resource.prlimit(self.pid, resource.RLIMIT_CORE)[0] == 0
        except OSError:
            return False

    def is_over(self, wait_s: float) -> bool:
        """Whether it is dead, or dies within `wait_s` seconds."""
        poll = select.poll()
        poll.register(self.pidfd, select.POLLIN)
        return bool(poll.poll(wait_s * 1000))

    def is_stopped(self) -> bool:
        """By SIGSTOP or a terminal."""
        try:
            with open(f"/proc/{self.pid}/stat", "rb") as stat:
                return stat.read().rpartition(b")")[2].split()[0] == b"T"
        except (OSError, IndexError):
            return False

    def kill(self, wait_s: float) -> bool:
        """Send SIGKILL, wait for its end, and close the pidfd. False: it does not die within `wait_s` seconds. Once
        only."""
        self.send(signal.SIGKILL)
        over = self.is_over(wait_s)
        if over:
            self.reap()
        else:
            os.close(self.pidfd)
        return over

    def reap(self) -> ExitReport:
        """After its end, which `pidfd` has announced: read its status and close the pidfd. Once only."""
        try:
            info = self._status()
        except ChildProcessError:
            info = None
        finally:
            os.close(self.pidfd)
        if info is None:
            return ExitReport(None)
        if info.si_code == os.CLD_EXITED:
            return ExitReport(info.si_status)
        return ExitReport(None, info.si_status, info.si_code == os.CLD_DUMPED)

    def _status(self) -> os.waitid_result | None:
        """Returns at once, except for a debugger (strace), which has to see the status first, and may itself be
        stopped."""
        end_s = time.monotonic() + DEBUGGER_S
        while (info := self._wait()) is None and time.monotonic() < end_s:
            time.sleep(0.001)
        return info

    def _wait(self) -> os.waitid_result | None:
        try:
            return os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED | os.WNOHANG)
        except ChildProcessError:
            raise
        except OSError:  # a sandbox, or Linux 5.3. Its number is its own until it is reaped
            return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG)


def own_pidfd() -> int:
    """A pidfd of this process. Raises CoreError if there is none to be had: then deaths could not be heard of."""
    try:
        return os.pidfd_open(os.getpid())
    except OSError as error:
        doing = "watch processes: it needs pidfd_open (Linux 5.3), which a sandbox has to allow"
        raise CoreError(error.errno or 0, f"{doing}: {error.strerror}") from error


def file_for_stacks() -> int:
    """A descriptor of a file without a name, for a worker's last words."""
    try:
        return os.memfd_create("stacks")
    except OSError as error:
        if not is_refusal(error):
            raise
        with tempfile.TemporaryFile(buffering=0) as file:
            return os.dup(file.fileno())


def spawn(first_steps: Callable[[], None], entry: Callable[[], int]) -> Process:
    """Fork a child that runs `first_steps` with all signals blocked, then `entry`, and exits with its result.

    The child never returns into the caller's stack, whatever happens in it. Raises OSError if the fork or its pidfd
    is refused (EAGAIN, ENOMEM, EMFILE); then there is no child.
    """
    stdio.flush()  # else the child writes what is buffered once more
    # A signal between the fork and the child's first steps would run the master's handler in the child.
    mask = sigmask.block_all()
    try:
        pid = os.fork()
        if pid == 0:
            _live(first_steps, entry, mask)
        try:
            pidfd = os.pidfd_open(pid)
        except OSError:
            os.kill(pid, signal.SIGKILL)  # without a pidfd its death would not be seen
            os.waitpid(pid, 0)
            raise
        return Process(pid, pidfd)
    finally:
        sigmask.restore(mask)


def _live(first_steps: Callable[[], None], entry: Callable[[], int], mask: Iterable[int]) -> None:
    """The whole life of a child. Does not return."""

    def live() -> int:
        first_steps()
        sigmask.restore(mask)
        return entry()

    code = exits.SOFTWARE
    # The parent's objects: to collect them would copy the pages that they share, and run the parent's finalizers. In
    # the child, because the parent could never collect them again. It moves three lists, at the same cost for any size.
    gc.freeze()
    try:
        code = exits.code_of(live)
    finally:
        try:
            stdio.flush()
        finally:
            os._exit(code)  # not sys.exit: that would unwind into the master's frames and run its clean-up
