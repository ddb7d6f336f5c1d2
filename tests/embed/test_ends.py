"""How a connection ends: reported when it does, whatever the application keeps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from harness import Server, read_all

from .kit import FOLDER, ask
from .test_servers import connections, pids
from .test_tls_and_proxy import REQUEST, secure, tls

__all__ = ["tls"]

MakeServer = Callable[[], Server]

KEEPING: dict[str, tuple[str, dict[str, object]]] = {
    "waitress": ("apps:keeping_wsgi", {}),
    "cheroot": ("apps:keeping_wsgi", {"server": "cheroot"}),
    "gevent": ("apps:keeping_wsgi", {"server": "gevent"}),
    "wsgiref": ("apps:keeping_wsgi", {"server": "wsgiref"}),
    "gevent-handler": ("apps:keeping_gevent_handler", {"factory": True}),
    "socketserver": ("apps:KeepingFile", {}),
    "socketserver-threading": ("apps:KeepingThreads", {}),
    "socketserver-forking": ("apps:KeepingForks", {}),
}
"""Applications that keep a file of their connection for ever."""


@pytest.mark.parametrize("name", list(KEEPING))
@pytest.mark.parametrize("safe", [False, True], ids=["plain", "tls"])
def test_what_is_kept_keeps_no_connection(
    server: MakeServer, tls: dict[str, object], tmp_path: Path, name: str, safe: bool
) -> None:
    """The worker is not full after `max_connections` of them, no client waits for the end, and the worker exits."""
    app, options = KEEPING[name]
    if safe and name in ("waitress", "gevent-handler"):
        pytest.skip("it speaks no TLS here")
    options = {**options, **(tls if safe else {})}
    one = server().start(app, cwd=FOLDER, workers=1, max_connections=2, drain_timeout=60, **options)
    (pid,) = pids(one)
    for _ in range(5):
        if safe:
            with secure(one.address, tmp_path) as sock:
                sock.sendall(REQUEST)
                assert b" 200 " in read_all(sock)
        else:
            assert ask(one.address)["pid"] == pid
    one.wait_until(lambda: connections(one, pid) == 0, "all are closed")
    assert one.stop() == 0
    assert "in progress" not in one.log
