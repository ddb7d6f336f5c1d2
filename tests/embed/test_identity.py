"""What each server tells its application of itself and of the client, when it serves several addresses at once: the
same, key by key, as the plain server that listens on the one address alone."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import pytest
from harness import Server, connect, read_all, session_of, wait_until

from .identity import KINDS, PLAIN
from .kit import FOLDER, SUBJECTS, Subject
from .test_gunicorn import Gunicorn
from .test_tls_and_proxy import V1, body, secure, tls

__all__ = ["tls"]

MakeServer = Callable[..., Server]

IDENTITIES = {
    "handler": Subject("identity:on_socket"),
    "coroutine": Subject("identity:on_streams"),
    **{name: Subject(each.app.replace("apps:", "identity:"), each.options) for name, each in SUBJECTS.items()},
}
GUNICORN = {"gunicorn-sync": "Sync", "gunicorn-gthread": "GThread", "gunicorn-asgi": "ASGI"}

BINDS = {"tcp": "127.0.0.1:0", "second": "127.0.0.1:0", "any": "0.0.0.0:0", "tcp6": "[::1]:0"}
"""And a socket file, and an abstract socket."""

ON_UNIX = ("unix", "abstract")
NAMED = ("http.server", "http.server-handler", "http.server-threading", "wsgiref")
"""In their plain form these take a UNIX path for a host and a port, and fail on an abstract name or at each request."""

NO_TLS = ("waitress", "twisted")
SECURED = ("coroutine", "socketserver", "http.server-threading", "wsgiref", "waitress", "cheroot", "gevent")
SECURED += ("uvicorn-asyncio", "hypercorn", "aiohttp", "tornado", "anyio", "twisted")
OF_CLIENT = {"REMOTE_ADDR", "REMOTE_PORT", "REMOTE_HOST", "client", "client_address", "address", "address_string"}
OF_CLIENT |= {"peername", "remote", "remote_ip", "address_family", "context", "peer", "hostname", "remote_address"}
OF_CLIENT |= {"remote_port"}
"""What is different if the client is."""

READY_S = 40.0
"""For a server whose imports take long, beside all the plain ones."""

NOT_COMPARED = {"wsgi.multiprocess", "wsgi.multithread"}
"""The plain servers' values are constants; ours say what is so."""


class Plain:
    """The plain server, with an address of each kind."""

    def __init__(self, name: str, folder: Path) -> None:
        command = [sys.executable, str(FOLDER / "identity.py"), name, str(folder)]
        self._folder = folder
        self._log = (folder / "log").open("wb")
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            start_new_session=True,
        )

    def __enter__(self) -> Plain:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()  # closes its input
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        wait_until(lambda: not session_of(self._process.pid), "the plain servers are gone")
        self._log.close()

    def wait(self) -> None:
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == b"\n", self.log

    @property
    def log(self) -> str:
        return (self._folder / "log").read_text()

    def address(self, kind: str) -> str:
        """As the harness writes it."""
        said = (self._folder / kind).read_text()
        if not said:
            return ""
        address = json.loads(said)
        if isinstance(address, str):
            return "unix:" + ("@" + address[1:] if address.startswith("\0") else address)
        return f"[{address[0]}]:{address[1]}" if ":" in address[0] else f"{address[0]}:{address[1]}"


@pytest.fixture
def plain(tmp_path: Path) -> Iterator[Callable[[str], Plain]]:
    with contextlib.ExitStack() as stack:

        def make(name: str) -> Plain:
            folder = tmp_path / "p"
            folder.mkdir()
            return stack.enter_context(Plain(name, folder))

        yield make


def ask(address: str, folder: Path | None = None, before: bytes = b"") -> dict[str, Any]:
    """What the server says to a client of this address. What no two servers have in common is replaced: this address's
    port or name, and the client's port. `folder`: over TLS, with the certificate there."""
    with connect(address) if folder is None else secure(address, folder, before=before) as client:
        ours = client.getsockname()
        client.sendall(b"" if folder else before)
        client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        facts = body(read_all(client))
    name = address.rpartition(":")[2].removeprefix("@")
    names = {name: "PORT", str(ours[1]): "CLIENT"} if isinstance(ours, tuple) else {name: "NAME"}

    def of(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: of(each) for key, each in value.items() if key not in NOT_COMPARED}
        if isinstance(value, list):
            return [of(each) for each in value]
        if isinstance(value, int) and not isinstance(value, bool):
            return names.get(str(value), value)
        for name, put in names.items() if isinstance(value, str) else ():
            value = re.sub(rf"\b{name}\b", put, value) if name.isdigit() else value.replace(name, put)
        return value

    return dict(of(facts))


def binds(folder: Path) -> dict[str, str]:
    folder.mkdir(exist_ok=True)
    return {**BINDS, "unix": f"unix:{folder}/s", "abstract": f"unix:@pyfanout-{os.getpid()}-{folder.name}"}


