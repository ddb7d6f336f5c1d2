"""Applications that gevent has patched, under servers other than gevent: each serves and stops as without pyfanout, or
is refused in one line that says what to use."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace

import pytest
from harness import Server, connect, read_all
from master_script import run

from pyfanout.errors import LoadError
from pyfanout.greenlets import THREADS, patch_of, refuse

from .kit import FACTORY, SUBJECTS, Subject, start
from .test_gunicorn import Gunicorn

MakeServer = Callable[[], Server]

REQUEST = b"GET / HTTP/1.0\r\nHost: localhost\r\n\r\n"
SOON_S = 60.0
"""For many servers that start at once."""
ALL = {"PATCH": "{}"}
NO_THREADS = {"PATCH": json.dumps({"thread": False})}
HANDLER = Subject("apps:tls_handler", keeps_alive=False)
GEVENTS = "use --server gevent"
REFUSED = {
    "a blocking handler": (HANDLER, GEVENTS),
    "waitress": (SUBJECTS["waitress"], GEVENTS),
    "cheroot": (SUBJECTS["cheroot"], GEVENTS),
    "wsgiref": (SUBJECTS["wsgiref"], GEVENTS),
    "socketserver": (SUBJECTS["http.server-threading"], r"call monkey.patch_all(thread=False), or"),
    "trio": (SUBJECTS["trio"], "do not patch its process"),
    "anyio": (SUBJECTS["anyio"], "do not patch its process"),
}
SERVED = {
    "coroutine": Subject("apps:tls_coroutine", keeps_alive=False),
    **{name: SUBJECTS[name] for name in ("uvicorn", "hypercorn", "aiohttp", "tornado", "twisted", "gevent")},
    "gevent-runner": SUBJECTS["gevent-handler"],
    "gevent-handler": Subject("apps:tls_handler", {"server": "gevent"}, keeps_alive=False),
}
NEEDS_NO_QUEUE = ("waitress", "wsgiref", "http.server-threading", "socketserver-forking")
WITHOUT_THREADS = {"handler": HANDLER, **{name: SUBJECTS[name] for name in NEEDS_NO_QUEUE}}


def start_all(server: MakeServer, subjects: Mapping[str, Subject], environ: dict[str, str]) -> dict[str, Server]:
    ones = {name: server() for name in subjects}
    for name, one in ones.items():
        one.expect("MonkeyPatchWarning", r"monkey.patch_all", "could not start: gevent has patched")
        start(one, subjects[name], wait=False, workers=1, threads=3, environ=environ)
    return ones


def assert_they_serve_and_stop(ones: dict[str, Server]) -> None:
    for name, one in ones.items():
        one.wait_ready(SOON_S)
        for _ in range(2):
            with connect(one.address) as client:
                client.sendall(REQUEST)
                assert b" 200 " in read_all(client), name
    for name, one in ones.items():
        assert one.stop() == 0, name


def test_servers_with_threads_are_refused(server: MakeServer) -> None:
    ones = start_all(server, {name: subject for name, (subject, _) in REFUSED.items()}, ALL)
    for name, one in ones.items():
        assert one.wait_exit(SOON_S) == 4, (name, one.log)
        (line,) = one.wait_log("^pyfanout: no worker could start: gevent has patched ")
        assert f" {name} " in line
        assert f": {REFUSED[name][1]}" in line


def test_others_serve(server: MakeServer) -> None:
    assert_they_serve_and_stop(start_all(server, SERVED, ALL))


def test_threads_that_are_not_patched(server: MakeServer) -> None:
    """`monkey.patch_all(thread=False)`: servers serve, except one that has a queue, which is patched all the same."""
    ones = start_all(server, {**WITHOUT_THREADS, "cheroot": SUBJECTS["cheroot"]}, NO_THREADS)
    refused = ones.pop("cheroot")
    assert refused.wait_exit(SOON_S) == 4
    assert "gevent has patched queue in the worker, which cheroot needs: use --server gevent" in refused.log
    assert_they_serve_and_stop(ones)


def test_a_start_hook_that_patches(tmp_path: Path) -> None:
    """That is found after the hook."""
    for app in ("handler", "wsgi"):
        said = run(
            tmp_path,
            f"""
            def handler(conn, addr): ...
            def wsgi(environ, start_response): ...
            def patch(worker):
                from gevent import monkey
                monkey.patch_all()
            pyfanout.serve({app}, on_worker_start=patch, workers=1, **options)
            """,
            code=3,
        )
        assert "gevent has patched threading in the worker" in said
        assert said.splitlines()[-1].endswith(GEVENTS)


NOT_PATCHED = {
    "function": "pyfanout.serve(app.handler, **options)",
    "master": "pyfanout.Master(app.handler, **options)",
    "factory": "pyfanout.serve(lambda: app.handler, factory=True, **options)",
    "runner": "from pyfanout.embed import gevent; pyfanout.serve(gevent.Runner(app.handler, handler=True), **options)",
    "imported": "pyfanout.serve('app:handler', **options)",
    "preload": "pyfanout.serve('other:handler', preload=True, **options)",
}


@pytest.mark.parametrize("line", NOT_PATCHED.values(), ids=NOT_PATCHED.keys())
def test_what_gevent_would_patch_too_late_is_refused(tmp_path: Path, line: str) -> None:
    """Its `from time import sleep` is what it was, and stops the hub: its clients waited in a row."""
    said = run(
        tmp_path,
        f"""
        import app
        release("from time import sleep\\n" + APP)
        options.update(server="gevent", workers=1, log_level="info")
        {line}
        """,
        code=1,
    )
    assert "listening" not in said
    assert "gevent patches each worker before that imports the application" in said.splitlines()[-1]


def test_what_gevent_patches_in_time_is_served(tmp_path: Path) -> None:
    said = run(
        tmp_path,
        """
        release("from time import sleep\\n" + APP.replace("os.getpid()", "sleep.__module__.startswith('gevent')"))
        with pyfanout.Master("app:handler", server="gevent", workers=1, **options) as master:
            print(ask(master))
        """,
    )
    assert said.splitlines()[-1] == "1"


def test_what_gevent_does_not_serve_is_told_so_first(tmp_path: Path) -> None:
    said = run(
        tmp_path,
        """
        async def asgi(scope, receive, send): ...
        pyfanout.serve(asgi, server="gevent", workers=1, **options)
        """,
        code=4,
    )
    assert "server: gevent does not serve asgi applications; uvicorn and hypercorn do" in said.splitlines()[-1]


def test_gevent_and_preload(server: MakeServer) -> None:
    one = server()
    one.expect("^pyfanout: ")
    start(one, SUBJECTS["gevent"], wait=False, preload=True)
    assert one.wait_exit(SOON_S) == 1
    assert one.log.splitlines() == [
        "pyfanout: preload: --server gevent patches each worker before that imports the application; leave preload out"
    ]


def test_uvloop_does_not_run_greenlets(server: MakeServer) -> None:
    one = server()
    one.expect("MonkeyPatchWarning", "monkey.patch_all", "ERROR worker=0 .* could not start")
    one.start("apps:hypercorn_on_uvloop", workers=1, wait=False, environ=ALL, cwd=Path(__file__).parent, **FACTORY)
    assert one.wait_exit(SOON_S) == 3
    assert "loop: gevent has patched this process, and no greenlet runs while uvloop waits; use asyncio" in one.log


def test_eventlet_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its name for the module of threads is another one."""
    patched = {"thread", "socket"}
    monkeypatch.setitem(sys.modules, "eventlet.patcher", SimpleNamespace(is_monkey_patched=patched.__contains__))
    assert patch_of("threading") == ("eventlet", "threading")
    assert patch_of("select") is None
    with pytest.raises(LoadError, match=r"^eventlet has patched threading .*, which waitress needs: remove the monkey"):
        refuse("waitress", THREADS, GEVENTS)


def test_under_gunicorn(server: Callable[..., Server]) -> None:
    """Its arbiter ends with the code of an application that cannot be loaded."""
    ones = {kind: server(Gunicorn) for kind in ("Sync", "GThread", "ASGI")}
    for kind, one in ones.items():
        one.expect("MonkeyPatchWarning", "monkey.patch_all", r"\[ERROR\]", "ResourceWarning")
        one.serve(kind, workers=1, **ALL)
    served = ones.pop("ASGI")
    for kind, one in ones.items():
        assert one.wait_exit(SOON_S) == 4, one.log
        line = f"gevent has patched threading in the worker, which {kind} needs: use pyfanout run --server gevent"
        assert line in one.log + one.out, one.log
    served.ready(1)
    with connect(served.address) as client:
        client.sendall(REQUEST)
        assert b" 200 " in read_all(client)
    assert served.stop() == 0
