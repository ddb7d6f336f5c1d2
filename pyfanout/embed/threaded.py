"""The base of servers whose accept loop has the main thread, and whose requests have threads: hooks, READY, drain."""

from __future__ import annotations

import contextlib
import functools
import threading
import time
from abc import abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING

from pyfanout import greenlets
from pyfanout.embed.runner import GRACE_S, LOOK_S, Runner
from pyfanout.worker.serving import ServingWorker, inside
from pyfanout.worker.signals import Stopped

if TYPE_CHECKING:
    from pyfanout.worker.listener import Listener
    from pyfanout.worker.worker import WorkerProcess


class ThreadedRunner(Runner):
    """SIGTERM and SIGQUIT have the worker's own handlers, which run on the main thread between two bytecodes."""

    control = True
    """The server always accepts, so the listener hears the master. Else `run` must."""

    unpatched: tuple[str, ...] = greenlets.THREADS
    """Modules of the standard library that gevent must not have patched."""
    instead = "use --server gevent"
    """What to do if it has."""

    def check(self) -> None:
        super().check()
        self.refuse_greenlets()

    def refuse_greenlets(self) -> None:
        """Raises LoadError if the application has had threads replaced by greenlets, here or in its start hook."""
        greenlets.refuse(type(self).__module__.rpartition(".")[2], self.unpatched, self.instead)

    @abstractmethod
    def run(self, worker: ServingWorker, listener: Listener, started: Callable[[], None]) -> None:
        """Serve from `listener`, calling `started` once when connections may come, until `stop` was called and all is
        done."""

    @abstractmethod
    def stop(self) -> None:
        """Have `run` return. Called once, from another thread, when each connection was silent for a while, or the time
        is nearly up."""

    def busy(self) -> bool:
        """While it drains: whether the server knows of a request that is not done. From another thread."""
        return False

    def drains(self) -> None:
        """Called when it begins to drain: have the answers from now on say that the connection ends."""

    def serve(self, face: ServingWorker) -> None:
        worker = inside(face)
        worker.call_hook(worker.config.on_worker_start)
        self.refuse_greenlets()
        listener = worker.listener(control=self.control, tls=True, counted=not self.shows_requests)

        settled = threading.Event()
        settled.set()

        def drain() -> None:
            if not worker.forked:
                listener.quiet()
                self.drains()
                settled.clear()
                end_s = time.monotonic() + max(worker.config.drain_timeout - GRACE_S, 0)
                try:
                    worker.background.start(functools.partial(self._settle, worker, listener, end_s, settled))
                except RuntimeError:  # no thread can be had: nothing will set it
                    settled.set()
                    raise

        def close() -> None:
            self.drains()
            listener.connections.make_room()

        def started() -> None:
            worker.on_drain, worker.on_closing = drain, close
            worker.ready(pool=False, threads=0)

        try:
            self.run(ServingWorker(worker), listener, started)
            settled.wait()  # `stop` may have more to do than to have `run` return
        except Stopped:
            worker.stopped_with(listener.live)
            raise
        finally:
            with contextlib.suppress(OSError):
                listener.close()
            worker.call_hook(worker.config.on_worker_exit)

    def _settle(self, worker: WorkerProcess, listener: Listener, end_s: float, settled: threading.Event) -> None:
        """See `aio.AsyncioRunner`. A task of the worker's `background`: it may begin anew."""
        while self.waits(listener, end_s):
            worker.background.sleep(LOOK_S)
        self.stop()
        listener.wake()  # a loop that looks between two connections whether it is to end
        settled.set()

    def waits(self, listener: Listener, end_s: float) -> bool:
        """While it drains: whether its loop goes on; from another thread. `end_s`: when the time is nearly up."""
        return (self.busy() or not listener.settled) and time.monotonic() < end_s
