"""Rival (b): one listener, opened before the fork; all workers accept from it."""

from __future__ import annotations

from bench.rivals import prefork
from bench.workloads import Handler


def serve(
    handler: Handler,
    *,
    host: str,
    port: int,
    workers: int,
    backlog: int,
    ready_fd: int,
) -> None:
    listener = prefork.listen(host, port, backlog, reuse_port=False)
    prefork.run(handler, workers, backlog, ready_fd, lambda _worker: listener)
