"""TLS in the workers, certificates taken up by a reload, the true client behind a proxy: with each kind of server."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import ssl
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from harness import NOBODY, Effort, Server, connect, read_all
from master_script import run

from .kit import FOLDER, SUBJECTS, start

MakeServer = Callable[[], Server]

PLAIN = {"handler": ("tls_handler", {"threads": 2}), "coroutine": ("tls_coroutine", {})}
WITH_TLS = [name for name in SUBJECTS if not name.startswith(("waitress", "twisted", "gevent-handler"))]
"""waitress speaks none; twisted has it in the factory."""

PROXIED = [name for name in SUBJECTS if "uvloop" not in name and name != "uvicorn-fastapi"]
"""uvloop asks the kernel who the client is. uvicorn, left the choice, takes asyncio then."""

V1 = b"PROXY TCP4 192.0.2.7 198.51.100.1 4711 443\r\n"
V2 = b"\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c" + socket.inet_aton("192.0.2.7") * 2 + struct.pack("!HH", 4711, 443)
V2_UNIX = b"\r\n\r\n\x00\r\nQUIT\n\x21\x31\x00\xd8" + b"/run/client.sock".ljust(108, b"\0") * 2
REQUEST = b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


def certificate(folder: Path, name: str) -> None:
    """A new one, signed by itself, in server.pem and server.key."""
    fresh = folder / "fresh"
    fresh.mkdir(exist_ok=True)
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
            *("-days", "1", "-subj", f"/CN={name}", "-addext", f"subjectAltName=DNS:{name}"),
            *("-keyout", str(fresh / "server.key"), "-out", str(fresh / "server.pem")),
        ],
        check=True,
        capture_output=True,
    )
    for file in ("server.key", "server.pem"):
        (fresh / file).rename(folder / file)


@pytest.fixture
def tls(tmp_path: Path) -> dict[str, object]:
    certificate(tmp_path, "localhost")
    return {"certfile": tmp_path / "server.pem", "keyfile": tmp_path / "server.key"}


def secure(
    address: str,
    folder: Path,
    name: str = "localhost",
    before: bytes = b"",
    context: ssl.SSLContext | None = None,
    session: ssl.SSLSession | None = None,
) -> ssl.SSLSocket:
    """`session`: one of the same `context`, to be resumed."""
    context = context or ssl.create_default_context(cafile=str(folder / "server.pem"))
    sock = connect(address)
    try:
        sock.sendall(before)
        return context.wrap_socket(sock, server_hostname=name, session=session)
    except BaseException:
        sock.close()
        raise


def body(answer: bytes) -> dict[str, Any]:
    head, _, rest = answer.partition(b"\r\n\r\n")
    assert b" 200 " in head.splitlines()[0] + b" ", answer
    start, end = rest.index(b"{"), rest.rindex(b"}")
    found = json.loads(rest[start : end + 1])
    assert isinstance(found, dict)
    return found


@pytest.fixture
def launch(request: pytest.FixtureRequest, server: MakeServer) -> Callable[..., Server]:
    """Starts one of them."""
    name = request.param

    def begin(**options: object) -> Server:
        if name in PLAIN:
            app, own = PLAIN[name]
            return server().start(f"apps:{app}", cwd=Path(__file__).parent, **{**own, **options})
        return start(server(), SUBJECTS[name], **options)

    return begin


with_tls = pytest.mark.parametrize("launch", [*PLAIN, *WITH_TLS], indirect=True)
proxied = pytest.mark.parametrize("launch", [*PLAIN, *PROXIED], indirect=True)


# ---- TLS -------------------------------------------------------------------------------------------------------------


@with_tls
def test_it_speaks_tls(launch: Callable[..., Server], tls: dict[str, object], tmp_path: Path) -> None:
    """A session that one worker has begun is resumed by the others, and by new ones after a reload."""
    one = launch(workers=2, **tls)
    contexts = [ssl.create_default_context(cafile=str(tmp_path / "server.pem")) for _ in range(2)]
    contexts[0].maximum_version = ssl.TLSVersion.TLSv1_2
    sessions: dict[ssl.SSLContext, ssl.SSLSession] = {}
    for generation in (1, 2):
        for context in contexts:
            workers = set()
            while len(workers) < 2:
                session = sessions.get(context)
                with secure(one.address, tmp_path, context=context, session=session) as sock:
                    ours = sock.getsockname()
                    sock.sendall(REQUEST)
                    first = sock.recv(1)  # with which the ticket has come
                    assert sock.session_reused == (session is not None)
                    assert sock.session is not None
                    sessions[context] = sock.session
                    answer = body(first + read_all(sock))
                    assert answer["client"] in ([*ours], [ours[0], 0])  # wsgiref has no port
                    if answer["generation"] == generation:
                        workers.add(answer["pid"])
        if generation == 1:
            one.send(signal.SIGHUP)
            one.wait_log("reloaded: 2 workers are new")
    one.expect("no TLS with", "SSL", "ssl", "handshake", "HTTP_REQUEST", "http request", "Traceback")
    with connect(one.address) as plain:  # speaks none, and disturbs nobody
        plain.sendall(REQUEST)
        plain.settimeout(20)
        with pytest.raises((AssertionError, ValueError, OSError, IndexError)):
            body(read_all(plain))
    with secure(one.address, tmp_path) as sock:
        sock.sendall(REQUEST)
        assert body(read_all(sock))


def test_workers_that_join_a_dispatcher_resume_sessions_of_each_other(tls: dict[str, object], tmp_path: Path) -> None:
    run(
        tmp_path,
        """
        import ssl

        def handler(conn, addr):
            conn.sendall(b"%d" % os.getpid())

        with pyfanout.Dispatcher(certfile="server.pem", keyfile="server.key", **options) as dispatcher:
            workers = []
            for _ in range(2):
                workers.append(os.fork())
                if workers[-1] == 0:
                    os._exit(dispatcher.serve(handler))
            context, session, seen = ssl.create_default_context(cafile="server.pem"), None, set()
            host, port = dispatcher.addresses[0].rsplit(":", 1)
            while seen != set(workers):
                sock = socket.create_connection((host, int(port)), 20)
                with context.wrap_socket(sock, server_hostname="localhost", session=session) as client:
                    seen.add(int(client.recv(99)))
                    assert client.session_reused == (session is not None)
                    session = client.session
        for pid in workers:
            os.waitpid(pid, 0)
        """,
    )


@pytest.mark.parametrize("name", ["waitress", "twisted"])
def test_who_speaks_no_tls_says_so(server: MakeServer, tls: dict[str, object], name: str) -> None:
    one = start(server(), SUBJECTS[name], wait=False, **tls)
    one.expect("could not start", "pyfanout: ")
    assert one.wait_exit() != 0
    assert "TLS" in one.log


@pytest.mark.parametrize(("app", "words"), [("flask", "waitress speaks no TLS"), ("twisted", "twisted has TLS in its")])
def test_a_server_without_tls_is_refused_by_a_check_too(tls: dict[str, Path], app: str, words: str) -> None:
    command = [sys.executable, "-m", "pyfanout", "run", f"apps:{app}", "--factory", "--check-config"]
    options = [f"--{name}={path}" for name, path in tls.items()]
    done = subprocess.run([*command, *options], cwd=FOLDER, capture_output=True, text=True, timeout=100, check=False)
    assert (done.returncode, done.stdout) == (4, "")
    assert words in done.stderr.splitlines()[-1]


@with_tls
def test_a_reload_takes_up_a_new_certificate(
    launch: Callable[..., Server], tls: dict[str, object], tmp_path: Path
) -> None:
    one = launch(workers=1, min_uptime=0, **tls)
    with secure(one.address, tmp_path) as sock:
        sock.sendall(REQUEST)
        body(read_all(sock))
    certificate(tmp_path, "renewed.example")
    one.send(signal.SIGHUP)
    one.wait_log("reloaded: 1 worker is new")
    one.wait_replaced()
    with secure(one.address, tmp_path, "renewed.example") as sock:
        sock.sendall(REQUEST)
        body(read_all(sock))


def is_closed_while_it_trickles(address: str) -> bool:
    """A client that sends the beginning of a handshake, at 20 bytes a second."""
    with connect(address) as slow:
        slow.settimeout(0.05)
        for byte in b"\x16\x03\x01\x02\x00" + b"\x01" * 500:
            try:
                slow.sendall(bytes([byte]))
                if slow.recv(99) == b"":
                    return True
            except TimeoutError:
                continue
            except OSError:
                return True
    return False


@with_tls
def test_a_handshake_has_its_time(launch: Callable[..., Server], tls: dict[str, object], tmp_path: Path) -> None:
    """However slowly the client trickles."""
    one = launch(workers=1, handshake_timeout=0.5, **tls)
    one.expect("no TLS with", "could not be set up")
    assert is_closed_while_it_trickles(one.address)
    with secure(one.address, tmp_path) as sock:
        sock.sendall(REQUEST)
        assert body(read_all(sock))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"certfile": "missing.pem"}, "certfile: .*/missing.pem cannot be used: No such file"),
        ({"certfile": __file__}, "certfile: .* cannot be used"),
        ({"certfile": __file__, "keyfile": "gone.key"}, "certfile: [^,]*/gone.key cannot be used: No such file"),
        ({"keyfile": "server.key"}, "keyfile: a key is of no use without its certificate"),
    ],
)
def test_bad_files_are_one_line(server: MakeServer, options: dict[str, object], words: str) -> None:
    one = server().start("apps:tls_handler", cwd=Path(__file__).parent, wait=False, **options)
    assert one.wait_exit() == 1
    (line,) = [line for line in one.log.splitlines() if line.startswith("pyfanout: ")]
    assert re.search(words, line)


# ---- PROXY protocol --------------------------------------------------------------------------------------------------


@proxied
def test_the_true_client_behind_a_proxy(launch: Callable[..., Server]) -> None:
    """And the connection's own address if its client came to the proxy over a UNIX socket."""
    one = launch(workers=2, proxy_protocol=True)
    one.expect("is closed: ")
    for header in (V1, V2, V2_UNIX):
        for chunks in ([header + REQUEST], [header, REQUEST], [header[:9], header[9:] + REQUEST]):
            with connect(one.address) as sock:
                known = sock.getsockname() if header is V2_UNIX else ("192.0.2.7", 4711)
                for chunk in chunks:
                    sock.sendall(chunk)
                    one.wait_idle()
                assert body(read_all(sock))["client"] in ([*known], [known[0], 0])  # wsgiref has no port
    with connect(one.address) as bare:
        bare.sendall(REQUEST)
        assert refused(bare)
    one.wait_log("is closed: no PROXY header")


