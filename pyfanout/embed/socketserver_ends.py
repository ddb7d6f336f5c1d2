"""The end of a connection of a socketserver: methods of the server, made of its own, that close or report it."""

from __future__ import annotations

import socket
import sys
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pyfanout.worker import clients
from pyfanout.worker.farewell import linger
from pyfanout.worker.receipt import CLOSED, Receipt

if TYPE_CHECKING:
    from pyfanout.worker.listener import Listener
    from pyfanout.worker.worker import WorkerProcess


def unless_gone(handle_error: Callable[[Any, Any], None], worker: WorkerProcess) -> Callable[[Any, Any], None]:
    """Prints a traceback, but not for each client that breaks off."""

    def handle(request: Any, address: Any) -> None:
        error = sys.exc_info()[1]
        if error is not None and clients.has_gone(error, request):
            clients.log.debug("worker=%d: the client %s has disconnected: %s", worker.slot, address, error)
        else:
            handle_error(request, address)

    return handle


def with_farewell(shutdown_request: Callable[[Any], None], worker: WorkerProcess) -> Callable[[Any], None]:
    """With TLS the process that has served a client sends close_notify; a forking server's parent calls
    `close_request`. The child reads late input of its client, because the worker has no descriptor for it any more."""

    def shutdown(request: Any) -> None:
        if farewell := getattr(request, "bid_farewell", None):
            farewell()
        if worker.forked and not worker.signals.quit and isinstance(request, socket.socket):
            linger(request)
        shutdown_request(request)

    return shutdown


def for_good(close_request: Callable[[Any], None], *, ours: bool) -> Callable[[Any], None]:
    """Closes a connection also if its handler has kept a `makefile` object of it. `ours`: the connection is over then;
    else a child goes on with it. A server may have made another socket of it, which has no receipt."""

    def close(request: Any) -> None:
        hand_over = None if ours else getattr(request, "hand_over", None)
        receipt = CLOSED if hand_over is None else hand_over()
        close_request(request)
        if drop := getattr(request, "drop", None):
            drop()
        receipt.close()

    return close


def keep_live(server: Any, listener: Listener) -> None:
    """A server that makes another socket of a connection, as for TLS, detaches the connection, which is not its end.
    That comes when the server closes the other socket, or forgets it."""
    accepted: list[tuple[Any, Receipt]] = []
    ends: dict[int, weakref.finalize[Any, Any]] = {}
    get_request, close_request = server.get_request, server.close_request
    kind: Any = type(listener)

    class Lending(kind):
        __slots__ = ()

        def accept(self) -> tuple[Any, Any]:
            conn, address = super().accept()
            accepted.append((conn, conn.hand_over()))
            return conn, address

    def settle(made: Any = None) -> None:
        while accepted:
            conn, receipt = accepted.pop()
            if conn.fileno() >= 0:
                conn.take_back(receipt)
            elif made is None:
                receipt.close()
            else:
                try:
                    ends[id(made)] = end = weakref.finalize(made, receipt.close)
                    end.atexit = False
                except TypeError:  # there can be no weak reference to it
                    receipt.close()
                made = None  # what was accepted before is over

    def get() -> Any:
        try:
            request, address = get_request()
        except BaseException:
            settle()
            raise
        settle(request)
        return request, address

    def close(request: Any) -> None:
        if end := ends.pop(id(request), None):
            end()
        close_request(request)

    listener.__class__ = Lending
    server.get_request, server.close_request = get, close
