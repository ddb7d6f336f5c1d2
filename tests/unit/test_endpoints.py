"""addresses, endpoints: every form of an address, every way in which one can be refused, and nothing left behind."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import resource
import socket
import stat
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyfanout.errors import ConfigError
from pyfanout.master import access, filelock
from pyfanout.master.access import Access, AccessError
from pyfanout.master.addresses import InheritedFd, Systemd, TcpAddress, UnixAddress, parse, printable
from pyfanout.master.endpoints import PORT_TRIES, Endpoint, open_listeners
from pyfanout.master.socketfile import SocketFile

NOBODY = 65534


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return True


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")


def descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


@pytest.fixture(autouse=True)
def no_descriptor_leaks() -> Iterator[None]:
    before = descriptors()
    yield
    assert descriptors() == before


Opener = Callable[..., list[Endpoint]]


@pytest.fixture
def opened(no_descriptor_leaks: None) -> Iterator[Opener]:
    """`open_listeners` with defaults, closed when the test is over."""
    endpoints: list[Endpoint] = []

    def open_(*binds: str | socket.socket, **options: Any) -> list[Endpoint]:
        result = open_listeners(binds, **{"backlog": 16, "nodelay": True, "environ": {}, **options})
        endpoints.extend(result)
        return result

    yield open_
    for endpoint in endpoints:
        endpoint.close()


def refused(*binds: str | socket.socket, environ: dict[str, str] | None = None, access: Access | None = None) -> str:
    """The one line with which `binds` are refused; nothing that was opened on the way is still open."""
    before = descriptors()
    with pytest.raises(ConfigError) as caught:
        open_listeners(binds, backlog=16, nodelay=True, environ={} if environ is None else environ, access=access)
    assert descriptors() == before
    assert len(str(caught.value).splitlines()) == 1
    assert str(caught.value).startswith("bind ")
    return str(caught.value)


def unprivileged(act: Callable[[], str]) -> str:
    """What `act` returns when it is not root who runs it: we ourselves, or a child that gives root up."""
    if os.geteuid() != 0:
        return act()
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            result = act()
        except BaseException as error:
            result = f"failed: {error!r}"
        os.write(writer, result.encode())
        os._exit(0)
    os.close(writer)
    with open(reader, encoding="utf-8") as file:
        result = file.read()
    os.waitpid(pid, 0)
    return result


def talks(endpoint: Endpoint) -> Any:
    """Pass a byte through a connection to the endpoint; the client's address as the server sees it."""
    with socket.socket(endpoint.sock.family) as client:
        client.settimeout(5)
        client.connect(endpoint.sock.getsockname())
        endpoint.sock.settimeout(5)
        conn, address = endpoint.sock.accept()
        endpoint.sock.setblocking(False)
        with conn:
            conn.sendall(b"x")
            assert client.recv(1) == b"x"
    return address


def is_ready(sock: socket.socket) -> bool:
    """It listens, does not block, and is closed by exec."""
    flags = fcntl.fcntl(sock, fcntl.F_GETFL)
    return (
        bool(flags & os.O_NONBLOCK)
        and not os.get_inheritable(sock.fileno())
        and sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 1
    )


# --- parse ---


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:8000", TcpAddress("127.0.0.1", 8000)),
        ("localhost:0", TcpAddress("localhost", 0)),
        (":65535", TcpAddress("", 65535)),
        ("[::1]:80", TcpAddress("::1", 80)),
        ("[::]:80", TcpAddress("::", 80)),
        ("[fe80::1%eth0]:80", TcpAddress("fe80::1%eth0", 80)),
        ("systemd", Systemd()),
        ("systemd:80", TcpAddress("systemd", 80)),
        ("fd://0", InheritedFd(0)),
        ("fd://17", InheritedFd(17)),
        ("unix:/run/a b.sock", UnixAddress("/run/a b.sock")),
        ("unix:here.sock", UnixAddress("here.sock")),
        ("unix:@name", UnixAddress("\0name")),
        ("unix:/" + "a" * 106, UnixAddress("/" + "a" * 106)),
        ("unix:@" + "a" * 107, UnixAddress("\0" + "a" * 107)),
    ],
)
def test_parse(text: str, address: object) -> None:
    assert parse(text) == address


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "it has no port"),
        ("localhost", "it has no port; write host:port"),
        ("8000", "it has no port"),
        ("localhost:", "'' is not a port, which is a number from 0 to 65535"),
        ("localhost:http", "'http' is not a port"),
        ("localhost:65536", "'65536' is not a port"),
        ("localhost:-1", "'-1' is not a port"),
        ("localhost:\u0663", "is not a port"),
        ("localhost:" + "9" * 5000, "is not a port"),
        ("[::1]", "it has no port"),
        ("::1", "write [::1]:8000"),
        ("2001:db8::1:8000", "IPv6 goes in brackets; write [2001:db8::1]:8000"),
        ("2001:db8::1:ab", "write [2001:db8::1:ab]:8000"),
        ("2001:db8:0:0:0:0:0:1:8000", "write [2001:db8:0:0:0:0:0:1]:8000"),
        ("[127.0.0.1]:80", "'127.0.0.1' is not an IPv6 address"),
        ("[]:80", "'' is not an IPv6 address"),
        ("http://localhost:80", "it is not an address"),
        ("a:1,b:2", "it is not an address"),
        ("a b:80", "it is not an address"),
        ("unix:", "the path is missing"),
        ("unix:@", "the path is missing"),
        ("unix:/" + "a" * 107, "at most 107 bytes"),
        ("unix:@" + "a" * 108, "at most 107 bytes"),
        ("unix:/" + "\u00e4" * 54, "at most 107 bytes"),
        ("unix:/a\0b", "a NUL byte"),
        ("fd://", "'' is not a descriptor"),
        ("fd://x", "'x' is not a descriptor"),
        ("fd://-1", "'-1' is not a descriptor"),
        ("fd://2147483648", "is not a descriptor"),
        ("SYSTEMD", "it has no port"),
    ],
)
def test_parse_refuses(text: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text)
    assert says in str(caught.value)
    assert str(caught.value).startswith(f"bind {text!r}: ")