def refused(sock: socket.socket) -> bool:
    try:
        return read_all(sock) == b""
    except ConnectionResetError:  # what it had sent was not read
        return True


ADMITTED = {
    "handler": ("tls_handler", {}),
    "threads": ("tls_handler", {"threads": 2}),
    "wsgiref": ("wsgi", {"server": "wsgiref"}),
    "http.server": ("OneByOne", {}),
    "threading": ("Threading", {}),
    "forking": ("ForkingServer", {}),
    "cheroot": ("wsgi", {"server": "cheroot"}),
}
"""Servers whose preambles the worker reads."""


@pytest.mark.parametrize("name", list(ADMITTED))
@pytest.mark.parametrize("preamble", ["tls", "proxy"])
def test_slow_clients_keep_nobody_waiting(
    server: MakeServer, tls: dict[str, object], tmp_path: Path, name: str, preamble: str
) -> None:
    """More of them than a forking server has children, and none of them is served yet. Nor do they delay the worker's
    exit, although each has a minute."""
    app, options = ADMITTED[name]
    options = {**options, **(tls if preamble == "tls" else {"proxy_protocol": True})}
    one = server().start(
        f"apps:{app}", cwd=Path(__file__).parent, workers=1, handshake_timeout=60, drain_timeout=60, **options
    )
    one.expect("no TLS with", "is closed: ")
    slow = []
    for number in range(45):
        slow.append(connect(one.address))
        slow[-1].sendall((b"\x16\x03\x01\x02\x00\x01" if preamble == "tls" else V1)[: number % 6])
    for _ in range(3):
        if preamble == "tls":
            with secure(one.address, tmp_path) as sock:
                sock.sendall(REQUEST)
                assert body(read_all(sock))
        else:
            with connect(one.address) as sock:
                sock.sendall(V1 + REQUEST)
                assert body(read_all(sock))["client"][0] == "192.0.2.7"
    slow[0].setblocking(False)
    with pytest.raises(BlockingIOError):  # it is not closed
        slow[0].recv(1)
    assert one.stop() == 0
    for sock in slow:
        sock.close()


