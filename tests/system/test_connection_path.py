"""From the client to the handler: every form of address, policy and kind of handler; the client's true address."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from harness import Server, ask, connect, high_fd, read_all, read_line

MakeServer = Callable[[], Server]

POLICIES = ("round-robin", "least-connections", "source-hash")
KINDS: dict[str, tuple[str, dict[str, object]]] = {
    "blocking": ("act", {}),
    "threads": ("act", {"threads": 3}),
    "asyncio": ("act_async", {}),
}


def has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


@dataclass
class Form:
    """How a server is told where to listen."""

    bind: str | list[str] | None = None
    script: dict[str, Any] | None = None
    pass_fds: list[int] = field(default_factory=list)
    listen_fds: list[int] = field(default_factory=list)
    count: int = 1
    """How many addresses it listens on."""


def forms(stack: ExitStack, folder: Path, name: str) -> Form:
    def listener(family: int = socket.AF_INET, address: Any = ("127.0.0.1", 0)) -> int:
        with socket.socket(family) as sock:
            sock.bind(address)
            sock.listen()
            fd = high_fd(sock)
        stack.callback(os.close, fd)
        return fd

    def inherited(fd: int) -> Form:
        return Form(f"fd://{fd}", pass_fds=[fd])

    def opened(fd: int) -> Form:
        return Form(script={"sockets": [fd]}, pass_fds=[fd])

    match name:
        case "v4":
            return Form("127.0.0.1:0")
        case "v6":
            return Form("[::1]:0")
        case "any":
            return Form(":0", count=2 if has_ipv6() else 1)
        case "name":
            return Form("localhost:0", count=len({info[4] for info in socket.getaddrinfo("localhost", 0)}))
        case "path":
            return Form(f"unix:{folder}/the socket")
        case "abstract":
            return Form(f"unix:@pyfanout-test-{os.getpid()}-{folder.name}")
        case "fd":
            return inherited(listener())
        case "fd-unix":
            return inherited(listener(socket.AF_UNIX, f"{folder}/inherited"))
        case "socket":
            return opened(listener())
        case "systemd":
            fds = [listener(), listener(socket.AF_UNIX, f"{folder}/activated")]
            return Form("systemd", listen_fds=fds, count=2)
        case "list":
            return Form(["127.0.0.1:0", f"unix:{folder}/one", "127.0.0.1:0"], count=3)
    raise AssertionError(name)


@pytest.fixture
def stack(guard: None) -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


NEEDS_V6 = pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "name",
    [
        "v4",
        pytest.param("v6", marks=NEEDS_V6),
        "any",
        "name",
        "path",
        "abstract",
        "fd",
        "fd-unix",
        "socket",
        "systemd",
        "list",
    ],
)
def test_the_path(server: MakeServer, stack: ExitStack, tmp_path: Path, name: str, kind: str, policy: str) -> None:
    form = forms(stack, tmp_path, name)
    handler, options = KINDS[kind]
    one = server().start(
        handler if form.script is not None else f"apps:{handler}",
        script=form.script,
        bind=form.bind,
        pass_fds=form.pass_fds,
        listen_fds=form.listen_fds,
        policy=policy,
        workers=2,
        **options,
    )
    assert len(one.addresses) == form.count
    assert f"with 2 workers, {policy}" in one.log
    workers = one.workers
    assert len(workers) == 2
    for address in one.addresses:
        for _ in range(2):
            check_one(address, workers, kind, tmp_path)
    if address.startswith("unix:/"):  # a client that has a name of its own
        check_named_unix_clients(address, tmp_path)
    assert one.stop() == 0


def check_one(address: str, workers: list[int], kind: str, folder: Path) -> None:
    client = connect(address, "whoami")
    name = client.getsockname()
    answer = ask_on(client)
    assert answer["pid"] in workers
    assert answer["worker_pid"] == answer["pid"]
    assert answer["slot"] == workers.index(answer["pid"])
    assert answer["generation"] == 1
    assert answer["addr"] == repr(name)
    assert answer["family"] == socket.AddressFamily(client_family(address)).name
    assert answer["nodelay"] is (None if address.startswith("unix:") else True)
    assert answer["inheritable"] is False
    if kind == "asyncio":
        assert answer["blocking"] is False
    else:
        assert answer["blocking"] is True
        assert answer["timeout"] is None
        assert (answer["thread"] == "MainThread") is (kind == "blocking")


def client_family(address: str) -> int:
    return socket.AF_UNIX if address.startswith("unix:") else socket.AF_INET6 if "[" in address else socket.AF_INET


def ask_on(client: socket.socket) -> Any:
    return json.loads(read_all(client))


def check_named_unix_clients(address: str, folder: Path) -> None:
    for number, name in enumerate((f"{folder}/client", f"\0pyfanout-client-{os.getpid()}")):
        answer = ask(address, source=name)
        assert answer["addr"] == repr(name if number == 0 else name.encode())
    os.unlink(f"{folder}/client")


@pytest.mark.parametrize("kind", KINDS)
def test_a_default_timeout_changes_nothing(server: MakeServer, kind: str) -> None:
    """socket.setdefaulttimeout is for sockets that the application makes."""
    handler, options = KINDS[kind]
    one = server().start(handler, script={"timeout": 0.05}, workers=2, **options)
    for _ in range(4):
        answer = ask(one.address)
        if kind != "asyncio":
            assert (answer["blocking"], answer["timeout"]) == (True, None)
    # A slow client is waited for, also by a worker that was idle for longer than that timeout.
    client = connect(one.address)
    client.settimeout(0.3)
    with pytest.raises(TimeoutError):
        client.recv(1)
    client.settimeout(20)
    client.sendall(b"identity\n")
    assert ask_on(client)["pid"] in one.workers
    assert one.stop() == 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("asked", [True, False])
def test_nodelay_is_set_as_asked(server: MakeServer, kind: str, asked: bool) -> None:
    handler, options = KINDS[kind]
    flag = "--nodelay" if asked else "--no-nodelay"
    one = server().start(f"apps:{handler}", flag, workers=1, **options)
    answer = ask(one.address)
    if kind == "asyncio":  # asyncio's transports set it themselves
        assert answer["nodelay"] is True
    else:
        assert answer["nodelay"] is asked


@pytest.mark.parametrize("kind", KINDS)
def test_a_client_that_says_nothing_and_goes(server: MakeServer, kind: str) -> None:
    handler, options = KINDS[kind]
    one = server().start(f"apps:{handler}", workers=1, **options)
    for _ in range(5):
        connect(one.address).close()
    assert ask(one.address)["pid"] in one.workers


@pytest.mark.parametrize("kind", KINDS)
def test_large_answers_arrive_whole(server: MakeServer, tmp_path: Path, kind: str) -> None:
    """More than the socket's buffers hold: what the handler wrote is sent before the connection is closed."""
    (tmp_path / "big.py").write_text(
        "def act(conn, addr):\n"
        "    conn.sendall(b'x' * 20_000_000)\n"
        "async def act_async(reader, writer):\n"
        "    writer.write(b'x' * 20_000_000)\n"
    )
    handler, options = KINDS[kind]
    one = server().start(f"big:{handler}", cwd=tmp_path, workers=1, **options)
    client = connect(one.address)
    assert client.recv(1) == b"x"
    assert len(read_all(client)) == 20_000_000 - 1


def test_a_worker_serves_other_connections_while_one_is_held(server: MakeServer) -> None:
    one = server().start("apps:act_async", workers=1)
    client = connect(one.address, "hold")
    assert read_line(client) == b"held\n"
    assert ask(one.address)["slot"] == 0
    client.sendall(b".")
    assert read_all(client) == b"released\n"
