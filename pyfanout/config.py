"""The options of pyfanout: one frozen dataclass, and with each field the one description of how it is read (`options`
has how that is done). Those of the server are here; those of its group of workers are in `groupconfig`.

Owns what an option is called, which values it takes, what it is by default and why. Never opens, binds or
forks anything. `serve()` and `pyfanout run` call `Config.resolve`; `pyfanout.cli` makes its flags from
`options()`; all other modules are handed a finished `Config`, or its `GroupConfig`, and trust it.
"""

from __future__ import annotations

import ipaddress
import os
import re
import socket
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, TypedDict

from pyfanout import servers
from pyfanout.errors import ConfigError
from pyfanout.groupconfig import GroupConfig
from pyfanout.kind import Kind
from pyfanout.options import (
    BINDS,
    FOLDER,
    MODE,
    NETWORKS,
    OWNER,
    PATH,
    PREFIX,
    SWITCH,
    TLS,
    Mode,
    Network,
    Option,
    check,
    described,
    did_you_mean,
    is_auto,
    one_of,
    options_of,
    seconds,
    text_of,
    whole,
)

if TYPE_CHECKING:
    import ssl

    from pyfanout.worker.face import Worker

WEB_CONCURRENCY = "WEB_CONCURRENCY"  # what Heroku and others tell a server, and gunicorn and uvicorn read
LOG_LEVELS = ("debug", "info", "warning", "error", "critical")


class Policy(StrEnum):
    """How the next connection finds its worker."""

    ROUND_ROBIN = "round-robin"
    LEAST_CONNECTIONS = "least-connections"
    SOURCE_HASH = "source-hash"


