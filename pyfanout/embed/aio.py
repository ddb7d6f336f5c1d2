"""The base of servers on an asyncio loop: hooks, READY, signals, drain. One coroutine is left to each server."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from abc import abstractmethod
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from pyfanout.embed.loop import loop_factory
from pyfanout.embed.runner import GRACE_S, LOOK_S, Runner
from pyfanout.worker import loop_child
from pyfanout.worker.aio import CANCEL_S, close, hooks, runner_of, signals_through
from pyfanout.worker.loop_threads import watch_threads
from pyfanout.worker.serving import ServingWorker, inside

if TYPE_CHECKING:
    from pyfanout.worker.listener import Listener
    from pyfanout.worker.worker import WorkerProcess

log = logging.getLogger("pyfanout.worker")

GIVE_UP_S = 0.2
"""For the server's coroutine to end when it is cancelled in a fast stop. The rest of the 2 s is for the exit hook and
exit functions."""


class AsyncioRunner(Runner):
    """A server on asyncio, or on a loop that behaves like it."""

    loop: str | Callable[[], asyncio.AbstractEventLoop] = "asyncio"
    """"asyncio", "uvloop", "auto" (uvloop if it is installed), or a function that makes a loop."""

    _cut: int | None = None
    """What `cut` has returned."""

    @abstractmethod
    async def run(
        self, worker: ServingWorker, listener: Listener, started: Callable[[], None], stopping: asyncio.Event
    ) -> None:
        """Serve from `listener`, calling `started` once when connections may come; when `stopping` is set, stop
        gracefully and return. By then each connection was silent for a while, or the time is nearly up."""

    def busy(self) -> bool:
        """While it drains: whether the server knows of a request that is not done."""
        return False

    def held(self, listener: Listener) -> int:
        """Connections with a request, or a websocket, that is not over: the log has their number when the drain's time
        is over. Without those that `cut` has counted."""
        return listener.live

    def cut(self, listener: Listener) -> int:
        """Called once when the drain's time is nearly over: how many connections with a request, or a websocket, end
        now, by `farewell` or by the server's own stop. The others may be answered until the time is over."""
        return 0

    def requests(self) -> Iterable[asyncio.Task[Any]]:
        """The tasks of the requests that are under way. In a fast stop they are cancelled, just after `hurry`, and
        again if they do not end."""
        return ()

    async def farewell(self) -> None:
        """Called when the drain's time is nearly over, or when the worker has to stop at once and `stopping` is set:
        close the websockets that the server's own stop would cut off without a close frame."""

    def notice(self) -> None:
        """Called once, when a draining worker has accepted its last connection: do what the server does at the
        beginning of its own stop to tell its application, if that may come before its other steps."""

    def drains(self) -> None:
        """Called once, when it begins to drain: have the answers from now on say that the connection ends."""

    def hurry(self) -> None:
        """Called, before `stopping` is set or after it, when the worker shall stop at once: wait for no client. If
        `run` has not returned a second later, it is cancelled."""

    def serve(self, face: ServingWorker) -> None:
        worker = inside(face)
        runner = runner_of(worker, loop_factory(self.loop, worker.config))
        try:
            runner.run(self._live(worker))
        finally:
            close(worker, runner)

    async def _live(self, worker: WorkerProcess) -> None:
        async with hooks(worker):
            await self._serve(worker)

    async def _serve(self, worker: WorkerProcess) -> None:
        loop = asyncio.get_running_loop()
        watch_threads(worker.watch, loop)
        worker.farewell.on(loop)
        listener = worker.listener(blocking=False, counted=not self.shows_requests)
        stopping, stopped, given_up = asyncio.Event(), asyncio.Event(), loop.create_future()
        settling: list[asyncio.Task[Any]] = []  # a loop holds its tasks by weak references

        def drain() -> None:
            if worker.forked:
                loop_child.leave_loop(loop)
            else:
                listener.quiet()
                self.drains()
                settling.append(loop.create_task(self._settle(worker, listener, stopping)))

        def close() -> None:
            self.drains()
            listener.connections.make_room()

        def started() -> None:
            worker.on_drain, worker.on_closing = drain, close
            signals_through(worker, stop)
            worker.ready(pool=False, threads=0)

        def stop() -> None:
            if stopped.is_set():
                return
            worker.stopped_with(listener.live if self._cut is None else self._cut + self.held(listener))
            listener.quiet()
            self.hurry()
            settling.append(loop.create_task(self.farewell()))
            settling.append(loop.create_task(self._cut_short(serving, given_up)))
            stopping.set()
            stopped.set()

        serving = loop.create_task(self.run(ServingWorker(worker), listener, started, stopping))
        await asyncio.wait([serving, given_up], return_when=asyncio.FIRST_COMPLETED)
        if worker.forked:  # asyncio has no running loop in a child, so the server's copy fails
            await loop.create_future()
        # Connections that the server has closed may still be open.
        while worker.draining and listener.connections.unserved and not stopped.is_set():
            await asyncio.sleep(LOOK_S)
        if self._cut is not None:
            worker.stopped_with(self._cut)
        for task in settling:
            task.cancel()
        with contextlib.suppress(OSError):  # the server has closed it, by its number
            listener.close()
        _leave(worker, serving)

    async def _settle(self, worker: WorkerProcess, listener: Listener, stopping: asyncio.Event) -> None:
        """`_serve` cancels it when the server has stopped."""
        loop = asyncio.get_running_loop()
        end_s = loop.time() + max(worker.config.drain_timeout - GRACE_S, 0)
        self.notice()
        await settled(listener, self.busy, end_s)
        stopping.set()
        while loop.time() < end_s:
            listener.connections.end_unserved()
            await asyncio.sleep(LOOK_S)
        self._cut = self.cut(listener)
        await self.farewell()
        while True:
            listener.connections.end_unserved()
            await asyncio.sleep(LOOK_S)

    async def _cut_short(self, serving: asyncio.Task[None], given_up: asyncio.Future[None]) -> None:
        """Ends requests; `_serve` cancels it when the server has stopped. A handler that cleans up has a while for that
        before it is cancelled again."""
        loop = asyncio.get_running_loop()
        begun_s = loop.time()
        await asyncio.sleep(LOOK_S)  # the server itself may tell handlers first that their client has gone
        for each in self.requests():
            each.cancel()
        await asyncio.sleep(CANCEL_S)
        while loop.time() < begun_s + GRACE_S:
            for each in self.requests():
                each.cancel()
            await asyncio.sleep(LOOK_S)
        serving.cancel()
        await asyncio.sleep(GIVE_UP_S)
        given_up.set_result(None)


def _leave(worker: WorkerProcess, serving: asyncio.Task[None]) -> None:
    """The server has stopped, or was given up. Raises what it has raised."""
    if not serving.done():
        log.warning(
            "worker=%d: its server has not stopped although it was cancelled; the worker exits without it", worker.slot
        )
    elif not serving.cancelled():
        serving.result()
        if not worker.draining:  # it left by itself; a worker says so
            worker.drain()


async def settled(listener: Listener, busy: Callable[[], bool], end_s: float) -> None:
    """A server's graceful stop closes every connection without a running request at once, also that of a client that
    has just connected, or whose next request is on its way. So this waits until there are none, or until `end_s` (the
    loop's time)."""
    loop = asyncio.get_running_loop()
    while (busy() or not listener.settled) and loop.time() < end_s:
        await asyncio.sleep(LOOK_S)
