"""waitress: WSGI, on a pool of threads behind one loop that reads and writes for them. It speaks no TLS."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pyfanout.embed.threaded import ThreadedRunner
from pyfanout.worker.serving import ServingWorker, inside

if TYPE_CHECKING:
    from pyfanout.kind import WSGIApp
    from pyfanout.worker.listener import Listener

DRAIN_S = 0.1
"""Seconds between two looks for channels that are done, while it stops."""


class Runner(ThreadedRunner):
    """`options` are waitress.serve's, such as `threads` (pyfanout's own if that is more than 1, else waitress's 4) or
    `trusted_proxy`, but for those of addresses."""

    needs = ("waitress",)
    extra = "wsgi"
    no_tls = "server: waitress speaks no TLS; cheroot does: --server cheroot"
    control = False  # at `connection_limit` it stops accepting
    shows_requests = True

    def __init__(self, app: WSGIApp, **options: Any) -> None:
        self._app = app
        self.server_options: dict[str, Any] = options
        self._server: Any = None
        self._stopping = False

    def run(self, face: ServingWorker, listener: Listener, started: Callable[[], None]) -> None:
        worker = inside(face)
        from waitress import wasyncore

        from pyfanout.embed.waitress_server import Control, server_on

        worker.adopt_logger("waitress")
        if worker.config.threads > 1:
            self.server_options.setdefault("threads", worker.config.threads)
        loop: dict[int, Any] = {}
        self._server = server = server_on(worker, listener, self._app, loop, self.server_options)
        Control(worker, loop)
        server.adj.connection_limit += 1  # waitress counts the sockets of its loop; one is the control socket
        listener.limit(max(server.adj.connection_limit - len(loop), 1))
        started()
        while not (self._stopping and not server.active_channels):
            if self._stopping:
                server.adj.channel_timeout = 0
                server.maintenance(time.time() + 1)  # marks those without a request to be closed
            timeout_s = DRAIN_S if self._stopping else server.adj.asyncore_loop_timeout
            wasyncore.loop(timeout=timeout_s, use_poll=server.adj.asyncore_use_poll, map=loop, count=1)
        server.task_dispatcher.shutdown()

    def busy(self) -> bool:
        """One is coming, and not whole yet: `maintenance` would close it."""
        return any(channel.request is not None for channel in list(self._server.active_channels.values()))

    def stop(self) -> None:
        self._stopping = True
        self._server.pull_trigger()