@pytest.mark.parametrize("kind", list(PLAIN))
def test_proxy_and_tls(server: MakeServer, tls: dict[str, object], tmp_path: Path, kind: str) -> None:
    app, options = PLAIN[kind]
    one = server().start(f"apps:{app}", cwd=Path(__file__).parent, workers=1, proxy_protocol=True, **options, **tls)
    with secure(one.address, tmp_path, before=V2) as sock:
        sock.sendall(REQUEST)
        assert body(read_all(sock))["client"] == ["192.0.2.7", 4711]


@proxied
def test_a_proxy_that_is_not_trusted(launch: Callable[..., Server]) -> None:
    one = launch(workers=1, proxy_protocol=True, trusted="10.0.0.0/8")
    with connect(one.address) as sock:
        sock.sendall(V1 + REQUEST)
        assert refused(sock)
    one.wait_log("127.0.0.1 is not one of the trusted proxies")


@pytest.mark.parametrize("launch", [*PLAIN, "uvicorn-asyncio"], indirect=True)
def test_not_every_local_user_is_trusted(launch: Callable[..., Server]) -> None:
    """An abstract UNIX socket has no permissions that would decide."""
    one = launch(bind=f"unix:@{os.getpid()}-proxied", workers=1, proxy_protocol=True)
    address = one.address
    with connect(address) as sock:
        sock.sendall(V1 + REQUEST)
        assert body(read_all(sock))["client"] == ["192.0.2.7", 4711]
    if os.getuid() != 0:
        return  # there is no other user
    os.seteuid(NOBODY)  # what connect leaves with the socket
    try:
        stranger = connect(address)
    finally:
        os.seteuid(0)
    with stranger:
        with contextlib.suppress(BrokenPipeError):  # it is closed already
            stranger.sendall(V1 + REQUEST)
        assert refused(stranger)
    one.wait_log(f"user {NOBODY} is not one of the trusted proxies")