@dataclass(frozen=True, slots=True, kw_only=True)
class Config(GroupConfig):
    """Every option, checked. Raises ConfigError at birth if one is not allowed.

    Takes the text of a value for the value, as `resolve` does: `Config(workers="2", bind=":80,[::1]:81")`.
    """

    bind: tuple[str | socket.socket, ...] = field(
        default=("127.0.0.1:8000",),
        metadata=described(
            BINDS,
            "the address to listen on: host:port, [ipv6]:port, :port, unix:/path, unix:@name, fd://N or systemd; "
            "give it again for another",
            short="-b",
        ),
    )
    """The default is gunicorn's and uvicorn's: this machine only, until the operator decides otherwise."""

    unix_mode: Mode | None = field(
        default=None, metadata=described(MODE, "the mode of socket files, in octal, such as 660", default="none")
    )
    """Permission bits; a number in Python is the mode itself: 0o660. None: 777 less the umask, as in gunicorn. A
    user who may write to the file may connect. systemd's name is SocketMode."""

    unix_owner: str | None = field(
        default=None,
        metadata=described(OWNER, "the owner of socket files: user, user:group or :group", default="none"),
    )
    """Names or numbers. None: the user that the server runs as. systemd's names are SocketUser and SocketGroup."""

    as_: str = field(
        default="auto",
        metadata=described(
            one_of(("auto", *(kind.value for kind in Kind))),
            "the kind of the application, if its shape does not show it",
        ),
    )
    """See `Kind`. Auto: told by its shape."""

    server: str = field(
        default="auto",
        metadata=described(servers.NAMES, "which server speaks HTTP for it; auto: waitress for WSGI, uvicorn for ASGI"),
    )
    """See `servers`. Pyfanout's own are extras of their kinds: `pip install 'pyfanout[asgi]'`, `'pyfanout[wsgi]'`."""

    factory: bool = field(
        default=False,
        metadata=described(SWITCH, "module:attr is a function without arguments that returns the application"),
    )
    """Off. uvicorn's option."""

    chdir: str | None = field(
        default=None,
        metadata=described(FOLDER, "the folder in which workers run; looked up anew for each", default="none"),
    )
    """A path. None: the folder in which the server was started. gunicorn's name."""

    app_dir: str | None = field(
        default=None,
        metadata=described(FOLDER, "look for the application's module here, as seen from there", default="none"),
    )
    """A path. None: the folder in which workers run. uvicorn's name."""

    policy: Policy = field(
        default=Policy.LEAST_CONNECTIONS,
        metadata=described(one_of(Policy, Policy), "how the worker for the next connection is chosen"),
    )
    """Of workers that hold many connections the one with the fewest, equals in turn: no quick request waits behind slow
    ones while another worker is idle, whether the slow ones occupy the threads behind a server's loop, or the loop. It
    costs no more than turns (measured on 2026-11-29 with 2, 8 and 48 workers)."""

    backlog: int = field(
        default=2048,
        metadata=described(
            whole(1), "connections that the kernel queues for each listener before the master accepts them"
        ),
    )
    """Connections. 2048 is gunicorn's and uvicorn's; the kernel's own limit is net.core.somaxconn, 4096."""

    max_connections: int = field(
        default=0,
        metadata=described(whole(0), "connections that one asyncio worker holds at once; 0: any number"),
    )
    """Connections. No bound: only the application knows what one costs."""

    preload: bool = field(
        default=False,
        metadata=described(
            SWITCH, "load module:attr once, in the master: less memory, but a reload keeps the old code"
        ),
    )
    """Off, as in gunicorn: each worker imports the application for itself, and a reload takes up new code."""

    nodelay: bool = field(
        default=True,
        metadata=described(SWITCH, "set TCP_NODELAY, so that a small answer does not wait for an ACK"),
    )
    """On, as in asyncio and Go. A connection inherits it from its listener, so it costs no system call."""

    certfile: str | None = field(
        default=None, metadata=described(PATH, "speak TLS with this certificate (chain), a PEM file", default="none")
    )
    """A path. Read in each worker, so that a reload takes up a new certificate. gunicorn's name."""

    keyfile: str | None = field(
        default=None,
        metadata=described(PATH, "the key of the certificate, a PEM file, if it is not in the same", default="none"),
    )
    """A path. gunicorn's name."""

    ssl: ssl.SSLContext | Callable[[], ssl.SSLContext] | None = field(
        default=None,
        metadata=described(TLS, "speak TLS with this context", default="none", python_only=True),
    )
    """Instead of `certfile`, for all that an ssl.SSLContext can be told. A function that returns one is called in each
    worker, so that a reload takes up new certificates; a context stays what it is. Workers resume TLS sessions of each
    other if it returns one and the same context, made before the fork."""

    handshake_timeout: float = field(
        default=10.0,
        metadata=described(seconds(zero=False), "how long a client may take for its TLS handshake and PROXY header"),
    )
    """Seconds. 10 is what Go's net/http has: a client on a bad line needs a few."""

    proxy_protocol: bool = field(
        default=False,
        metadata=described(SWITCH, "each connection begins with a PROXY header, version 1 or 2, that names the client"),
    )
    """Off. gunicorn's name. On, a connection without one is closed: a client that comes directly could lie."""

    trusted: tuple[Network, ...] = field(
        default=(ipaddress.ip_network("127.0.0.0/8"), ipaddress.ip_network("::1")),
        metadata=described(NETWORKS, "the networks whose proxies may send a PROXY header; others are closed"),
    )
    """Networks. This machine, like gunicorn's proxy_allow_ips and uvicorn's forwarded_allow_ips."""

    log_level: str = field(default="info", metadata=described(one_of(LOG_LEVELS), "the least important line to log"))
    """Info: where we listen, and every start and end of a worker; nothing per connection."""

    ready_fd: int | None = field(
        default=None,
        metadata=described(whole(0), "write one newline to this descriptor when every worker is ready", default="none"),
    )
    """A number of an open descriptor. None: no program waits for the newline."""

    pidfile: str | None = field(
        default=None, metadata=described(PATH, "keep the master's process id in this file", default="none")
    )
    """A path. None: a supervisor knows our pid, and a file can be stale."""

    def __post_init__(self) -> None:
        check(self)
        if self.ssl is not None and self.certfile is not None:
            raise ConfigError("ssl: certfile is given, too; say it in one of the two")
        if self.keyfile is not None and self.certfile is None:
            raise ConfigError("keyfile: a key is of no use without its certificate; give certfile, too")
        if self.preload and servers.patches(self.server):
            raise ConfigError(
                f"preload: --server {self.server} patches each worker before that imports the application; "
                "leave preload out"
            )

    @classmethod
    def resolve(
        cls, arguments: Mapping[str, object], environ: Mapping[str, str], *, command_line: bool = False
    ) -> Config:
        """The options from `arguments`, or else from `PYFANOUT_*` in `environ`, or else the defaults.

        An argument that is None and a variable that is blank count as not given. `workers="auto"`, which is
        the default, asks `WEB_CONCURRENCY` and then `cpus.available()`. `command_line` says that the
        arguments were flags, which is how errors then name them. A variable is not read, either, if it excludes an
        argument: `certfile` beside `ssl`. Raises ConfigError, one line, for an unknown argument or a value that is not
        allowed; a `PYFANOUT_` variable that is no option is skipped (see `unknown_variables`).
        """
        known = options()
        for name in arguments:
            if name not in known:
                raise ConfigError(f"no option is named {name!r}{did_you_mean(name, known)}")
        values: dict[str, Any] = {}
        overruled = {each for name in EXCLUDES if arguments.get(name) is not None for each in EXCLUDES[name]}
        for name, option in known.items():
            found = arguments.get(name), option.flag if command_line else "the argument"
            if found[0] is None and option.given(environ) and name not in overruled:
                found = environ[option.variable], option.variable
            if name == "workers" and (found[0] is None or is_auto(found[0])):
                found = environ.get(WEB_CONCURRENCY, "").strip() or None, WEB_CONCURRENCY
            if found[0] is not None:
                values[name] = option.read(*found)
        return cls(**values)

    @property
    def tls(self) -> bool:
        """Whether the workers speak TLS."""
        return self.ssl is not None or self.certfile is not None

    def describe(self) -> str:
        """What `--check-config` prints: a line `name = value` for each option that has a flag, in order."""
        return "\n".join(
            f"{option.word} = {option.default if (value := getattr(self, name)) is None else text_of(value)}"
            for name, option in options().items()
            if not option.python_only
        )


