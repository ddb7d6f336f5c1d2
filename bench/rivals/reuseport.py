"""Rival (a): every worker has its own SO_REUSEPORT listener and the kernel spreads connections by a hash."""

from __future__ import annotations

import socket

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
    def own(_worker: int) -> socket.socket:
        return prefork.listen(host, port, backlog, reuse_port=True)

    prefork.run(handler, workers, backlog, ready_fd, own)
