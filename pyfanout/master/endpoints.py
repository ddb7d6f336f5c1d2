"""Listening sockets: opens or inherits them, takes the socket files away again.

Owns every listener until `Endpoint.detach` hands its descriptor to the core, and every socket file until
`Endpoint.unlink`. Never accepts: that is the core's. `addresses.py` says what the forms of an address mean;
`open_listeners` makes the system calls. The master calls it once, before it forks. A worker never has a listener.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Iterable, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pyfanout.errors import ConfigError
from pyfanout.master import filelock
from pyfanout.master.access import Access, AccessError
from pyfanout.master.addresses import (
    InheritedFd,
    Systemd,
    TcpAddress,
    UnixAddress,
    bind_error,
    number_in,
    parse_all,
    printable,
)
from pyfanout.master.socketfile import SocketFile, in_use, remove_stale

SYSTEMD_FIRST_FD = 3  # SD_LISTEN_FDS_START, sd_listen_fds(3)
PORT_TRIES = 20  # for `:0` and several addresses: the port chosen for the first can be taken on the next

_NO_SUCH_FAMILY = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)  # IPv6 is not built in; it is, but switched off
_EVERYWHERE = {"0.0.0.0", "::"}
_BAD_FOLDER = (errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.EROFS)
_ADVICE = {
    errno.EADDRINUSE: "it is in use; stop the other server or choose another port",
    errno.EACCES: "permission denied; a port below 1024 needs root, CAP_NET_BIND_SERVICE, systemd or fd://N",
    errno.EADDRNOTAVAIL: "no network interface of this machine has that address",
    errno.EAFNOSUPPORT: "this machine has no IPv6",
    errno.EINVAL: "a link-local address needs its interface, such as [fe80::1%eth0]:8000",
}


@dataclass(slots=True, eq=False)
class Endpoint:
    """One listening socket, non-blocking and close-on-exec."""

    sock: socket.socket
    """Ours until `detach`; `family`, `type` and `proto` can be read after it, too."""
    file: SocketFile | None = None
    """The file that we made for it, which only `unlink` takes away."""
    inherited: bool = False
    """Another program has opened it, and may have it still."""
    address: str = field(init=False)
    """For people, with the real port: 127.0.0.1:8000, [::1]:8000, unix:/path, unix:@name."""

    def __post_init__(self) -> None:
        self.address = printable(self.sock.family, self.sock.getsockname())

    @property
    def can_stop_new(self) -> bool:
        """A TCP one of our own, see `Core.stop_new`: a socket file is deleted instead."""
        return not self.inherited and self.sock.family != socket.AF_UNIX

    def detach(self) -> int:
        """The descriptor, which the caller now owns. Once only."""
        return self.sock.detach()

    def unlink(self) -> None:
        """Delete the socket file, if it is still the one we made and this is not a fork of its maker.

        Call it before the descriptor is closed: an open socket keeps the inode's number from being given to
        another file.
        """
        if self.file is not None:
            self.file.remove()
            self.file = None

    def close(self) -> None:
        """Unlink, and close the socket if it was not detached. May be called again."""
        self.unlink()
        self.sock.close()


def open_listeners(
    binds: Iterable[str | socket.socket],
    *,
    backlog: int,
    nodelay: bool,
    access: Access | None = None,
    environ: MutableMapping[str, str] = os.environ,
) -> list[Endpoint]:
    """Open all `binds`, in their order. A host name and `systemd` can give several endpoints each.

    `backlog` is how many connections the kernel queues for each; a socket that listens already keeps its own.
    `nodelay` sets TCP_NODELAY, which what is accepted inherits. `access` says which users may connect to socket files.
    `environ` is where systemd's LISTEN_* are found, and removed so that no child takes them for its own.

    An open socket is duplicated, and the caller keeps its own; but both share one file description, so its
    becomes non-blocking and starts to listen. A descriptor named by `fd://N` or systemd becomes ours.

    Raises ConfigError, one line, when one of them cannot be had; then those already opened are closed, and
    their files deleted.
    """
    wanted = parse_all(binds)
    opening = _Opening(backlog, nodelay, access or Access(), environ)
    try:
        for text, target in wanted:
            match target:
                case TcpAddress():
                    opening.tcp(text, target)
                case UnixAddress():
                    opening.unix(text, target)
                case InheritedFd():
                    opening.inherited(text, target.fd)
                case Systemd():
                    opening.systemd(text)
                case socket.socket():
                    opening.duplicate(text, target)
    except BaseException:
        _close_all(opening.endpoints)
        raise
    return opening.endpoints


@dataclass(slots=True)
class _Opening:
    """One call of `open_listeners`: a method for each form, each of which adds to `endpoints`."""

    backlog: int
    nodelay: bool
    access: Access
    environ: MutableMapping[str, str]
    endpoints: list[Endpoint] = field(default_factory=list)

    def tcp(self, text: str, address: TcpAddress) -> None:
        targets = _resolve(text, address.host)
        for tries_left in reversed(range(PORT_TRIES)):
            try:
                self.endpoints += self._bind_each(targets, address.port)
                return
            except OSError as error:
                if error.errno == errno.EADDRINUSE and address.port == 0 and tries_left:
                    continue
                if error.errno == errno.EADDRINUSE and (ours := self._on_port(targets, address.port)):
                    raise _ours(text, ours) from error
                advice = _ADVICE.get(error.errno or 0) or os.strerror(error.errno or 0)
                where = "" if error.filename == text else f"{error.filename}: "
                raise bind_error(text, where + advice) from error

    def _on_port(self, targets: Sequence[tuple[int, Any]], port: int) -> Endpoint | None:
        """A listener of this server that has one of these addresses, or all addresses, or that one wants as well."""
        for endpoint in self.endpoints:
            if endpoint.sock.family == socket.AF_UNIX:
                continue
            host, its_port, *_ = endpoint.sock.getsockname()
            for family, (wanted, *_) in targets:
                same_family = endpoint.sock.family == family or _is_dual(endpoint.sock)
                if its_port == port and same_family and (host == wanted or not _EVERYWHERE.isdisjoint((host, wanted))):
                    return endpoint
        return None

    def _bind_each(self, targets: Sequence[tuple[int, Any]], port: int) -> list[Endpoint]:
        """A listener for each target, all on the port of the first; OSError, with the address in `filename`.

        An IPv6 address that this machine cannot have is left out when there are others: `localhost` and
        `:8000` work where IPv6 is switched off, too.
        """
        opened: list[Endpoint] = []
        left_out: OSError | None = None
        try:
            for family, (host, _, *rest) in targets:
                address = (host, port, *rest)
                try:
                    sock = self._bind_tcp(family, address)
                except OSError as error:
                    error.filename = printable(family, address)
                    if family != socket.AF_INET6 or error.errno not in _NO_SUCH_FAMILY:
                        raise
                    left_out = error
                    continue
                opened.append(Endpoint(sock))
                port = sock.getsockname()[1]
            if left_out is not None and not opened:
                raise left_out
        except BaseException:
            _close_all(opened)
            raise
        return opened

    def _bind_tcp(self, family: int, address: Any) -> socket.socket:
        sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # else a restart waits for TIME_WAIT
            if family == socket.AF_INET6:  # else it takes IPv4 clients, too, and calls them ::ffff:a.b.c.d
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            if self.nodelay:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.bind(address)
            sock.listen(self.backlog)
        except BaseException:
            sock.close()
            raise
        return sock

    def _at_path(self, address: UnixAddress) -> Endpoint | None:
        """A listener of this server that has this name."""
        unix = (endpoint for endpoint in self.endpoints if endpoint.sock.family == socket.AF_UNIX)
        return next((each for each in unix if _is_same_name(os.fsdecode(each.sock.getsockname()), address)), None)

    def unix(self, text: str, address: UnixAddress) -> None:
        if ours := self._at_path(address):
            raise _ours(text, ours)
        try:
            with filelock.folder_of(address.name) if address.has_file else contextlib.nullcontext():
                if address.has_file:
                    remove_stale(text, address.name)
                endpoint = _bind_unix(address, self.access)
            self.endpoints.append(endpoint)
            if address.has_file:
                self.access.finish(address.name)
            endpoint.sock.listen(self.backlog)
        except AccessError as error:
            raise bind_error(text, str(error)) from error
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise in_use(text) from error
            reason = os.strerror(error.errno or 0)
            if address.has_file and error.errno in _BAD_FOLDER:
                folder = os.path.dirname(os.path.abspath(address.name))
                reason += f"; the folder {folder!r} must exist and be writable"
            raise bind_error(text, reason) from error

    def inherited(self, text: str, fd: int) -> None:
        if any(endpoint.sock.fileno() == fd for endpoint in self.endpoints):
            raise bind_error(text, f"this server has descriptor {fd} already; give each address once")
        try:
            sock = socket.socket(fileno=fd)
        except OSError as error:
            if error.errno == errno.ENOTSOCK:
                raise bind_error(text, f"descriptor {fd} is not a socket") from error
            what = f"descriptor {fd} is not open; the program that starts pyfanout must leave it open"
            raise bind_error(text, what) from error
        try:
            self._adopt(text, sock)
        except BaseException:
            sock.detach()  # it was not ours yet
            raise

    def systemd(self, text: str) -> None:
        """All that systemd passed, see sd_listen_fds(3)."""
        pid, count = self.environ.get("LISTEN_PID", ""), self.environ.get("LISTEN_FDS", "")
        if not pid or not count:
            raise bind_error(text, "no sockets were passed (LISTEN_FDS is not set); use a .socket unit")
        if pid != str(os.getpid()):
            raise bind_error(text, f"the sockets are for process {pid!r} (LISTEN_PID); systemd has to start it itself")
        number = number_in(text, count, "a count of sockets (LISTEN_FDS)", 1024)
        if number == 0:
            raise bind_error(text, "no sockets were passed (LISTEN_FDS is 0)")
        for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"):
            self.environ.pop(name, None)
        for fd in range(SYSTEMD_FIRST_FD, SYSTEMD_FIRST_FD + number):
            self.inherited(text, fd)

    def duplicate(self, text: str, original: socket.socket) -> None:
        try:
            sock = original.dup()
        except OSError as error:
            raise bind_error(text, f"{error.strerror}; it must be open") from error
        try:
            self._adopt(text, sock)
        except BaseException:
            sock.close()
            raise

    def _adopt(self, text: str, sock: socket.socket) -> None:
        """Make a socket that another program opened into one like pyfanout's own. ConfigError if it cannot be."""
        what = f"descriptor {sock.fileno()}"
        if ours := next((e for e in self.endpoints if os.path.sameopenfile(e.sock.fileno(), sock.fileno())), None):
            raise _ours(text, ours)
        try:
            if sock.type != socket.SOCK_STREAM:
                raise bind_error(text, f"{what} is not a stream socket")
            if sock.family not in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX):
                raise bind_error(text, f"{what} is neither a TCP nor a UNIX socket")
            if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                if _is_connected(sock):
                    raise bind_error(text, f"{what} is a connection; it must be a listening or a bound socket")
                if not _is_bound(sock):
                    raise bind_error(text, f"{what} has no address; bind it first")
                sock.listen(self.backlog)
            sock.setblocking(False)
            os.set_inheritable(sock.fileno(), False)
            if self.nodelay and sock.family != socket.AF_UNIX:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except OSError as error:
            raise bind_error(text, f"{what} cannot listen: {error.strerror}") from error
        self.endpoints.append(Endpoint(sock, inherited=True))


