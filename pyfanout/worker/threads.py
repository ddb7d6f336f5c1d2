"""Whether the threads that serve requests are stuck: each has been in the same request, and no byte has moved.

A loop that answers pings says nothing about the threads behind it. So a server with threads adds a look at them, and
each pong says for how long nothing there has changed. That costs a look with each ping, and two operations on a
dictionary for each request.
"""

from __future__ import annotations

import time

# By name: gevent replaces it. Its greenlets have no steps.
from _thread import get_ident
from collections.abc import Callable
from typing import Any, TypeVar

from pyfanout.worker.idle import bytes_moved

T = TypeVar("T")

Look = Callable[[], object]
"""Returns what all threads of a pool do now: a value that differs as soon as one of them does anything else. None: one
of them is free, or no request waits for one."""


class Watch:
    """The pools of one worker."""

    def __init__(self, looks: list[Look] | None = None) -> None:
        self._looks: list[Look] = [] if looks is None else looks
        self._seen: dict[Look, tuple[object, int]] = {}
        """What each look has returned, and since when it returns that."""

    def add(self, look: Look) -> None:
        self._looks.append(look)

    def again(self) -> Watch:
        """A watch of the same pools, for another caller, which asks at other times."""
        return Watch(self._looks)

    def still_ms(self) -> int:
        """For how many milliseconds all threads of a pool have done the same; 0: something has changed since the last
        call. Called with each ping."""
        now_ns, longest_ns = time.monotonic_ns(), 0
        for look in self._looks:
            found = look()
            before, since_ns = self._seen.get(look, (None, now_ns))
            if found is None or found != before:
                self._seen[look] = found, now_ns
            else:
                longest_ns = max(longest_ns, now_ns - since_ns)
        return longest_ns // 1_000_000


class Steps:
    """How often each thread has scheduled a callback on the loop, as a call does that sends its answer in parts: such a
    call makes progress, although it is not known whose bytes it moves."""

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}
        """By thread identifier."""

    def counted(self, tell_loop: Callable[..., T]) -> Callable[..., T]:
        def tell(*arguments: Any, **keywords: Any) -> T:
            ident = get_ident()
            self._counts[ident] = self._counts.get(ident, 0) + 1
            return tell_loop(*arguments, **keywords)

        return tell

    def of(self, ident: int) -> int:
        return self._counts.get(ident, 0)


class Pool:
    """A number of threads: `run` is called in one of them for each request."""

    def __init__(
        self,
        size: Callable[[], float],
        moved: Callable[[Any], object] = bytes_moved,
        *,
        is_wanted: Callable[[], bool] = lambda: True,
    ) -> None:
        """`size`: how many threads there can be. `moved`: a value that differs if a request has made progress.
        `is_wanted`: whether a request waits if no thread is free."""
        self._size = size
        self._moved = moved
        self._is_wanted = is_wanted
        self._doing: dict[object, Any] = {}
        """By request, what `moved` is to be called with."""

    @classmethod
    def beside_loop(cls, size: Callable[[], float], steps: Steps, **options: Any) -> Pool:
        """A pool for `call`."""
        return cls(size, steps.of, **options)

    def call(self, function: Callable[..., T], /, *arguments: Any, **keywords: Any) -> T:
        """`run`, for calls that report to a loop."""
        return self.run(get_ident(), function, *arguments, **keywords)

    def run(self, conn: Any, function: Callable[..., T], /, *arguments: Any, **keywords: Any) -> T:
        """Call `function` for a request of `conn`, a socket whose bytes tell whether it makes progress."""
        request = object()
        self._doing[request] = conn
        try:
            return function(*arguments, **keywords)
        finally:
            del self._doing[request]

    def look(self) -> object:
        doing = self._doing.copy()  # in one go
        if len(doing) < self._size() or not self._is_wanted():
            return None
        return {request: self._moved(conn) for request, conn in doing.items()}
