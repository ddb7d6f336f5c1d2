"""Listening sockets: reads the forms of an address, opens or inherits the sockets, takes the socket files
away again.

Owns every listener until `Endpoint.detach` hands its descriptor to the core, and every socket file until
`Endpoint.unlink`. Never accepts: that is the core's. First `parse`, which is pure, then `open_listeners`,
which makes the system calls; the master calls it once, before it forks. A worker never has a listener.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import socket
import stat
from collections.abc import Iterable, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from pyfanout.errors import ConfigError
from pyfanout.master import filelock
from pyfanout.master.access import Access, AccessError

FORMS = "host:port, [ipv6]:port, :port, unix:/path, unix:@name, fd://N or systemd"
SYSTEMD_FIRST_FD = 3  # SD_LISTEN_FDS_START, sd_listen_fds(3)
MAX_UNIX_NAME = 107  # bytes: sun_path is 108, less the NUL that ends a path or starts a name, unix(7)
MAX_FD = 2**31 - 1  # a C int
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


@dataclass(frozen=True, slots=True)
class TcpAddress:
    """`host:port`. An empty host is every interface; port 0 is one that the kernel chooses."""

    host: str
    port: int


@dataclass(frozen=True, slots=True)
class UnixAddress:
    """`unix:/path`, or `unix:@name`, which has no file; then `name` starts with NUL, as the kernel has it."""

    name: str

    @property
    def has_file(self) -> bool:
        return not self.name.startswith("\0")


@dataclass(frozen=True, slots=True)
class InheritedFd:
    """`fd://N`: a descriptor that the program which started pyfanout left open."""

    fd: int


@dataclass(frozen=True, slots=True)
class Systemd:
    """`systemd`: all that systemd opened for this unit."""


Address: TypeAlias = TcpAddress | UnixAddress | InheritedFd | Systemd


def parse(text: str) -> Address:
    """The address that `text` names, see FORMS. Raises ConfigError, one line, if it names none. Opens
    nothing."""
    if "\0" in text:
        raise _error(text, "a NUL byte is in it")
    if text == "systemd":
        return Systemd()
    if text.startswith("fd://"):
        return InheritedFd(_number(text, text.removeprefix("fd://"), "a descriptor", MAX_FD))
    if text.startswith("unix:"):
        return _parse_unix(text, text.removeprefix("unix:"))
    return _parse_tcp(text)


def parse_all(binds: Iterable[str | socket.socket]) -> list[tuple[str, Address | socket.socket]]:
    """Each with its name for people; an open socket is as it was. Raises ConfigError as `parse`, and if one is given
    twice. Opens nothing: that two names are of the same address is found later."""
    found: dict[object, tuple[str, Address | socket.socket]] = {}
    for number, bind in enumerate(binds):
        text = bind if isinstance(bind, str) else f"socket fd={bind.fileno()}"
        target = parse(bind) if isinstance(bind, str) else bind
        if isinstance(target, TcpAddress) and target.port == 0:
            found[number] = text, target  # each is another port
        elif target in found:
            raise _error(text, f"it is given twice{_as(found[target][0], text)}; give each address once")
        else:
            found[target] = text, target
    return list(found.values())


def _as(other: str, text: str) -> str:
    return "" if other == text else f", also as {other!r}"


def _parse_unix(text: str, name: str) -> UnixAddress:
    if name in ("", "@"):
        raise _error(text, "the path is missing; write unix:/path or unix:@name")
    if len(os.fsencode(name.removeprefix("@"))) > MAX_UNIX_NAME:
        raise _error(text, f"the path is too long; a socket's has at most {MAX_UNIX_NAME} bytes")
    return UnixAddress("\0" + name[1:] if name.startswith("@") else name)


def _parse_tcp(text: str) -> TcpAddress:
    host, colon, digits = text.rpartition(":")
    if _is_ipv6(host) and digits.isdecimal():
        raise _error(text, f"IPv6 goes in brackets; write [{host}]:{digits}")
    if _is_ipv6(text):
        raise _error(text, f"IPv6 goes in brackets, and a port is needed; write [{text}]:8000")
    if not colon or text.endswith("]"):
        raise _error(text, f"it has no port; write {FORMS}")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        if not _is_ipv6(host):
            raise _error(text, f"{host!r} is not an IPv6 address")
    elif any(char in ":/[]," or char.isspace() for char in host):
        raise _error(text, f"it is not an address; write {FORMS}, each by itself")
    return TcpAddress(host, _number(text, digits, "a port", 65535))


def _is_ipv6(text: str) -> bool:
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return True


def _number(text: str, digits: str, what: str, most: int) -> int:
    if not (digits.isascii() and digits.isdecimal() and len(digits) <= 10 and int(digits) <= most):
        raise _error(text, f"{digits!r} is not {what}, which is a number from 0 to {most}")
    return int(digits)


@dataclass(frozen=True, slots=True)
class SocketFile:
    """A socket file that this process made, known by its inode and not by its name alone."""

    path: str  # absolute, its folder without links: the application may change folders, and a deploy links
    device: int
    inode: int
    pid: int

    @classmethod
    def made_at(cls, path: str) -> SocketFile:
        status = os.lstat(path)
        folder, name = os.path.split(path)
        return cls(os.path.join(os.path.realpath(folder), name), status.st_dev, status.st_ino, os.getpid())

    def remove(self) -> None:
        """Delete the file, unless we are a fork of its maker, or another file is in its place by now."""
        if os.getpid() != self.pid:
            return
        try:
            status = os.lstat(self.path)
            if (status.st_dev, status.st_ino) == (self.device, self.inode):
                os.unlink(self.path)
        except OSError:  # gone, or no longer ours to delete; a stale file is replaced at the next start
            return


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
                raise _error(text, where + advice) from error

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
                    _remove_stale(text, address.name)
                endpoint = _bind_unix(address, self.access)
            self.endpoints.append(endpoint)
            if address.has_file:
                self.access.finish(address.name)
            endpoint.sock.listen(self.backlog)
        except AccessError as error:
            raise _error(text, str(error)) from error
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise _in_use(text) from error
            reason = os.strerror(error.errno or 0)
            if address.has_file and error.errno in _BAD_FOLDER:
                folder = os.path.dirname(os.path.abspath(address.name))
                reason += f"; the folder {folder!r} must exist and be writable"
            raise _error(text, reason) from error

    def inherited(self, text: str, fd: int) -> None:
        if any(endpoint.sock.fileno() == fd for endpoint in self.endpoints):
            raise _error(text, f"this server has descriptor {fd} already; give each address once")
        try:
            sock = socket.socket(fileno=fd)
        except OSError as error:
            if error.errno == errno.ENOTSOCK:
                raise _error(text, f"descriptor {fd} is not a socket") from error
            what = f"descriptor {fd} is not open; the program that starts pyfanout must leave it open"
            raise _error(text, what) from error
        try:
            self._adopt(text, sock)
        except BaseException:
            sock.detach()  # it was not ours yet
            raise

    def systemd(self, text: str) -> None:
        """All that systemd passed, see sd_listen_fds(3)."""
        pid, count = self.environ.get("LISTEN_PID", ""), self.environ.get("LISTEN_FDS", "")
        if not pid or not count:
            raise _error(text, "no sockets were passed (LISTEN_FDS is not set); start us from a .socket unit")
        if pid != str(os.getpid()):
            raise _error(text, f"the sockets are for process {pid!r} (LISTEN_PID); let systemd start us itself")
        number = _number(text, count, "a count of sockets (LISTEN_FDS)", 1024)
        if number == 0:
            raise _error(text, "no sockets were passed (LISTEN_FDS is 0)")
        for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"):
            self.environ.pop(name, None)
        for fd in range(SYSTEMD_FIRST_FD, SYSTEMD_FIRST_FD + number):
            self.inherited(text, fd)

    def duplicate(self, text: str, original: socket.socket) -> None:
        try:
            sock = original.dup()
        except OSError as error:
            raise _error(text, f"{error.strerror}; it must be open") from error
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
                raise _error(text, f"{what} is not a stream socket")
            if sock.family not in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX):
                raise _error(text, f"{what} is neither a TCP nor a UNIX socket")
            if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                if _is_connected(sock):
                    raise _error(text, f"{what} is a connection; it must be a listening or a bound socket")
                if not _is_bound(sock):
                    raise _error(text, f"{what} has no address; bind it first")
                sock.listen(self.backlog)
            sock.setblocking(False)
            os.set_inheritable(sock.fileno(), False)
            if self.nodelay and sock.family != socket.AF_UNIX:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except OSError as error:
            raise _error(text, f"{what} cannot listen: {error.strerror}") from error
        self.endpoints.append(Endpoint(sock, inherited=True))


def printable(family: int, name: Any) -> str:
    """A socket's address for people: `[::1]:80` for AF_INET6 and `("::1", 80, 0, 0)`."""
    if family == socket.AF_UNIX:
        path = os.fsdecode(name)
        return "unix:" + ("@" + path[1:] if path.startswith("\0") else path)
    host, port, *rest = name
    if family != socket.AF_INET6:
        return f"{host}:{port}"
    if rest[1] and "%" not in host:
        host += f"%{_interface(rest[1])}"
    return f"[{host}]:{port}"


