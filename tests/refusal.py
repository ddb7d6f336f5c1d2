"""Calls that fail: one of Python's, once, for programmes that sweep over all its occurrences; a worker's looks into its
channel, for servers under test."""

from __future__ import annotations

import errno
import mmap
import os
import socket
import sys
from collections.abc import Callable
from types import TracebackType
from typing import Any

from pyfanout.core import Taker


class Refusal:
    """`with Refusal("os.fork", errno.EAGAIN, after=2):` - the third one fails.

    Only in one process, the one that called `arm`, or made it: those that it forks have the call as it was. And not on
    the sockets of clients, which are no UNIX ones.
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

    def __enter__(self) -> Refusal:
        def stand_in(*arguments: Any, **options: Any) -> Any:  # a function: in a class it becomes a method
            client = self.name.startswith(("recv", "send")) and arguments[0].family != socket.AF_UNIX
            if os.getpid() == self.pid and not client:
                self._met[:4] = (self.met + 1).to_bytes(4, "little")
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


def refuse_to_take(error: str, times: int) -> None:
    """The next `times` looks for a connection fail in this process, as if the kernel did not let it have one."""
    left = [True] * times

    def refusing(look: Callable[..., Any], refused: Any) -> Callable[..., Any]:
        return lambda *arguments: refused if left and left.pop() else look(*arguments)

    rc = -getattr(errno, error)
    Taker.take = refusing(Taker.take, rc)  # type: ignore[method-assign]
    Taker.take_ready = refusing(Taker.take_ready, (rc, ()))  # type: ignore[method-assign]