def _resolve(text: str, host: str) -> list[tuple[int, Any]]:
    """Family and socket address, with port 0, of all that `host` stands for: every interface if empty."""
    try:
        found = socket.getaddrinfo(host or None, 0, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:  # UnicodeError: no name of the DNS
        reason = error.strerror if isinstance(error, OSError) else "not a host name"
        raise bind_error(text, f"unknown host {host!r}: {reason}") from error
    return list(dict.fromkeys((int(family), address) for family, *_, address in found))


def _bind_unix(address: UnixAddress, access: Access) -> Endpoint:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        if address.has_file:
            access.begin(sock)
        sock.bind(address.name)
        return Endpoint(sock, SocketFile.made_at(address.name) if address.has_file else None)
    except BaseException:
        sock.close()
        raise


def _is_connected(sock: socket.socket) -> bool:
    try:
        sock.getpeername()
    except OSError:
        return False
    return True


def _is_bound(sock: socket.socket) -> bool:
    name = sock.getsockname()
    return bool(name if sock.family == socket.AF_UNIX else name[1])


def _is_dual(sock: socket.socket) -> bool:
    """Whether IPv4 clients come to it, too: another program has opened it."""
    return sock.family == socket.AF_INET6 and not sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)


def _is_same_name(name: str, address: UnixAddress) -> bool:
    if name == address.name:
        return True
    try:
        return address.has_file and not name.startswith("\0") and os.path.samefile(name, address.name)
    except OSError:  # one of them is not there
        return False


def _close_all(endpoints: Iterable[Endpoint]) -> None:
    for endpoint in endpoints:
        endpoint.close()


def _ours(text: str, endpoint: Endpoint) -> ConfigError:
    return bind_error(text, f"this server listens on {endpoint.address} already; give each address once")
