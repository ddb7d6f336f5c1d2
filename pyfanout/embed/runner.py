"""Runner: how one server runs in a worker. The base of every module here, and of your own.

A runner is made where `serve` is called, before the fork, or in the worker from an application; so it holds no more
than its arguments until `serve`, and imports its server only then.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pyfanout.errors import ConfigError, LoadError

if TYPE_CHECKING:
    from pyfanout.kind import Kind
    from pyfanout.worker.serving import ServingWorker

GRACE_S = 1.0
"""Of `drain_timeout`, what is left to the server's own graceful stop, which ends what has not ended by itself."""

FAREWELL_S = 0.5
"""The part of it for clients to answer the close frame of their websocket."""

SERVICE_RESTART = 1012
"""Close code of a websocket whose server restarts: the client may come again (IANA's WebSocket registry). uvicorn sends
it, too."""

LOOK_S = 0.05
"""Seconds between two looks whether the connections of a draining worker are done."""

_OURS = {
    "bind": "host port ipv4 ipv6 listen bind insecure_bind bind_addr address path sock sockets uds fd unix_socket "
    "reuse_address reuse_port",
    "bind; it has no QUIC": "quic_bind",
    "unix_mode": "unix_socket_perms umask",
    "unix_owner": "user group",
    "backlog": "backlog request_queue_size",
    "workers": "workers",
    "certfile and keyfile, or ssl with a context": "certfile keyfile keyfile_password ca_certs cert_reqs verify_mode "
    "verify_flags ciphers ssl_version ssl_context ssl_options ssl_adapter ssl",
}
"""What servers have options for and pyfanout does: its own options, and theirs."""
_INSTEAD = {name: ours for ours, names in _OURS.items() for name in names.split()}


class Runner(ABC):
    """Give an instance to `pyfanout.serve`, or a class with `needs` and `serve` to the world."""

    kinds: tuple[str, ...] = ()
    """Of a server that is registered by an entry point: which kinds of applications (`--as`) it serves, the likeliest
    first."""
    needs: tuple[str, ...] = ()
    """Modules that must be installed."""
    extra: str = ""
    """The extra of pyfanout that installs them."""
    no_tls: str = ""
    """The error if it is to speak TLS, which it does not; empty: it does."""
    shows_requests: bool = False
    """Whether `max_requests` counts what the server calls `worker.counter("request")` for; else its connections. A
    runner that calls `worker.listener` itself says `counted=False` there."""
    server_options: Mapping[str, Any] = {}
    """Those of the server itself, which `check` looks at."""

    @classmethod
    def of(cls, app: Any, kind: Kind) -> Runner:
        """The runner for an application, which is of that kind, as `--server` chooses it."""
        return cls(app)  # type: ignore[call-arg]  # each has arguments of its own, of which it is the first

    def check(self) -> None:
        """Import what it needs. Raises LoadError, one line that says what to install; and ConfigError if the server's
        options are about what pyfanout does. Ignored, they would be dangerous: clients would be let in without TLS, or
        from another network."""
        if ours := next(filter(None, map(_INSTEAD.get, self.server_options)), None):
            theirs = ", ".join(name for name in self.server_options if _INSTEAD.get(name) == ours)
            title = f"{type(self).__module__.rpartition('.')[2]}.{type(self).__name__}"
            raise ConfigError(f"{theirs}: no option of {title}; use pyfanout's {ours}")
        for name in self.needs:
            try:
                importlib.import_module(name)
            except ModuleNotFoundError as error:
                if error.name != name.partition(".")[0]:
                    raise
                hint = f"pip install 'pyfanout[{self.extra}]'" if self.extra else f"pip install {name}"
                raise LoadError(f"{name} is not installed: {hint}") from None

    @abstractmethod
    def serve(self, worker: ServingWorker) -> None:
        """The whole life of the server in this worker. It

        - calls the hooks `on_worker_start` and `on_worker_exit` by `worker.call_hook`, which runs no coroutine;
        - accepts from `worker.listener()`, whose connections tell their end by themselves;
        - sets `worker.on_drain`, a function that must not block and may run in a signal handler: the server shall stop
          gracefully (`Listener.quiet` comes first);
        - calls `worker.ready()` when its loop can take work;
        - returns when all that was begun is done. After `drain_timeout` comes SIGQUIT.
        """
