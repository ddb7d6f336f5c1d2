"""Which function is called when a descriptor is readable. The core reports a token; this knows the function."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable

from pyfanout.core import Core
from pyfanout.errors import CoreError


class Watches:
    """Of one core."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._tokens: dict[int, int] = {}
        """By descriptor."""
        self._callbacks: dict[int, Callable[[], object]] = {}
        """By token: a descriptor's number may be another's, by the time an event is read."""
        self._next = itertools.count()

    def add(self, fd: int, callback: Callable[[], object]) -> None:
        """Until `remove`, which comes before `fd` is closed. Raises CoreError."""
        token = next(self._next)
        self._core.watch(fd, token)
        self._tokens[fd] = token
        self._callbacks[token] = callback

    def remove(self, fd: int) -> None:
        """No-op if it is not watched."""
        token = self._tokens.pop(fd, None)
        if token is not None:
            del self._callbacks[token]
            # Nothing is to be done about a refusal: the kernel forgets `fd` when that is closed, and until then what it
            # reports has a token that stands for nothing.
            with contextlib.suppress(CoreError):
                self._core.unwatch(fd)

    def call(self, token: int) -> None:
        """An event has come. One that was removed by an event before this one is not called."""
        callback = self._callbacks.get(token)
        if callback is not None:
            callback()