def _interface(index: int) -> str:
    try:
        return socket.if_indextoname(index)
    except OSError:  # it was unplugged
        return str(index)


def _resolve(text: str, host: str) -> list[tuple[int, Any]]:
    """Family and socket address, with port 0, of all that `host` stands for: every interface if empty."""
    try:
        found = socket.getaddrinfo(host or None, 0, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:  # UnicodeError: no name of the DNS
        reason = error.strerror if isinstance(error, OSError) else "not a host name"
        raise _error(text, f"unknown host {host!r}: {reason}") from error
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


def _remove_stale(text: str, path: str) -> None:
    """Delete the socket file that a dead server left at `path`. ConfigError if it is alive, or no socket."""
    try:
        before = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(before.st_mode):
        raise _error(text, "a file is there that is not a socket; remove it or choose another path")
    # A datagram socket asks which process has this file without a connection that a living server would have to accept:
    # the answer for a stream socket is EPROTOTYPE, for none ECONNREFUSED (unix_find_bsd in af_unix.c).
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            now = os.lstat(path)
            if os.path.samestat(before, now) and stat.S_ISSOCK(now.st_mode):  # it was not replaced in the meantime
                os.unlink(path)
            return
        except PermissionError:
            raise _error(text, "a socket of another user is there; remove it or choose another path") from None
        except OSError as error:
            if error.errno != errno.EPROTOTYPE:
                raise
    raise _in_use(text)


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
    return _error(text, f"this server listens on {endpoint.address} already; give each address once")


def _in_use(text: str) -> ConfigError:
    return _error(text, "another process listens there; stop it or choose another path")


def _error(text: str, reason: str) -> ConfigError:
    return ConfigError(f"bind {text!r}: {reason}")