def test_uvloop_behind_a_proxy_says_so(server: MakeServer) -> None:
    one = start(server(), SUBJECTS["aiohttp-uvloop"], wait=False, proxy_protocol=True)
    one.expect("could not start", "pyfanout: ")
    assert one.wait_exit() != 0
    assert "uvloop asks the kernel" in one.log


@proxied
def test_a_header_has_its_time(launch: Callable[..., Server]) -> None:
    one = launch(workers=1, proxy_protocol=True, handshake_timeout=0.3)
    with connect(one.address) as sock:
        sock.sendall(V1[:10])
        assert refused(sock)
    one.wait_log("PROXY header within 0.3 s")


@pytest.mark.parametrize("launch", ["coroutine", "uvicorn-asyncio", "gevent", "waitress"], indirect=True)
def test_who_waits_for_a_header_costs_nothing(launch: Callable[..., Server]) -> None:
    """It costs neither polling nor threads, whether none or half of it has come."""
    one = launch(workers=1, proxy_protocol=True, handshake_timeout=60)
    one.expect("is closed: ", "in progress")
    (pid,) = one.workers
    with contextlib.ExitStack() as stack:
        slow = [stack.enter_context(connect(one.address)) for _ in range(60)]
        for sock in slow[::2]:
            sock.sendall(V1[:10])
        with connect(one.address) as sock:
            sock.sendall(V1 + REQUEST)
            body(read_all(sock))
        one.wait_idle()
        before = Effort.of(pid)
        time.sleep(1)
        after = Effort.of(pid)
        assert after.voluntary_switches - before.voluntary_switches < 60  # and 10 for what a server does by itself
        assert len(os.listdir(f"/proc/{pid}/task")) < 20
        for number, sock in enumerate(slow):
            sock.sendall((V1 if number % 2 else V1[10:]) + REQUEST)
        for sock in slow:
            assert body(read_all(sock))["client"] == ["192.0.2.7", 4711]