def launch(
    server: MakeServer, name: str, folder: Path, kinds: tuple[str, ...] = (*BINDS, *ON_UNIX), **options: Any
) -> dict[str, str]:
    """Its addresses, by their kind."""
    subject, known = IDENTITIES[name], binds(folder)
    chosen = [known[kind] for kind in kinds]
    options = {**subject.options, **options}
    one = server().start(subject.app, cwd=FOLDER, bind=chosen, workers=1, wait=False, **options)
    one.wait_ready(READY_S)
    return dict(zip(kinds, one.addresses, strict=True))


def launch_gunicorn(server: MakeServer, name: str, folder: Path) -> dict[str, str]:
    """Not on an abstract socket: gunicorn itself then fails when it stops, because it removes that as a file."""
    kinds = binds(folder)
    del kinds["abstract"]
    (folder / "conf.py").write_text(f"bind = {list(kinds.values())!r}")
    one = server(Gunicorn)
    threads = ("--threads", "2") if name == "gunicorn-gthread" else ()
    app = "identity:asgi" if name == "gunicorn-asgi" else "identity:wsgi"
    one.serve(GUNICORN[name], f"--config={folder}/conf.py", *threads, app=app, workers=1).ready(1)
    (line,) = one.wait_log("Listening at: ")
    said = line.partition("Listening at: ")[2].rpartition(" (")[0].replace("http://", "")
    return dict(zip(kinds, said.split(","), strict=True))


@pytest.mark.parametrize("name", list(PLAIN))
def test_each_address_is_served_as_by_a_server_of_its_own(
    server: MakeServer, plain: Callable[[str], Plain], tmp_path: Path, name: str
) -> None:
    addresses = (
        launch_gunicorn(server, name, tmp_path / "s") if name in GUNICORN else launch(server, name, tmp_path / "s")
    )
    found = {kind: ask(address) for kind, address in addresses.items()}
    theirs = plain(name)
    theirs.wait()
    able = [kind for kind in KINDS if kind in found and not (name in NAMED and kind in ON_UNIX)]
    wanted = {kind: ask(theirs.address(kind)) for kind in able}
    wanted["second"] = wanted["tcp"]
    for kind, facts in wanted.items():
        assert found[kind] == facts, kind


@pytest.mark.parametrize("name", NAMED)
@pytest.mark.parametrize("kinds", [("tcp", "unix", "abstract"), ("unix",), ("abstract",)], ids=",".join)
def test_servers_that_know_only_hosts_answer_on_unix(
    server: MakeServer, tmp_path: Path, name: str, kinds: tuple[str, ...]
) -> None:
    addresses = launch(server, name, tmp_path / "s", kinds)
    for kind in set(kinds).intersection(ON_UNIX):
        facts = ask(addresses[kind])
        if name == "wsgiref":
            assert (facts["SERVER_NAME"], facts["SERVER_PORT"], facts["REMOTE_ADDR"]) == ("localhost", "80", "")
            continue
        assert (facts["server_name"], facts["server_port"]) == (socket.getfqdn("localhost"), 80)
        assert facts["client_address"] == ["", 0]
        assert facts["server_address"] == facts["listener"] == facts["socket"]["sockname"]
        assert "NAME" in facts["server_address"]


@pytest.mark.parametrize("name", SECURED)
def test_tls_changes_the_scheme_and_a_proxy_the_client(
    server: MakeServer, tls: dict[str, object], tmp_path: Path, name: str
) -> None:
    folder = None if name in NO_TLS else tmp_path
    before = launch(server, name, tmp_path / "s")
    after = launch(server, name, tmp_path / "t", proxy_protocol=True, **({} if folder is None else tls))
    for kind in before:
        wanted, found = dict(flat(ask(before[kind]))), dict(flat(ask(after[kind], folder, V1)))
        for key, value in wanted.items():
            if key.rpartition(".")[2] not in OF_CLIENT:
                assert found[key] == (with_https(key, value) if folder else value), (kind, key)
        client = json.dumps([value for key, value in found.items() if key.rpartition(".")[2] in OF_CLIENT])
        assert "192.0.2.7" in client, kind
        assert not re.search("CLIENT|NAME|127.0.0.1|::1", client), kind


def flat(facts: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in facts.items():
        if isinstance(value, dict):
            yield from flat(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value


def with_https(key: str, value: Any) -> Any:
    match key:
        case "wsgi.url_scheme" | "scheme" | "protocol":
            return "https"
        case "sslcontext":
            return "SSLContext"
        case "secure":
            return True
        case "url":
            return value.replace("http:", "https:")
        case "class" | "abstract":  # of an anyio stream
            return ANY
        case "server_port" | "SERVER_PORT" if value in (80, "80"):
            return type(value)(443)
    return value