@settings(deadline=None, database=None)
@given(st.text() | st.builds(str.__add__, st.sampled_from(["unix:", "fd://", "[", "host:", ":"]), st.text()))
def test_any_text_is_parsed_or_refused_in_one_line(text: str) -> None:
    try:
        parse(text)
    except ConfigError as error:
        assert len(str(error).splitlines()) == 1  # noqa: PT017 - it may also be an address


# --- TCP ---


def test_tcp_v4(opened: Opener) -> None:
    (endpoint,) = opened("127.0.0.1:0")
    port = endpoint.sock.getsockname()[1]
    assert port != 0
    assert endpoint.address == f"127.0.0.1:{port}"
    assert is_ready(endpoint.sock)
    assert endpoint.sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR)
    assert talks(endpoint)[0] == "127.0.0.1"


@needs_ipv6
def test_tcp_v6(opened: Opener) -> None:
    (endpoint,) = opened("[::1]:0")
    assert endpoint.address == f"[::1]:{endpoint.sock.getsockname()[1]}"
    assert is_ready(endpoint.sock)
    assert endpoint.sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
    assert talks(endpoint)[0] == "::1"


@needs_ipv6
def test_v6_leaves_the_v4_port_alone(opened: Opener) -> None:
    (v6,) = opened("[::]:0")
    port = v6.sock.getsockname()[1]
    with pytest.raises(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)):
        pass


@pytest.mark.parametrize("nodelay", [True, False])
def test_nodelay_is_inherited_by_what_is_accepted(opened: Opener, nodelay: bool) -> None:
    (endpoint,) = opened("127.0.0.1:0", nodelay=nodelay)
    with socket.create_connection(endpoint.sock.getsockname()):
        endpoint.sock.setblocking(True)
        conn, _ = endpoint.sock.accept()
        with conn:
            assert bool(conn.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)) is nodelay


@needs_ipv6
def test_all_interfaces_share_one_port(opened: Opener) -> None:
    v4, v6 = sorted(opened(":0"), key=lambda endpoint: endpoint.sock.family)
    port = v4.sock.getsockname()[1]
    assert (v4.address, v6.address) == (f"0.0.0.0:{port}", f"[::]:{port}")


def fake_hosts(monkeypatch: pytest.MonkeyPatch, *hosts: str) -> None:
    """Let every name resolve to `hosts`."""
    found = [
        (socket.AF_INET6, socket.SOCK_STREAM, 6, "", (host, 0, 0, 0))
        if ":" in host
        else (socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, 0))
        for host in hosts
    ]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: found)


