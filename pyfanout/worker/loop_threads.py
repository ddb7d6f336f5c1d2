"""The threads beside an asyncio loop, for `Watch`: of its default executor, of anyio, where the `def` endpoints of
FastAPI and Starlette run, and the one of asgiref's `sync_to_async`. A loop whose threads are all stuck answers pings.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from typing import TYPE_CHECKING, Any

from pyfanout.worker.threads import Pool, Steps

if TYPE_CHECKING:
    from pyfanout.worker.threads import Watch


def watch_threads(watch: Watch, loop: Any) -> None:
    """Those of `loop`, which has no executor yet, and of what is imported now or later."""
    run, set_executor = loop.run_in_executor, loop.set_default_executor

    def run_in_executor(executor: Any, function: Any, *arguments: Any) -> Any:
        if executor is None:
            from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415 - few applications have one

            loop.set_default_executor(ThreadPoolExecutor(thread_name_prefix="asyncio"))  # as its own would be
        return run(executor, function, *arguments)

    def set_default_executor(executor: Any) -> None:
        set_executor(executor)
        loop.run_in_executor = run
        _watch_executor(watch, steps, executor)

    steps = Steps()
    with contextlib.suppress(AttributeError):  # a class of somebody else's, in C
        loop.run_in_executor, loop.set_default_executor = run_in_executor, set_default_executor
        loop.call_soon_threadsafe = steps.counted(loop.call_soon_threadsafe)
    watch.add(_Imports(watch, steps).look)


class _Imports:
    """Looks for the modules that have threads of their own."""

    def __init__(self, watch: Watch, steps: Steps) -> None:
        self._watch = watch
        self._steps = steps
        self._missing = {"anyio": _watch_anyio, "asgiref.sync": _watch_asgiref}

    def look(self) -> None:
        for name in [name for name in self._missing if name in sys.modules]:
            with contextlib.suppress(AttributeError):  # its import is not over
                self._missing[name](self._watch, self._steps)
                del self._missing[name]


def _watch_executor(watch: Watch, steps: Steps, executor: Any) -> None:
    """Where something waits for a thread: an application may have as many threads there as it likes that never end."""
    pool = Pool.beside_loop(lambda: executor._max_workers, steps, is_wanted=lambda: executor._work_queue.qsize() > 0)
    submit = executor.submit

    def watched_submit(function: Any, /, *arguments: Any, **keywords: Any) -> Any:
        return submit(pool.call, function, *arguments, **keywords)

    executor.submit = watched_submit
    watch.add(pool.look)


def _watch_anyio(watch: Watch, steps: Steps) -> None:
    """Those that run within the limit that all share by default, 40."""
    backend = importlib.import_module("anyio._backends._asyncio").AsyncIOBackend
    run = backend.run_sync_in_worker_thread.__func__
    default: list[Any] = []
    pool = Pool.beside_loop(lambda: default[0].total_tokens, steps)

    async def run_sync_in_worker_thread(
        cls: Any, function: Any, arguments: Any, abandon_on_cancel: bool = False, limiter: Any = None
    ) -> Any:
        shared = cls.current_default_thread_limiter()
        if limiter is not None and limiter is not shared:
            return await run(cls, function, arguments, abandon_on_cancel, limiter)
        default[:] = [shared]
        return await run(cls, pool.call, (function, *arguments), abandon_on_cancel, shared)

    def look() -> object:
        return pool.look() if default else None

    backend.run_sync_in_worker_thread = classmethod(run_sync_in_worker_thread)
    watch.add(look)


def _watch_asgiref(watch: Watch, steps: Steps) -> None:
    """The one thread of all that is thread-sensitive. Django's requests have one each."""
    _watch_executor(watch, steps, sys.modules["asgiref.sync"].SyncToAsync.single_thread_executor)
