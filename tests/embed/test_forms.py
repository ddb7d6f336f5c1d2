"""Applications in unusual forms are served, or refused at the start with the flag that says what they are."""

from __future__ import annotations

import contextlib
import http.client
import signal
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from harness import Server, connect, read_all

from .kit import FOLDER
from .test_tls_and_proxy import certificate, secure

MakeServer = Callable[[], Server]


@pytest.mark.parametrize(
    ("app", "options"),
    [
        ("plain", {}),
        ("partial", {"server": "uvicorn"}),
        ("Asgi2", {}),
        ("Asgi2", {"server": "hypercorn"}),
        ("any_arguments", {"as": "asgi"}),
        ("Wsgi", {}),
        ("unnamed", {"server": "waitress"}),
        ("handlers", {}),
        ("handlers", {"bind": ["127.0.0.1:0", "127.0.0.2:0"]}),
        ("threads_and_handlers", {}),
        ("function_of_handlers", {}),
        ("stateful", {}),
        ("HasHandlers", {}),
        ("renamed", {}),
        ("OnlyAddress", {}),
        ("partial_of_servers", {}),
        ("function_of_servers", {}),
        ("Looks", {}),
        ("Looks", {"bind": ["127.0.0.1:0", "127.0.0.2:0"]}),
        ("LooksThreading", {"bind": ["127.0.0.1:0", "127.0.0.2:0"]}),
    ],
)
def test_it_is_served(server: MakeServer, app: str, options: dict[str, Any]) -> None:
    one = server().start(f"forms:{app}", cwd=FOLDER, workers=1, **options)
    host, _, port = one.address.rpartition(":")
    client = http.client.HTTPConnection(host, int(port), timeout=20)
    client.request("GET", "/", headers={"Connection": "close"})
    assert client.getresponse().read() == b"ok"
    client.close()


@pytest.mark.parametrize(
    ("app", "options", "line"),
    [
        ("make", {}, "the application make can be called without arguments, .*: --factory calls it first"),
        ("any_arguments", {}, "the application any_arguments is async .* tells no kind: --as asgi or --as coroutine"),
        ("asgi", {"as": "wsgi"}, "--as wsgi does not fit the application asgi: it is an ASGI application, --as asgi"),
    ],
)
def test_it_is_refused(server: MakeServer, app: str, options: dict[str, Any], line: str) -> None:
    one = server()
    one.expect("ERROR", "^pyfanout: ")
    one.start(f"forms:{app}", cwd=FOLDER, workers=2, wait=False, **options)
    assert one.wait_exit() == 4
    one.wait_log(f"^pyfanout: no worker could start: {line}$")
    assert "Traceback" not in one.log


@pytest.mark.parametrize("threading", ["", "Threading"])
@pytest.mark.parametrize("when", ["First", "Bound", "Last"])
def test_a_server_that_does_tls_with_its_listening_socket(server: MakeServer, when: str, threading: str) -> None:
    """It is refused, and serves no plain text."""
    one = server()
    one.expect("ERROR", "^pyfanout: ")
    one.start(f"forms:Wraps{when}{threading}", cwd=FOLDER, workers=1, wait=False)
    assert one.wait_exit() == 3
    one.wait_log(
        f"^pyfanout: no worker could start: Wraps{when}{threading} wraps its listening socket, which is the master's: "
        "for TLS use certfile and keyfile, or ssl; or wrap each connection in get_request$"
    )
    assert "Traceback" not in one.log


@pytest.mark.parametrize("kind", ["", "Threading", "Forking"])
def test_a_server_that_does_tls_for_each_connection(server: MakeServer, tmp_path: Path, kind: str) -> None:
    """Also while it drains: a client in the middle of a request, and one that keeps its connection."""
    certificate(tmp_path, "localhost")
    options = {"cwd": tmp_path, "environ": {"PYTHONPATH": str(FOLDER)}}
    one = server().start(f"forms:WrapsEach{kind}", workers=1, drain_timeout=30, **options)
    for _ in range(3):
        with secure(one.address, tmp_path) as client:
            client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            assert read_all(client).endswith(b"\r\n\r\nok")
    if kind == "Forking":
        with secure(one.address, tmp_path) as client:
            client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            answer = b""
            while not answer.endswith(b"\r\n\r\nok"):
                answer += client.recv(4096)
            one.send(signal.SIGTERM)
            with contextlib.suppress(ssl.SSLError):  # its TLS says no more when it reads the end
                assert read_all(client) == b""
    else:
        with secure(one.address, tmp_path) as client:
            client.sendall(b"GET /slow HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            one.wait_until(lambda: "app: slow" in one.out, "the request is being answered")
            one.send(signal.SIGTERM)
            assert read_all(client).endswith(b"\r\n\r\nok")
    assert one.wait_exit() == 0


def test_a_wsgi_application_that_passes_for_a_handler(server: MakeServer) -> None:
    """The log says so, the first time."""
    one = server()
    one.expect("ERROR", "^ *Traceback ", "^ *TypeError")
    one.start("forms:unnamed", cwd=FOLDER, workers=1)
    for count in (1, 2):
        client = connect(one.address)
        client.sendall(b"GET / HTTP/1.0\r\n\r\n")
        assert read_all(client) == b""
        lines = one.wait_log("the handler raised an exception", count)
    assert lines[0].endswith(
        "the handler raised an exception; the worker goes on. unnamed(e, s) is taken for a handler(conn, addr), as"
        " nothing tells what it is; if it is a WSGI application: --as wsgi"
    )
    assert lines[1].endswith("the handler raised an exception; the worker goes on")
