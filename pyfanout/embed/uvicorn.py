"""uvicorn: ASGI. With uvloop if it is installed, as uvicorn has it."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from pyfanout.embed.asgi import Application, ASGIRunner, single_callable
from pyfanout.embed.counting import counted_asgi
from pyfanout.errors import ConfigError
from pyfanout.worker.serving import ServingWorker, inside

if TYPE_CHECKING:
    from pyfanout.kind import ASGIApp
    from pyfanout.worker.listener import Listener

HURRY_S = 0.7
"""For requests that are cancelled in a fast stop; then comes the lifespan's shutdown."""


class Runner(ASGIRunner):
    """`options` are uvicorn.Config's: `http`, `ws`, `lifespan`, `root_path`, `ssl_certfile`, ... but for those of
    addresses and workers; `reload` means nothing here. `loop`: "auto" (uvloop if installed), "uvloop", "asyncio". No
    access log, unless `access_log=True`: pyfanout logs nothing per connection either."""

    needs = ("uvicorn",)
    extra = "asgi"

    def __init__(self, app: ASGIApp, *, loop: str = "auto", **options: Any) -> None:
        super().__init__(app, loop)
        self._given: Any = app
        self.server_options = {"log_config": None, "access_log": False, **options}
        if callable(app) and not options.keys() & {"interface", "factory"}:  # else uvicorn itself finds out
            self._given, self.server_options["interface"] = single_callable(app), "asgi3"
        self._server: Any = None
        self._noticed: Any = None
        """Set when the applications were told that the worker drains."""

    async def run(
        self, face: ServingWorker, listener: Listener, started: Callable[[], None], stopping: asyncio.Event
    ) -> None:
        worker = inside(face)
        import uvicorn

        from pyfanout.embed.uvicorn_server import Server

        self._noticed = asyncio.Event()
        worker.adopt_logger("uvicorn")
        config = uvicorn.Config(self._given, **self.server_options)
        config.load()
        if context := worker.tls_context():
            if theirs := [name for name in self.server_options if name.startswith("ssl_")]:
                raise ConfigError(f"{', '.join(theirs)}: pyfanout does TLS already; give its ssl a context instead")
            config.ssl = context
        self.app = Application(config.loaded_app)  # as ASGI 3, with uvicorn's own middleware
        config.loaded_app = counted_asgi(self.app, worker)
        trigger = asyncio.ensure_future(stopping.wait())
        self._server = server = Server(config, started, trigger, self._noticed)
        serving = asyncio.ensure_future(server.serve(sockets=[listener]))
        try:
            await asyncio.wait([serving, trigger], return_when=asyncio.FIRST_COMPLETED)
            server.should_exit = True
            await serving
            if server.force_exit:  # then it has left both out
                if tasks := self.app.tasks.copy():
                    await asyncio.wait(tasks, timeout=HURRY_S)
                await server.lifespan.shutdown()
        finally:
            trigger.cancel()
            serving.cancel()

    def drains(self) -> None:
        """Endless streams check `should_exit`, or have replaced `handle_exit` (sse-starlette), which uvicorn calls at a
        signal. uvicorn's own stop comes later."""
        super().drains()
        if not self._noticed.is_set():
            self._noticed.set()
            self._server.handle_exit(signal.SIGTERM, None)

    def hurry(self) -> None:
        self._server.force_exit = True

    def requests(self) -> Iterable[asyncio.Task[Any]]:
        """For uvicorn their clients have gone: else it would answer 500, and log an error, when they return."""
        for connection in list(self._server.server_state.connections):
            cycle = getattr(connection, "cycle", None)  # a websocket has none
            if cycle is not None and not cycle.response_complete:
                cycle.disconnected = True
                cycle.message_event.set()
                connection.transport.close()
        return super().requests()