@needs_ipv6
def test_a_name_is_every_address_of_it(opened: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_hosts(monkeypatch, "127.0.0.1", "127.0.0.2", "::1", "127.0.0.1")
    endpoints = opened("some.name:0")
    port = endpoints[0].sock.getsockname()[1]
    assert [each.address for each in endpoints] == [f"127.0.0.1:{port}", f"127.0.0.2:{port}", f"[::1]:{port}"]


def test_localhost(opened: Opener) -> None:
    for endpoint in opened("localhost:0"):
        assert talks(endpoint)[0] in ("127.0.0.1", "::1")


@pytest.mark.parametrize("number", [errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL])
def test_ipv6_that_is_not_there_is_left_out(opened: Opener, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    class NoIPv6(socket.socket):
        def __init__(self, family: int = -1, *args: Any, **kwargs: Any) -> None:
            if family == socket.AF_INET6:
                raise OSError(number, os.strerror(number))
            super().__init__(family, *args, **kwargs)

    monkeypatch.setattr(socket, "socket", NoIPv6)
    (endpoint,) = opened(":0")
    assert endpoint.address.startswith("0.0.0.0:")
    fake_hosts(monkeypatch, "::1", "127.0.0.1")
    (endpoint,) = opened("localhost:0")
    assert endpoint.address.startswith("127.0.0.1:")
    fake_hosts(monkeypatch, "::1")
    assert {errno.EAFNOSUPPORT: "no IPv6", errno.EADDRNOTAVAIL: "no network interface"}[number] in refused("x:0")


def test_a_port_that_is_taken_on_the_second_address_is_chosen_anew(
    opened: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel chooses a port on the first address; the second refuses two of its choices, then all."""
    fake_hosts(monkeypatch, "127.0.0.1", "127.0.0.2")
    tries: list[int] = []
    refusals = 2

    class Taken(socket.socket):
        def bind(self, address: Any) -> None:
            if address[0] == "127.0.0.2":
                tries.append(address[1])
                if len(tries) <= refusals:
                    raise OSError(errno.EADDRINUSE, "in use")
            super().bind(address)

    monkeypatch.setattr(socket, "socket", Taken)
    first, second = opened("some.name:0")
    assert first.sock.getsockname()[1] == second.sock.getsockname()[1] == tries[2]
    tries.clear()
    refusals = 1000
    assert "in use" in refused("some.name:0")
    assert len(tries) == PORT_TRIES


def test_scope_of_a_link_local_address(opened: Opener) -> None:
    lines = Path("/proc/net/if_inet6").read_text().splitlines() if Path("/proc/net/if_inet6").exists() else []
    links = [line.split() for line in lines if line.startswith("fe80")]
    if not links:
        pytest.skip("no interface of this machine has a link-local address")
    digits, name = links[0][0], links[0][5]
    host = socket.inet_ntop(socket.AF_INET6, bytes.fromhex(digits))
    (endpoint,) = opened(f"[{host}%{name}]:0")
    assert endpoint.address == f"[{host}%{name}]:{endpoint.sock.getsockname()[1]}"
    assert "needs its interface" in refused(f"[{host}]:0")


def test_interface_that_is_not_there() -> None:
    assert "unknown host 'fe80::1%nosuchif0'" in refused("[fe80::1%nosuchif0]:0")


def test_address_of_an_interface_that_was_unplugged() -> None:
    assert printable(socket.AF_INET6, ("fe80::1", 80, 0, 2**20)) == f"[fe80::1%{2**20}]:80"


def test_port_in_use(opened: Opener) -> None:
    (endpoint,) = opened("127.0.0.1:0")
    message = refused(endpoint.address)
    assert message == f"bind '{endpoint.address}': it is in use; stop the other server or choose another port"


def test_port_in_use_on_one_of_several_addresses(opened: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    (endpoint,) = opened("127.0.0.2:0")
    port = endpoint.sock.getsockname()[1]
    fake_hosts(monkeypatch, "127.0.0.1", "127.0.0.2")
    assert f"bind 'some.name:{port}': 127.0.0.2:{port}: it is in use" in refused(f"some.name:{port}")


def free_port() -> int:
    with socket.socket() as chooser:
        chooser.bind(("127.0.0.1", 0))
        return int(chooser.getsockname()[1])


TWICE = [
    ("127.0.0.1:PORT", "127.0.0.1:PORT", "it is given twice; give each address once"),
    ("127.0.0.1:PORT", "localhost:PORT", "this server listens on 127.0.0.1:PORT already; give each address once"),
    ("0.0.0.0:PORT", "127.0.0.1:PORT", "this server listens on 0.0.0.0:PORT already; give each address once"),
    ("127.0.0.1:PORT", "0.0.0.0:PORT", "this server listens on 127.0.0.1:PORT already; give each address once"),
    ("unix:PATH/a", "unix:PATH/a", "it is given twice; give each address once"),
    ("unix:PATH/a", "unix:PATH/./a", "this server listens on unix:PATH/a already; give each address once"),
    ("unix:PATH/a", "unix:PATH/link/a", "this server listens on unix:PATH/a already; give each address once"),
    ("unix:@pyfanout-PORT", "unix:@pyfanout-PORT", "it is given twice; give each address once"),
    ("systemd", "systemd", "it is given twice; give each address once"),
    ("fd://999", "fd://999", "it is given twice; give each address once"),
    ("fd://999", "fd://0999", "it is given twice, also as 'fd://999'; give each address once"),
]


@pytest.mark.parametrize(("one", "other", "says"), TWICE)
def test_the_same_address_twice(tmp_path: Path, one: str, other: str, says: str) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    port = str(free_port())
    one, other, says = (text.replace("PORT", port).replace("PATH", str(tmp_path)) for text in (one, other, says))
    assert refused(one, other) == f"bind {other!r}: {says}"
    assert os.listdir(tmp_path) == ["link"]


def test_port_0_twice_is_two_ports(opened: Opener) -> None:
    first, second = opened("127.0.0.1:0", "127.0.0.1:0")
    assert first.address != second.address


def test_the_same_port_on_several_addresses(opened: Opener) -> None:
    port = free_port()
    opened(f"127.0.0.1:{port}", f"127.0.0.2:{port}", "unix:@pyfanout-one", "unix:@pyfanout-two")


@needs_ipv6
def test_a_socket_for_both_families_has_the_addresses_of_both() -> None:
    with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as sock:
        port = sock.getsockname()[1]
        said = refused(sock, f"127.0.0.1:{port}")
    assert said.endswith(f"this server listens on [::]:{port} already; give each address once")


def test_the_same_socket_twice(opened: Opener) -> None:
    with bound() as sock:
        address = printable(sock.family, sock.getsockname())
        assert refused(sock, sock).endswith("it is given twice; give each address once")
        with sock.dup() as copy:
            assert refused(sock, copy).endswith(f"this server listens on {address} already; give each address once")
        assert f"this server listens on {address} already" in refused(sock, address)


def test_a_port_in_time_wait_can_be_had_again(opened: Opener) -> None:
    (endpoint,) = opened("127.0.0.1:0")
    address = endpoint.address
    talks(endpoint)  # we close first: our end is in TIME_WAIT
    endpoint.close()
    assert opened(address)[0].address == address


def test_privileged_port() -> None:
    first_free = int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text())
    if first_free <= 1:
        pytest.skip("this machine lets everybody have every port")
    message = unprivileged(lambda: refused("127.0.0.1:1"))
    assert message.startswith("bind '127.0.0.1:1': permission denied; a port below 1024 needs root")


def test_address_that_is_not_ours() -> None:
    assert "no network interface of this machine has that address" in refused("192.0.2.1:0")


@pytest.mark.parametrize("host", ["no-such-host.invalid", "a..b", "a" * 64 + ".invalid"])
def test_unknown_host(host: str) -> None:
    assert f"unknown host {host!r}: " in refused(f"{host}:80")


def test_out_of_descriptors() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken: list[int] = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(descriptors()) + 20, hard))
    try:
        with suppress(OSError):  # EMFILE
            while True:
                taken.append(os.open("/dev/null", os.O_RDONLY))
        messages = []
        for bind in ("127.0.0.1:0", "unix:@pyfanout-full"):
            with pytest.raises(ConfigError) as caught:
                open_listeners([bind], backlog=1, nodelay=True, environ={})
            messages.append(str(caught.value))
    finally:
        for fd in taken:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert all("Too many open files" in message for message in messages)


# --- UNIX ---


def test_unix_path(opened: Opener, tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    (endpoint,) = opened(f"unix:{path}")
    assert endpoint.address == f"unix:{path}"
    assert is_ready(endpoint.sock)
    talks(endpoint)
    endpoint.close()
    assert not path.exists()
    endpoint.close()


def test_unix_abstract(opened: Opener) -> None:
    name = f"pyfanout-test-{os.getpid()}"
    (endpoint,) = opened(f"unix:@{name}")
    assert endpoint.address == f"unix:@{name}"
    assert endpoint.sock.getsockname() == b"\0" + name.encode()
    assert is_ready(endpoint.sock)
    talks(endpoint)
    assert "another process listens there" in refused(f"unix:@{name}")
    endpoint.close()
    assert opened(f"unix:@{name}")


def test_unix_relative_path_survives_a_change_of_folder(
    opened: Opener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (endpoint,) = opened("unix:a.sock")
    assert (tmp_path / "a.sock").exists()
    monkeypatch.chdir("/")
    endpoint.close()
    assert not (tmp_path / "a.sock").exists()


def test_unix_stale_file_is_replaced(opened: Opener, tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
        dead.listen()
    talks(opened(f"unix:{path}")[0])


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET])
@pytest.mark.parametrize("listens", [True, False])
def test_unix_live_socket_is_left_alone(tmp_path: Path, kind: socket.SocketKind, listens: bool) -> None:
    path = tmp_path / "a.sock"
    with socket.socket(socket.AF_UNIX, kind) as live:
        live.bind(str(path))
        if listens and kind != socket.SOCK_DGRAM:
            live.listen(1)
        inode = path.stat().st_ino
        message = refused(f"unix:{path}")
        assert message == (f"bind 'unix:{path}': another process listens there; stop it or choose another path")
        assert path.stat().st_ino == inode
        if listens and kind != socket.SOCK_DGRAM:
            live.setblocking(False)
            with pytest.raises(BlockingIOError):  # the question is no connection
                live.accept()


def make_device(path: Path) -> None:
    try:
        os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("this user may make no device")


def link_to_a_socket(path: Path) -> None:
    target = path.with_name("target")
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(target))
    path.symlink_to(target)


@pytest.mark.parametrize(
    "make",
    [
        Path.touch,
        Path.mkdir,
        os.mkfifo,
        make_device,
        link_to_a_socket,
        lambda path: path.symlink_to("/nowhere"),
    ],
)
def test_unix_path_that_is_not_a_socket(tmp_path: Path, make: Callable[[Path], None]) -> None:
    path = tmp_path / "a.sock"
    make(path)
    before, names = path.lstat(), sorted(os.listdir(tmp_path))
    assert "a file is there that is not a socket; remove it" in refused(f"unix:{path}")
    assert (path.lstat().st_ino, path.lstat().st_mode) == (before.st_ino, before.st_mode)
    assert sorted(os.listdir(tmp_path)) == names


def test_unix_socket_of_another_user() -> None:
    """Whether a server is behind it cannot be asked."""
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as live:
        path = Path(folder, "a.sock")
        live.bind(str(path))
        path.chmod(0o600)
        path.parent.chmod(0o777)
        message = unprivileged(lambda: refused(f"unix:{path}"))
        assert message.endswith("a socket of another user is there; remove it or choose another path")
        assert path.exists()


def test_unix_two_starts_at_the_same_instant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One has seen a stale file, and is about to delete it when the other one comes, which binds the path if it may.
    It must not delete that one's file."""
    path = tmp_path / "a.sock"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    ours, theirs = socket.socketpair()
    with ours, theirs:
        other = os.fork()
        if other == 0:
            try:
                ours.close()
                monkeypatch.setattr(filelock, "FOLDER_S", 60.0)
                theirs.recv(1)
                try:
                    endpoints = open_listeners([f"unix:{path}"], backlog=1, nodelay=True, environ={})
                    theirs.send(b"has it")
                    theirs.recv(1)
                    assert endpoints
                except ConfigError as error:
                    theirs.send(str(error).encode())
            finally:
                os._exit(0)
        theirs.close()
        delete = os.unlink

        def wait_and_delete(name: str) -> None:
            ours.send(b"!")
            ours.settimeout(1)
            with suppress(TimeoutError):
                ours.recv(1, socket.MSG_PEEK)
            delete(name)

        with monkeypatch.context() as context:
            context.setattr(os, "unlink", wait_and_delete)
            (endpoint,) = open_listeners([f"unix:{path}"], backlog=1, nodelay=True, environ={})
        try:
            ours.settimeout(60)
            assert b"another process listens there" in ours.recv(1000)
            talks(endpoint)
        finally:
            endpoint.close()
            ours.close()
            os.waitpid(other, 0)


@pytest.mark.parametrize("error", ["EWOULDBLOCK", "EBADF", "ENOLCK", "ENOSYS", "EPERM"])
def test_unix_folder_that_cannot_be_locked(
    opened: Opener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: str
) -> None:
    """Any user who may read it may keep its lock; other file systems have none."""

    def refuse(*_: object) -> None:
        raise OSError(getattr(errno, error), error)

    monkeypatch.setattr(fcntl, "flock", refuse)
    monkeypatch.setattr(filelock, "FOLDER_S", 0.02)
    talks(opened(f"unix:{tmp_path}/a.sock")[0])


def test_unix_folder_that_cannot_be_read() -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o333)

        def serve() -> str:
            (endpoint,) = open_listeners([f"unix:{folder}/a.sock"], backlog=1, nodelay=True, environ={})
            talks(endpoint)
            endpoint.close()
            return "served"

        assert unprivileged(serve) == "served"


def test_unix_folder_that_is_not_there(tmp_path: Path) -> None:
    message = refused(f"unix:{tmp_path}/none/a.sock")
    assert message.endswith(f"No such file or directory; the folder '{tmp_path}/none' must exist and be writable")


def test_unix_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "Not a directory; the folder" in refused(f"unix:{tmp_path}/file/a.sock")


def test_unix_folder_that_is_not_writable() -> None:
    message = unprivileged(lambda: refused("unix:/pyfanout-test.sock"))
    assert message.endswith("Permission denied; the folder '/' must exist and be writable")


def test_unix_file_of_somebody_else_is_not_deleted(opened: Opener, tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    (endpoint,) = opened(f"unix:{path}")
    path.unlink()
    path.touch()  # an open socket keeps its inode, so this is another one
    endpoint.close()
    assert path.exists()


def test_unix_file_that_is_gone(opened: Opener, tmp_path: Path) -> None:
    (endpoint,) = opened(f"unix:{tmp_path}/a.sock")
    (tmp_path / "a.sock").unlink()
    endpoint.close()


def test_unix_file_is_not_deleted_by_a_forked_child(opened: Opener, tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    (endpoint,) = opened(f"unix:{path}")
    pid = os.fork()
    if pid == 0:
        endpoint.close()
        os._exit(0)
    os.waitpid(pid, 0)
    talks(endpoint)
    assert stat.S_ISSOCK(path.stat().st_mode)


def test_unix_file_is_deleted_after_detach(opened: Opener, tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    (endpoint,) = opened(f"unix:{path}")
    fd = endpoint.detach()
    assert (endpoint.address, endpoint.sock.family) == (f"unix:{path}", socket.AF_UNIX)
    endpoint.unlink()
    assert not path.exists()
    os.close(fd)


# --- who may connect to a socket file ---


def connects_as(uid: int, gid: int, path: Path) -> bool:
    """In a child of this user."""
    pid = os.fork()
    if pid == 0:
        os.setgroups([])
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
        with socket.socket(socket.AF_UNIX) as client:
            os._exit(client.connect_ex(str(path)))
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


@pytest.fixture
def public() -> Iterator[Path]:
    """A folder where all users may make files."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o777)
        yield folder


USER, GROUP = 20_001, 20_002
"""Of nobody."""

needs_root = pytest.mark.skipif(os.getuid() != 0, reason="only root may give files away")


@pytest.mark.parametrize("umask", [0, 0o77, 0o777])
@pytest.mark.parametrize("mode", [0o660, 0o600, 0o666, 0o777, 0])
def test_mode_of_a_socket_file(opened: Opener, tmp_path: Path, umask: int, mode: int) -> None:
    """Whatever the umask is, and never more than asked for, from the moment it is there."""
    before, seen = os.umask(umask), []
    real = SocketFile.made_at

    def made_at(path: str) -> SocketFile:
        seen.append(stat.S_IMODE(os.lstat(path).st_mode))
        return real(path)

    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(SocketFile, "made_at", made_at)
            (endpoint,) = opened(f"unix:{tmp_path}/s", access=Access.of(mode, None))
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "s").stat().st_mode) == mode
    assert seen == [mode & ~umask]
    assert is_ready(endpoint.sock)


@needs_root
def test_owner_of_a_socket_file(opened: Opener, public: Path) -> None:
    for owner, mode, uid, gid in [
        ("nobody", 0o600, 65534, os.getgid()),
        (f"{USER}:{GROUP}", 0o660, USER, GROUP),
        (f":{GROUP}", None, os.getuid(), GROUP),
    ]:
        path = public / f"s{uid}"
        opened(f"unix:{path}", access=Access.of(mode, owner))
        found = path.stat()
        assert (found.st_uid, found.st_gid) == (uid, gid)
        if mode is not None:
            assert stat.S_IMODE(found.st_mode) == mode
        else:
            assert stat.S_IMODE(found.st_mode) & 0o700 == 0o700
    assert connects_as(USER + 5, GROUP, public / f"s{USER}")
    assert not connects_as(USER + 5, GROUP + 5, public / f"s{USER}")


@needs_root
def test_with_an_owner_no_group_may_connect_before(opened: Opener, tmp_path: Path) -> None:
    """The mode is for the group that is asked for, not for that of this process."""
    seen: list[int] = []
    real = os.chown

    def chown(path: str, *arguments: int) -> None:
        seen.append(stat.S_IMODE(os.stat(path).st_mode))
        with socket.socket(socket.AF_UNIX) as client, pytest.raises(ConnectionRefusedError):
            client.connect(str(tmp_path / "s"))
        real(path, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "chown", chown)
        opened(f"unix:{tmp_path}/s", access=Access.of(0o660, f":{GROUP}"))
    assert seen == [0o600 & ~umask_of_this_process()]


def umask_of_this_process() -> int:
    return int(re.search(r"Umask:\s*(\d+)", Path("/proc/self/status").read_text())[1], 8)  # type: ignore[index]


@pytest.mark.parametrize(
    ("owner", "says"),
    [
        ("no-such-user", "unix_owner: this machine has no user 'no-such-user'"),
        (":no-such-group", "unix_owner: this machine has no group 'no-such-group'"),
        ("99999999999", "unix_owner: this machine has no user '99999999999'"),
        ("a\0b", "unix_owner: this machine has no user"),
    ],
)
def test_an_owner_that_does_not_exist(owner: str, says: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(says)):
        Access.of(None, owner)


@needs_root
def test_an_owner_that_is_not_permitted(public: Path) -> None:
    """One line, and the file is gone."""
    message = unprivileged(lambda: refused(f"unix:{public}/s", access=Access.of(0o660, "root")))
    assert message == (
        f"bind 'unix:{public}/s': its owner cannot be 'root' (unix_owner): Operation not permitted; "
        "only root may give files away"
    )
    assert not (public / "s").exists()


def test_another_file_in_the_place_of_the_socket_file_is_left_alone(tmp_path: Path) -> None:
    other, link = tmp_path / "other", tmp_path / "link"
    other.touch(0o600)
    link.symlink_to(other)
    for path in (other, link):
        with pytest.raises(AccessError, match="it cannot be opened: another file has taken its place"):
            Access.of(0o666, None).finish(str(path))
    assert stat.S_IMODE(other.stat().st_mode) == 0o600


def test_without_proc_a_mode_is_refused_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`/proc/self/fd` is looked for as it is; a file system is not mounted over it here."""
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(path)
    monkeypatch.setattr(access, "HELD", "/no-proc/self/fd")
    with pytest.raises(AccessError, match=r"its mode cannot be 600 \(unix_mode\): No such file .*; it needs /proc$"):
        Access(0o600).finish(path)


def test_an_abstract_name_has_no_mode(opened: Opener) -> None:
    (endpoint,) = opened(f"unix:@pyfanout-mode-{os.getpid()}", access=Access.of(0, None))
    talks(endpoint)


# --- inherited ---


def bound(family: int = socket.AF_INET, kind: int = socket.SOCK_STREAM) -> socket.socket:
    sock = socket.socket(family, kind)
    sock.bind(("127.0.0.1", 0))
    return sock


@pytest.mark.parametrize("listens", [True, False])
def test_fd(opened: Opener, listens: bool) -> None:
    sock = bound()
    if listens:
        sock.listen()
    fd = sock.detach()
    os.set_inheritable(fd, True)
    (endpoint,) = opened(f"fd://{fd}")
    assert endpoint.sock.fileno() == fd  # it is ours now, and not a copy
    assert is_ready(endpoint.sock)
    assert endpoint.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    assert endpoint.address.startswith("127.0.0.1:")
    assert talks(endpoint)[0] == "127.0.0.1"


def test_fd_of_a_unix_socket_is_not_unlinked(opened: Opener, tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(path))
    (endpoint,) = opened(f"fd://{sock.detach()}")
    assert endpoint.address == f"unix:{path}"
    talks(endpoint)
    endpoint.close()
    assert path.exists()


def test_fd_that_is_refused_stays_open() -> None:
    with bound(kind=socket.SOCK_DGRAM) as sock:
        assert f"descriptor {sock.fileno()} is not a stream socket" in refused(f"fd://{sock.fileno()}")
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert "is a connection" in refused(f"fd://{ours.fileno()}")
    with socket.socket() as sock:
        assert "has no address; bind it first" in refused(f"fd://{sock.fileno()}")
    with socket.socket(socket.AF_UNIX) as sock:
        assert "has no address; bind it first" in refused(f"fd://{sock.fileno()}")


def test_fd_that_is_not_a_socket() -> None:
    with open("/dev/null", "rb") as file:
        assert f"descriptor {file.fileno()} is not a socket" in refused(f"fd://{file.fileno()}")


def test_fd_that_is_not_open() -> None:
    assert "descriptor 1000000 is not open" in refused("fd://1000000")


def test_the_same_socket_as_two_descriptors() -> None:
    """What was opened before the error is closed, and the one that was refused is not ours."""
    sock = bound()
    copy = sock.dup()
    address = printable(sock.family, sock.getsockname())
    fds = sock.detach(), copy.detach()
    with pytest.raises(ConfigError, match=f"bind 'fd://{fds[1]}': this server listens on {address} already"):
        open_listeners([f"fd://{fd}" for fd in fds], backlog=1, nodelay=True, environ={})
    os.close(fds[1])
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fds[0])


def test_open_socket_stays_the_callers(opened: Opener) -> None:
    with bound() as sock:
        (endpoint,) = opened(sock)
        assert endpoint.sock.fileno() != sock.fileno()
        assert is_ready(endpoint.sock)
        endpoint.close()
        with socket.create_connection(sock.getsockname()):
            pass


def test_open_socket_that_already_listens(opened: Opener, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "a.sock"))
        sock.listen()
        (endpoint,) = opened(sock)
        talks(endpoint)
        endpoint.close()
    assert (tmp_path / "a.sock").exists()


def test_open_socket_that_cannot_be_used() -> None:
    sock = socket.socket()
    sock.close()
    assert "it must be open" in refused(sock)
    with bound(kind=socket.SOCK_DGRAM) as sock:
        assert f"bind 'socket fd={sock.fileno()}': " in refused(sock)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW) as sock:
        assert "is not a stream socket" in refused(sock)


# --- systemd ---


def systemd(sockets: Sequence[socket.socket], environ: dict[str, str], act: Callable[[dict[str, str]], str]) -> str:
    """What `act` returns in a child that has `sockets` from descriptor 3 on, as systemd would leave them."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            report = fcntl.fcntl(writer, fcntl.F_DUPFD_CLOEXEC, 100)
            copies = [fcntl.fcntl(sock, fcntl.F_DUPFD, 100) for sock in sockets]
            for fd, copy in enumerate(copies, start=3):
                os.dup2(copy, fd)
            result = act({"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(len(sockets)), **environ})
        except BaseException as error:
            result = f"failed: {error!r}"
        os.write(report, result.encode())
        os._exit(0)
    os.close(writer)
    with open(reader, encoding="utf-8") as file:
        result = file.read()
    os.waitpid(pid, 0)
    return result


def test_systemd(tmp_path: Path) -> None:
    def act(environ: dict[str, str]) -> str:
        endpoints = open_listeners(["systemd"], backlog=4, nodelay=True, environ=environ)
        assert [endpoint.sock.fileno() for endpoint in endpoints] == [3, 4]
        assert all(is_ready(endpoint.sock) for endpoint in endpoints)
        assert environ == {"KEPT": "1"}
        for endpoint in endpoints:
            talks(endpoint)
            endpoint.close()
        return " ".join(endpoint.address for endpoint in endpoints)

    path = tmp_path / "a.sock"
    with bound() as tcp, socket.socket(socket.AF_UNIX) as unix:
        tcp.listen()
        unix.bind(str(path))
        unix.listen()
        result = systemd([tcp, unix], {"LISTEN_FDNAMES": "a:b", "KEPT": "1"}, act)
        assert result == f"127.0.0.1:{tcp.getsockname()[1]} unix:{path}"
    assert path.exists()  # it is systemd's


def test_systemd_passes_something_else() -> None:
    with bound(kind=socket.SOCK_DGRAM) as udp:
        result = systemd([udp], {}, lambda environ: refused("systemd", environ=environ))
    assert result == "bind 'systemd': descriptor 3 is not a stream socket"


@pytest.mark.parametrize(
    ("environ", "says"),
    [
        ({}, "no sockets were passed (LISTEN_FDS is not set)"),
        ({"LISTEN_FDS": "1"}, "no sockets were passed"),
        ({"LISTEN_PID": "self"}, "no sockets were passed"),
        ({"LISTEN_PID": "self", "LISTEN_FDS": "0"}, "no sockets were passed (LISTEN_FDS is 0)"),
        ({"LISTEN_PID": "1000000000", "LISTEN_FDS": "1"}, "the sockets are for process '1000000000'"),
        ({"LISTEN_PID": "self", "LISTEN_FDS": "some"}, "'some' is not a count of sockets (LISTEN_FDS)"),
        ({"LISTEN_PID": "self", "LISTEN_FDS": "100000"}, "is not a count of sockets"),
    ],
)
def test_systemd_refused(environ: dict[str, str], says: str) -> None:
    mine = {name: str(os.getpid()) if text == "self" else text for name, text in environ.items()}
    assert says in refused("systemd", environ=mine)


# --- together ---


@needs_ipv6
def test_several(opened: Opener, tmp_path: Path) -> None:
    with bound() as sock:
        endpoints = opened("127.0.0.1:0", f"unix:{tmp_path}/a.sock", sock, "[::1]:0")
        assert [endpoint.sock.family for endpoint in endpoints] == [
            socket.AF_INET,
            socket.AF_UNIX,
            socket.AF_INET,
            socket.AF_INET6,
        ]


def test_one_that_fails_closes_all(tmp_path: Path) -> None:
    """`refused` counts the descriptors."""
    with bound() as sock:
        fd = bound().detach()
        with pytest.raises(ConfigError, match="no network interface"):
            open_listeners(
                ["127.0.0.1:0", f"unix:{tmp_path}/a.sock", sock, f"fd://{fd}", "192.0.2.1:0"],
                backlog=1,
                nodelay=True,
                environ={},
            )
        assert not (tmp_path / "a.sock").exists()
        assert "no network interface" in refused("127.0.0.1:0", f"unix:{tmp_path}/a.sock", sock, "192.0.2.1:0")
        assert sock.fileno() >= 0


def test_nothing_is_opened_if_one_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "a.sock").touch()
    message = refused(f"unix:{tmp_path}/a.sock", "nonsense")  # the file would be refused, too, had it been looked at
    assert "bind 'nonsense'" in message
