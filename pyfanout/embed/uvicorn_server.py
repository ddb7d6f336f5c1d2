"""uvicorn's Server as it is in a worker. It imports uvicorn, so `uvicorn.py` imports it in the worker."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn

from pyfanout.errors import WorkerError


class Server(uvicorn.Server):
    """`trigger` is done when it shall stop, and `noticed` is set when the applications were told that it will."""

    def __init__(
        self,
        config: uvicorn.Config,
        started: Callable[[], None],
        trigger: asyncio.Future[Any],
        noticed: asyncio.Event,
    ) -> None:
        super().__init__(config)
        self._started = started
        self._trigger = trigger
        self._noticed = noticed

    async def startup(self, sockets: Any = None) -> None:
        try:
            await super().startup(sockets)
        except SystemExit:  # which would end the loop at once
            raise WorkerError("the application's startup failed (lifespan), see the log") from None
        self._started()

    async def on_tick(self, counter: int) -> bool:
        """Whether the server ends: not because of `drains`, which sets `should_exit` only for the applications."""
        leaves = await super().on_tick(counter)
        return leaves and (self._trigger.done() or not self._noticed.is_set())

    async def main_loop(self) -> None:
        """Looks ten times a second whether it shall end; here it need not wait for the next look."""
        looking = asyncio.ensure_future(super().main_loop())
        try:
            await asyncio.wait([looking, self._trigger], return_when=asyncio.FIRST_COMPLETED)
        finally:
            found = not looking.cancel()
        if found:  # or failed
            looking.result()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield  # they are the worker's