EXCLUDES = {"ssl": ("certfile", "keyfile")}
"""Options instead of which another is given."""


class Options(TypedDict, total=False):
    """The fields of `Config` as keyword arguments, with all that each of them takes. None: not given."""

    bind: str | socket.socket | Sequence[str | socket.socket] | None
    unix_mode: int | str | None
    unix_owner: str | None
    workers: int | str | None
    as_: str | None
    server: str | None
    factory: bool | None
    chdir: str | os.PathLike[str] | None
    app_dir: str | os.PathLike[str] | None
    threads: int | None
    policy: str | None
    backlog: int | None
    max_connections: int | None
    max_requests: int | None
    max_requests_jitter: int | None
    drain_timeout: float | None
    boot_timeout: float | None
    timeout: float | None
    ping_interval: float | None
    ping_timeout: float | None
    min_uptime: float | None
    fail_fast: bool | None
    core_dumps: bool | None
    reload_batch: int | None
    preload: bool | None
    nodelay: bool | None
    certfile: str | os.PathLike[str] | None
    keyfile: str | os.PathLike[str] | None
    ssl: ssl.SSLContext | Callable[[], ssl.SSLContext] | None
    handshake_timeout: float | None
    proxy_protocol: bool | None
    trusted: str | Iterable[str] | None
    log_level: str | None
    ready_fd: int | None
    pidfile: str | os.PathLike[str] | None
    on_worker_start: Callable[[Worker], object] | None
    on_worker_exit: Callable[[Worker], object] | None


def options() -> dict[str, Option]:
    """Every option by name: the server's, then those of its workers."""
    return options_of(Config)


_SERVICE_LINK = re.compile(r"(.*_)?(SERVICE_(HOST|PORT(_.*)?)|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)")
"""What Kubernetes tells each container of a Service whose name begins with `pyfanout`."""


def _is_service_link(name: str, value: str) -> bool:
    return bool(_SERVICE_LINK.fullmatch(name)) or (name.endswith("PORT") and "://" in value)


def unknown_variables(environ: Mapping[str, str]) -> list[str]:
    """One line for each `PYFANOUT_` variable that is no option, to find the misspelt ones with."""
    names = [option.variable.removeprefix(PREFIX) for option in options().values() if not option.python_only]
    given = [name.removeprefix(PREFIX) for name in sorted(environ) if name.startswith(PREFIX)]
    given = [name for name in given if not _is_service_link(name, environ[PREFIX + name])]
    return [
        f"{PREFIX}{name} is not an option{did_you_mean(name, names, PREFIX)}" for name in given if name not in names
    ]
