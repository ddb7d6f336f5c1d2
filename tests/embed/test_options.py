"""Options of a server for what pyfanout does are refused in one line, and not ignored."""

from __future__ import annotations

import contextlib
import importlib
import json
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from harness import Server, read_all

from pyfanout.errors import ConfigError

from .kit import FOLDER
from .test_tls_and_proxy import REQUEST, body, certificate, secure

MakeServer = Callable[[], Server]

TLS = "certfile and keyfile, or ssl with a context"
REFUSED = [
    ("aiohttp", {"host": "127.0.0.1", "port": 80}, "host, port", "bind"),
    ("aiohttp", {"path": "/run/app.sock"}, "path", "bind"),
    ("aiohttp", {"ssl_context": None}, "ssl_context", TLS),
    ("cheroot", {"bind_addr": ("127.0.0.1", 80)}, "bind_addr", "bind"),
    ("cheroot", {"reuse_port": True}, "reuse_port", "bind"),
    ("cheroot", {"ssl_adapter": None}, "ssl_adapter", TLS),
    ("gevent", {"certfile": "a", "keyfile": "b"}, "certfile, keyfile", TLS),
    ("gevent", {"ssl_context": None}, "ssl_context", TLS),
    ("gevent", {"backlog": 100}, "backlog", "backlog"),
    ("hypercorn", {"bind": "127.0.0.1:80", "loop": "uvloop"}, "bind", "bind"),
    ("hypercorn", {"ca_certs": "a", "verify_mode": ssl.CERT_REQUIRED}, "ca_certs, verify_mode", TLS),
    ("hypercorn", {"ciphers": "a"}, "ciphers", TLS),
    ("hypercorn", {"umask": 0o77}, "umask", "unix_mode"),
    ("hypercorn", {"user": 0, "group": 0}, "user, group", "unix_owner"),
    ("hypercorn", {"workers": 2}, "workers", "workers"),
    ("tornado", {"xheaders": True, "ssl_options": {"certfile": "a"}}, "ssl_options", TLS),
    ("uvicorn", {"host": "127.0.0.1", "port": 80}, "host, port", "bind"),
    ("uvicorn", {"uds": "/run/app.sock"}, "uds", "bind"),
    ("uvicorn", {"fd": 3}, "fd", "bind"),
    ("waitress", {"listen": "127.0.0.1:80"}, "listen", "bind"),
    ("waitress", {"unix_socket": "/run/app.sock"}, "unix_socket", "bind"),
    ("waitress", {"unix_socket_perms": "600"}, "unix_socket_perms", "unix_mode"),
]


@pytest.mark.parametrize(("name", "options", "theirs", "ours"), REFUSED)
def test_what_pyfanout_does(name: str, options: dict[str, Any], theirs: str, ours: str) -> None:
    runner = importlib.import_module(f"pyfanout.embed.{name}").Runner(None, **options)
    with pytest.raises(ConfigError) as error:
        runner.check()
    assert str(error.value) == f"{theirs}: no option of {name}.Runner; use pyfanout's {ours}"


def launch(one: Server, name: str, options: dict[str, Any], **config: object) -> Server:
    environ = {"SERVER": name, "OPTIONS": json.dumps(options)}
    return one.start("apps:with_options", cwd=FOLDER, workers=1, factory=True, environ=environ, **config)


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    certificate(tmp_path, "localhost")
    return str(tmp_path / "server.pem"), str(tmp_path / "server.key")


@pytest.mark.parametrize(
    ("name", "options", "line"),
    [
        ("waitress", {"port": 80}, "port: no option of waitress.Runner; use pyfanout's bind"),
        ("hypercorn", {"lifespan": 1, "certfil": "a"}, "lifespan: hypercorn's Config has no such attribute"),
        (
            "uvicorn",
            {"lifespan": "on", "ssl_cert_reqs": 2},
            "ssl_cert_reqs: pyfanout does TLS already; give its ssl a context instead",
        ),
    ],
)
def test_it_is_said_in_one_line(
    server: MakeServer, files: tuple[str, str], name: str, options: dict[str, Any], line: str
) -> None:
    one = server()
    one.expect("ERROR", "^pyfanout: ")
    tls = {"certfile": files[0], "keyfile": files[1]} if name == "uvicorn" else {}
    launch(one, name, options, wait=False, **tls)
    assert one.wait_exit() in (3, 4)
    one.wait_log(f"^pyfanout: no worker could start: {line}$")
    assert "Traceback" not in one.log


def test_tls_of_uvicorns_own(server: MakeServer, files: tuple[str, str], tmp_path: Path) -> None:
    """Also the check of its clients' certificates."""
    certfile, keyfile = files
    own = {"ssl_certfile": certfile, "ssl_keyfile": keyfile, "ssl_ca_certs": certfile, "ssl_cert_reqs": 2}
    one = launch(server(), "uvicorn", {"lifespan": "on", **own})
    one.expect("a connection could not be set up")
    context = ssl.create_default_context(cafile=certfile)
    with secure(one.address, tmp_path, context=context) as stranger, contextlib.suppress(OSError):
        stranger.sendall(REQUEST)
        assert read_all(stranger) == b""
    context.load_cert_chain(certfile, keyfile)
    with secure(one.address, tmp_path, context=context) as known:
        known.sendall(REQUEST)
        assert body(read_all(known))["slot"] == 0
