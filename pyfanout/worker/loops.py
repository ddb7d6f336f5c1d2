"""The asyncio loops that an application uses while it is loaded, on which its server then runs."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import inspect
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from pyfanout.errors import LoadError
from pyfanout.link.messages import WAKE
from pyfanout.worker.aio import close, waking

if TYPE_CHECKING:
    from pyfanout.config import Config
    from pyfanout.worker.worker import WorkerProcess


class Loops:
    """Those of one application."""

    def __init__(self, config: Config, name: str, worker: WorkerProcess | None) -> None:
        """`name`: of the kind of loop, as for `embed.loop.loop_factory`. No worker: the application is only checked."""
        self._config = config
        self._worker = worker
        self.prefix = "" if worker is None else f"worker={worker.slot}: "
        """Of log lines."""
        self._name = name
        self.runner: asyncio.Runner | None = None
        """The server runs on its loop."""
        self._lent: asyncio.AbstractEventLoop | None = None
        """What `asyncio.get_event_loop` has returned while no loop was running."""

    def load_before(self, load: Callable[[], Any]) -> Any:
        with self._lending():
            found = load()
        return self.load_within(lambda: found) if inspect.iscoroutine(found) else found

    def load_within(self, load: Callable[[], Any]) -> Any:
        async def run() -> tuple[Any, BaseException | None]:
            try:
                with contextlib.nullcontext() if self._worker is None else waking(self._worker):
                    found = load()
                    return (await found if inspect.iscoroutine(found) else found), None
            except (Exception, SystemExit) as error:  # the latter would not only end the task
                return None, error

        lent = self._lent
        factory = importlib.import_module("pyfanout.embed.loop").loop_factory(self._name, self._config)
        self.runner = asyncio.Runner(loop_factory=factory if lent is None else lambda: lent)
        found, error = self.runner.run(run())
        if error is not None:
            self.close()
            raise error
        return found

    def settle(self, *, on_asyncio: bool) -> None:
        """Whether the server runs on asyncio is known. Raises LoadError."""
        if not on_asyncio and self.runner is not None:
            raise LoadError("the application needs a running loop when it is loaded, and its server has none")
        lent = self._lent
        if on_asyncio and lent is not None and self.runner is None:
            self.runner = asyncio.Runner(loop_factory=lambda: lent)

    def close(self) -> None:
        """The application is not served."""
        if self.runner is not None and self._worker is None:
            self.runner.close()
        elif self.runner is not None and self._worker is not None:
            close(self._worker, self.runner)
            signal.signal(WAKE, self._worker.signals.look)  # a loop removes its signal handlers when it is closed
        elif self._lent is not None:
            self._lent.close()
        self.runner = self._lent = None

    @contextlib.contextmanager
    def _lending(self) -> Iterator[None]:
        """Meanwhile `asyncio.get_event_loop` returns a loop on which a server can run later, where it would make one
        that never runs, or fail (from 3.14 on), upon which tornado's `IOLoop.current` makes one."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # 3.14: policies will be removed
            before = asyncio.get_event_loop_policy()
            ours = _policy(self._lend)
            asyncio.set_event_loop_policy(ours)
        try:
            yield
        finally:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)
                if asyncio.get_event_loop_policy() is ours:  # else the application has set its own
                    asyncio.set_event_loop_policy(before)
                    if self._lent is not None:
                        asyncio.set_event_loop(self._lent)

    def _lend(self) -> asyncio.AbstractEventLoop:
        self._lent = importlib.import_module("pyfanout.embed.loop").new_asyncio_loop()
        return self._lent


def _policy(lend: Callable[[], asyncio.AbstractEventLoop]) -> asyncio.AbstractEventLoopPolicy:
    """The default one, but where it makes the main thread's loop by itself, that is `lend`'s."""

    class Policy(asyncio.DefaultEventLoopPolicy):
        _asked = False

        def get_event_loop(self) -> asyncio.AbstractEventLoop:
            self._asked = threading.current_thread() is threading.main_thread()
            try:
                return super().get_event_loop()
            except RuntimeError:
                if not self._asked or sys.version_info < (3, 14):
                    raise
                self.set_event_loop(self.new_event_loop())
                return super().get_event_loop()
            finally:
                self._asked = False

        def new_event_loop(self) -> asyncio.AbstractEventLoop:
            """Also called for threads, and by `asyncio.run`."""
            return lend() if self._asked else super().new_event_loop()

    return Policy()
