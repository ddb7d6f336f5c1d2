"""The listening socket and the address of a socketserver: it gets pyfanout's, and opens none."""

from __future__ import annotations

import contextlib
import errno
import http.server
import socket
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from pyfanout.embed.socketserver_handlers import extend, introduced
from pyfanout.embed.views import changed, probe, views
from pyfanout.errors import ConfigError

if TYPE_CHECKING:
    from pyfanout.worker.public import Bound
    from pyfanout.worker.worker import WorkerProcess

LOCAL_NAME = "localhost"
"""SERVER_NAME on a UNIX socket, if a client does not say another one."""


class StandIn(socket.socket):
    """In the place of a listening socket, which the master has: one of the same kind, so a server may look at it."""

    def __init__(self, bound: Bound) -> None:
        super().__init__(bound.family, socket.SOCK_STREAM, bound.proto)
        self._address = bound.address
        self.pending = threading.local()

    def accept(self) -> tuple[socket.socket, Any]:
        """For `get_request`, which may wrap what it gets."""
        pair: tuple[socket.socket, Any] = self.pending.pair
        return pair

    def getsockname(self) -> Any:
        return self._address

    def setsockopt(self, *_: Any) -> None:
        """Done by the master, where it concerns a listener."""

    def bind(self, _address: Any) -> None:
        """Done by the master."""

    def listen(self, _backlog: int = 0) -> None:
        """Done by the master."""


@contextlib.contextmanager
def _unwrapped(server: Any) -> Iterator[None]:
    """What the server does with its listening socket meanwhile, other than to look at it, is refused."""
    ours = server.socket
    try:
        yield
    except OSError as error:
        if error.errno != errno.ENOTSOCK:  # no other socket can be made of a Listener
            raise
        refuse_wrapped(server, None)
    if server.socket is not ours:
        refuse_wrapped(server)


def refuse_wrapped(server: Any, plain: type[socket.socket] | None = socket.socket) -> None:
    """pyfanout puts its own socket in the place of the server's. A server that does TLS by that would do none."""
    if type(server.socket) is not plain:
        raise ConfigError(
            f"{type(server).__name__} wraps its listening socket, which is the master's: for TLS use certfile and "
            "keyfile, or ssl; or wrap each connection in get_request"
        )


def activate(server: Any, listening: Any, worker: WorkerProcess) -> None:
    """It sets its names, and may do what its class wants at that point. With several listeners a handler gets a view of
    the server, in which `server_address` and all that `server_bind` has set are those of its connection's listener."""

    def names(bound: Bound) -> dict[str, Any]:
        made = probe(server)
        with StandIn(bound) as stand_in:
            _bind(made, bound, stand_in, worker)
        return changed(made, server)

    _bind(server, worker.public.first, listening, worker)
    with _unwrapped(server):
        server.server_activate()
    server.socket = listening
    if len(worker.public.listeners) > 1:
        known = views(server, worker.public, names)
        extend(server, lambda handler: introduced(handler, known, worker.public))
    if isinstance(server, http.server.HTTPServer) and type(server).address_family != socket.AF_UNIX:
        vars(server)["get_request"] = _with_host(server.get_request)


def _bind(server: Any, bound: Bound, listening: Any, worker: WorkerProcess) -> None:
    """An HTTP server takes each address for a host and a port, of which it makes its name."""
    server.address_family, server.server_address, server.socket = bound.family, bound.address, listening
    with contextlib.ExitStack() as stack:
        if isinstance(server, http.server.HTTPServer) and bound.family == socket.AF_UNIX:
            named = bound._replace(address=(LOCAL_NAME, 443 if worker.config.tls else 80))
            vars(server)["socket"] = stack.enter_context(StandIn(named))
        with _unwrapped(server):
            server.server_bind()
    server.server_address, server.socket = bound.address, listening


def _with_host(get_request: Callable[[], tuple[Any, Any]]) -> Callable[[], tuple[Any, Any]]:
    """Handlers of HTTP log the client's host, of which one of a UNIX socket has none."""

    def get() -> tuple[Any, Any]:
        request, address = get_request()
        return request, address if isinstance(address, tuple) else ("", 0)

    return get
