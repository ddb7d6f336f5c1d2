"""trio: a handler `async def handler(stream)` for `trio.serve_listeners`."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Awaitable, Callable, Iterator
from typing import TYPE_CHECKING, Any

from pyfanout import greenlets
from pyfanout.embed import runner
from pyfanout.embed.runner import LOOK_S
from pyfanout.worker import child, clients
from pyfanout.worker.serving import ServingWorker, inside

if TYPE_CHECKING:
    import trio

    from pyfanout.worker.listener import Listener
    from pyfanout.worker.worker import WorkerProcess

log = logging.getLogger("pyfanout.worker")


class Runner(runner.Runner):
    """`handler` gets a stream, or a `trio.SSLStream` with TLS; `stream.peer`, or
    `stream.transport_stream.peer`, is the client's address, also behind a proxy. `start`, if given, is a coroutine
    function that is called with the nursery before the first connection, to start what runs beside."""

    needs = ("trio",)

    def __init__(
        self,
        handler: Callable[[trio.abc.Stream], Awaitable[object]],
        *,
        start: Callable[[trio.Nursery], Awaitable[object]] | None = None,
    ) -> None:
        self._handler = handler
        self._start = start

    def check(self) -> None:
        greenlets.refuse("trio", greenlets.ALL, "do not patch its process")
        super().check()

    def serve(self, face: ServingWorker) -> None:
        worker = inside(face)
        import trio

        worker.call_hook(worker.config.on_worker_start)
        try:
            trio.run(self._live, worker)
        finally:
            worker.call_hook(worker.config.on_worker_exit)

    async def _live(self, worker: WorkerProcess) -> None:
        try:
            await self._run(worker)
        finally:
            worker.signals.plain()  # trio may not run a callback that is scheduled from here on

    async def _run(self, worker: WorkerProcess) -> None:
        import trio

        from pyfanout.embed.trio_listener import PassedListener

        listener = worker.listener()
        draining, context = trio.Event(), worker.tls_context()
        threads = trio.to_thread.current_default_thread_limiter()

        def look() -> object:
            """For `Watch`: each call of `trio.to_thread.run_sync` is a borrower of its own."""
            return set(threads.statistics().borrowers) if threads.available_tokens <= 0 else None

        worker.watch.add(look)

        forking: set[trio.lowlevel.Task] = set()

        def drain() -> None:
            if worker.forked:
                forking.update(_lineage())
            else:
                listener.quiet()
                draining.set()

        accepting: Any = PassedListener(listener)
        if context is not None:
            accepting = trio.SSLListener(accepting, context, https_compatible=True)
        async with trio.open_nursery() as outer, trio.open_nursery() as handlers:

            def stop() -> None:
                worker.stopped_with(listener.live)
                outer.cancel_scope.cancel()

            if self._start is not None:
                await self._start(outer)
            handle = functools.partial(_handle, worker, listener, functools.partial(_call, self._handler, forking))
            serving = await handlers.start(_accept, accepting, handlers, handle)
            worker.signals.through(trio.lowlevel.current_trio_token().run_sync_soon, stop)
            worker.on_drain, worker.on_closing = drain, listener.connections.make_room
            worker.ready(pool=False, threads=0)
            await draining.wait()
            while listener.in_preamble:  # for a second at most
                await trio.sleep(LOOK_S)
            serving.cancel()
            await _settle(worker, listener, handlers)
            outer.cancel_scope.cancel()


async def _accept(listener: Any, nursery: Any, handler: Any, *, task_status: Any) -> None:
    import trio

    with trio.CancelScope() as scope:
        task_status.started(scope)
        await trio.serve_listeners(handler, [listener], handler_nursery=nursery)


async def _handle(worker: WorkerProcess, listener: Listener, handler: Any, stream: Any) -> None:
    """One connection. What goes wrong with it is its own affair: in trio it would end the server."""
    import trio

    if isinstance(stream, trio.SSLStream):
        try:
            with trio.fail_after(worker.config.handshake_timeout):
                fd = stream.transport_stream.socket.fileno()
                with listener.connections.shaking_hands(fd, lambda: stream._incoming.pending):
                    await stream.do_handshake()
        except (trio.BrokenResourceError, trio.TooSlowError) as error:
            clients.log.info(
                "worker=%d: no TLS with a client: %s; the connection is closed", worker.slot, error.__cause__ or error
            )
            return
    try:
        await handler(stream)
    except trio.BrokenResourceError as error:
        clients.log.debug("worker=%d: a client has disconnected: %s", worker.slot, error)
    except Exception:
        log.exception("worker=%d: the handler raised an exception; the worker goes on", worker.slot)


async def _call(handler: Any, forking: set[trio.lowlevel.Task], stream: Any) -> None:
    """A child that the handler, or a task of its own, has forked ends with the child's copy of the handler. Its copies
    of the other tasks are its parent's affair."""
    import trio

    error: BaseException | None = None
    try:
        await handler(stream)
    except trio.Cancelled:
        raise
    except BaseException as raised:
        error = raised
        raise
    finally:
        if trio.lowlevel.current_task() in forking:
            child.leave_with(error)


def _lineage() -> Iterator[trio.lowlevel.Task]:
    """The running task, and those whose nurseries it is in."""
    import trio

    task: trio.lowlevel.Task | None = None
    with contextlib.suppress(RuntimeError):  # it runs in a thread beside the loop
        task = trio.lowlevel.current_task()
    while task is not None:
        yield task
        task = task.parent_nursery and task.parent_nursery.parent_task


async def _settle(worker: WorkerProcess, listener: Listener, handlers: Any) -> None:
    """Until all handlers have returned, or the time is up; those that only wait for a client find the end."""
    import trio

    with trio.move_on_after(worker.config.drain_timeout):
        while listener.live:
            listener.connections.end_silent()
            await trio.sleep(LOOK_S)
        return
    worker.stopped_with(listener.live)
    handlers.cancel_scope.cancel()
