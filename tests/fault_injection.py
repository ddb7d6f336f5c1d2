"""Calls that fail: one of Python's or of the core's, once, for scripts that sweep over all its occurrences; a
worker's looks into its channel, for servers under test."""

from __future__ import annotations

import errno
import mmap
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from pyfanout.core import Receiver

LIBRARY = {"contextlib", "pathlib", "socket", "tempfile"}
"""Modules that make calls for others."""


class Refusal:
    """`with Refusal("os.fork", errno.EAGAIN, after=2):` - the third one of Python's fails.

    Only those that pyfanout makes, and only in one process, the one that called `arm`, or made it: what that forks has
    the call as it was.
    """

    def __init__(self, name: str, error: int, after: int) -> None:
        *where, self.name = name.split(".")
        self.owner: Any = sys.modules[where[0]]
        for each in where[1:]:
            self.owner = getattr(self.owner, each)
        self.real = getattr(self.owner, self.name)
        self.own = self.name in vars(self.owner)
        self.error, self.after = error, after
        self._met = mmap.mmap(-1, 4)  # shared
        self.arm()

    def arm(self) -> None:
        self.pid = os.getpid()

    @property
    def met(self) -> int:
        """Occurrences."""
        return int.from_bytes(self._met[:4], "little")

    @met.setter
    def met(self, count: int) -> None:
        self._met[:4] = count.to_bytes(4, "little")

    def __enter__(self) -> Refusal:
        def stand_in(*arguments: Any, **options: Any) -> Any:  # a function: in a class it becomes a method
            adopts = self.name == "__init__" and (len(arguments) > 4 or "fileno" in options)  # a socket that is there
            if os.getpid() == self.pid and is_ours(sys._getframe(1)) and not adopts:
                self.met += 1
                if self.met == self.after + 1:
                    if self.error == errno.ECHILD:  # somebody else has taken it
                        self.real(*arguments, **options)
                    raise OSError(self.error, os.strerror(self.error))
            return self.real(*arguments, **options)

        setattr(self.owner, self.name, stand_in)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.own:
            setattr(self.owner, self.name, self.real)
        else:
            delattr(self.owner, self.name)

    def over(self) -> None:
        """The process that was armed is about to end."""


class CoreRefusal(Refusal):
    """The same of a call that the core makes. `library`: tests/core/faults.c, compiled."""

    faults: Any = None

    def __init__(self, library: str, call: str, error: int, after: int) -> None:
        self.call, self.error, self.after = call, error, after
        self._met = mmap.mmap(-1, 4)
        if CoreRefusal.faults is None:
            from core.kit import Faults  # noqa: PLC0415 - it needs the core

            CoreRefusal.faults = Faults(Path(library))
            os.register_at_fork(after_in_child=self.faults.reset)
        self.arm()

    def arm(self) -> None:
        self.pid = os.getpid()
        self.faults.reset()
        self.faults.fail(self.call, self.error, after=self.after)

    def over(self) -> None:
        self.met = max(self.met, self.faults.calls(self.call))

    def __enter__(self) -> CoreRefusal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.over()
        self.faults.reset()


def is_ours(frame: FrameType | None) -> bool:
    """Whether pyfanout makes the call, by itself or through a module of the library."""
    while frame is not None and frame.f_globals["__name__"] in LIBRARY:
        frame = frame.f_back
    return frame is not None and frame.f_globals["__name__"].startswith("pyfanout.")


def refuse_to_take(error: str, times: int) -> None:
    """The next `times` looks for a connection fail in this process, as if the kernel did not let it have one."""
    left = [True] * times

    def refusing(look: Callable[..., Any], refused: Any) -> Callable[..., Any]:
        return lambda *arguments: refused if left and left.pop() else look(*arguments)

    rc = -getattr(errno, error)
    Receiver.take = refusing(Receiver.take, rc)  # type: ignore[method-assign]
    Receiver.take_ready = refusing(Receiver.take_ready, (rc, ()))  # type: ignore[method-assign]
