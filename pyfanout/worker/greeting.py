"""What comes before an application's first byte on a blocking connection: PROXY header, TLS handshake."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyfanout.kind import BlockingHandler
    from pyfanout.worker.connection import Connection
    from pyfanout.worker.worker import Worker

log = logging.getLogger("pyfanout.worker")


def greeted(worker: Worker, handler: BlockingHandler, *, proxied: bool = True) -> BlockingHandler:
    """A handler that does what the options ask for, and then calls `handler` with the secure connection and the true
    client. A client with which that fails is closed, with one line in the log. Raises ConfigError.

    `proxied`: False if the listener has seen to the PROXY header.
    """
    config = worker.config
    if config.tls:
        handler = _secured(worker, handler)
    if config.proxy_protocol and proxied:
        handler = _known(worker, handler)
    return handler


def _secured(worker: Worker, handler: BlockingHandler) -> BlockingHandler:
    from pyfanout.worker.tls import shake_hands  # noqa: PLC0415 - ssl takes 10 ms to import

    context, timeout_s = worker.tls_context(), worker.config.handshake_timeout
    assert context is not None

    def handle(conn: Connection, addr: Any) -> None:
        try:
            secure = shake_hands(conn, context, timeout_s)
        except OSError as error:
            log.info("worker=%d: no TLS with %s: %s", worker.slot, addr, error)
            return
        try:
            handler(secure, addr)
        finally:
            secure.finish()

    return handle  # type: ignore[return-value]


def _known(worker: Worker, handler: BlockingHandler) -> BlockingHandler:
    from pyfanout.worker.proxy import Gate  # noqa: PLC0415 - few are behind a proxy

    gate, timeout_s = Gate(worker.config.trusted), worker.config.handshake_timeout

    def handle(conn: Any, addr: Any) -> None:
        try:
            client = gate.wait(conn, addr, timeout_s)
        except OSError as error:
            log.warning("worker=%d: %s is closed: %s", worker.slot, addr, error)
            return
        handler(conn, client)

    return handle
