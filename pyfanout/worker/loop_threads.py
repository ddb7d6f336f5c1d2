"""The threads beside an asyncio loop, for `Watch`: those of its default executor, those of anyio, which run the `def`
endpoints of FastAPI and Starlette, and the one of asgiref's `sync_to_async`. A loop answers pings also when all these
threads are stuck.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import sys
from typing import TYPE_CHECKING, Any

from pyfanout.worker.threads import Pool, Steps

if TYPE_CHECKING:
    from pyfanout.worker.threads import Watch


def watch_threads(watch: Watch, loop: Any) -> None:
    """Watch the threads of `loop`, which has no executor yet, and of modules that are imported now or later."""
    threads = _LoopThreads(watch, loop)
    with contextlib.suppress(AttributeError):  # another library's class, in C
        threads.watch_loop()
    watch.add(threads.look_for_imports)


class _LoopThreads:
    def __init__(self, watch: Watch, loop: Any) -> None:
        self._watch = watch
        self._loop = loop
        self._steps = Steps()
        self._missing = {"anyio": self._watch_anyio, "asgiref.sync": self._watch_asgiref}
        """Modules that have threads of their own."""

    def watch_loop(self) -> None:
        loop = self._loop
        run, set_executor = loop.run_in_executor, loop.set_default_executor

        def run_in_executor(executor: Any, function: Any, *arguments: Any) -> Any:
            if executor is None:
                from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415 - few applications have one

                loop.set_default_executor(ThreadPoolExecutor(thread_name_prefix="asyncio"))  # as its own would be
            return run(executor, function, *arguments)

        def set_default_executor(executor: Any) -> None:
            set_executor(executor)
            loop.run_in_executor = run
            self._watch_executor(executor)

        loop.run_in_executor, loop.set_default_executor = run_in_executor, set_default_executor
        loop.call_soon_threadsafe = self._steps.counted(loop.call_soon_threadsafe)

    def look_for_imports(self) -> None:
        for name in [name for name in self._missing if name in sys.modules]:
            with contextlib.suppress(AttributeError, ImportError):  # its import is not over
                self._missing[name]()
                del self._missing[name]

    def _watch_executor(self, executor: Any) -> None:
        """It is stuck only while a job waits for a thread: an application may have any number of jobs there that never
        end."""
        pool = Pool.beside_loop(
            lambda: executor._max_workers, self._steps, is_wanted=lambda: executor._work_queue.qsize() > 0
        )
        submit = executor.submit

        def watched_submit(function: Any, /, *arguments: Any, **keywords: Any) -> Any:
            return submit(pool.call, function, *arguments, **keywords)

        executor.submit = watched_submit
        self._watch.add(pool.look)

    def _watch_anyio(self) -> None:
        """Threads within the limit that all tasks of the loop share by default, 40."""
        backend = importlib.import_module("anyio._backends._asyncio").AsyncIOBackend
        run = backend.run_sync_in_worker_thread.__func__
        shared: list[Any] = []
        pool = Pool.beside_loop(lambda: shared[0].total_tokens, self._steps)

        async def run_sync_in_worker_thread(
            cls: Any, function: Any, arguments: Any, abandon_on_cancel: bool = False, limiter: Any = None
        ) -> Any:
            if limiter is None and asyncio.get_running_loop() is self._loop:
                shared[:] = [cls.current_default_thread_limiter()]
                function, arguments = pool.call, (function, *arguments)
            return await run(cls, function, arguments, abandon_on_cancel, limiter)

        def look() -> object:
            return pool.look() if shared else None

        backend.run_sync_in_worker_thread = classmethod(run_sync_in_worker_thread)
        self._watch.add(look)

    def _watch_asgiref(self) -> None:
        """The one thread of all thread-sensitive calls. Django's requests have one each."""
        self._watch_executor(sys.modules["asgiref.sync"].SyncToAsync.single_thread_executor)
