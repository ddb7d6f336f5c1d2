"""Applications that want asyncio's loop when they are imported, or made, run on the loop that they have found there."""

from __future__ import annotations

import http.client
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from harness import Server

MakeServer = Callable[[], Server]

APPS = {
    "common": """
        import asyncio
        known = []
        async def begin(what):
            await asyncio.sleep(0)
            known.append(what)
        async def app(scope, receive, send):
            assert scope["type"] == "http"
            body = str(known).encode()
            headers = [(b"content-length", b"%d" % len(body))]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": body})
    """,
    "running": """
        from common import *
        loop = asyncio.get_running_loop()
        task = asyncio.create_task(begin("task"))
    """,
    "current": """
        from common import *
        task = asyncio.get_event_loop().create_task(begin("task"))
    """,
    "runs": """
        from common import *
        asyncio.run(begin("run"))
    """,
    "made": """
        from common import *
        async def make():
            global task
            await begin("made")
            task = asyncio.create_task(begin("task"))
            return app
    """,
    "stream": """
        from common import *
        task = asyncio.create_task(begin("task"))
        async def handler(reader, writer):
            await reader.readline()
            writer.write(b"HTTP/1.0 200 OK\\r\\n\\r\\n" + str(known).encode())
    """,
    "web": """
        from aiohttp import web
        from common import *
        async def make():
            await begin("made")
            async def root(request):
                return web.Response(text=str(known))
            app = web.Application()
            app.add_routes([web.get("/", root)])
            return app
    """,
    "timer": """
        import asyncio
        from tornado import ioloop, web
        ticks = []
        timer = ioloop.PeriodicCallback(lambda: ticks.append(1), 5)
        timer.start()
        class Root(web.RequestHandler):
            async def get(self):
                while not ticks:
                    await asyncio.sleep(0.01)
                self.write("[tick]")
        app = web.Application([("/", Root)])
    """,
    "wsgi": """
        from common import *
        loop = asyncio.get_event_loop()
        def app(environ, start_response):
            loop.run_until_complete(begin("later"))
            start_response("200 OK", [])
            return [str(known).encode()]
    """,
    "impossible": """
        from common import *
        task = asyncio.create_task(begin("task"))
        def app(environ, start_response): ...
    """,
    "waits": """
        import os
        from common import *
        async def make():
            os.write(2, b"app: waiting\\n")
            await asyncio.sleep(1000)
    """,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, text in APPS.items():
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(text))
    return tmp_path


@pytest.mark.parametrize(
    ("app", "options", "answer"),
    [
        ("running:app", {}, "['task']"),
        ("running:app", {"as": "asgi"}, "['task']"),
        ("running:app", {"server": "hypercorn"}, "['task']"),
        ("current:app", {}, "['task']"),
        ("runs:app", {"as": "asgi"}, "['run']"),
        ("made:make", {"factory": True}, "['made', 'task']"),
        ("stream:handler", {}, "['task']"),
        ("web:make", {"factory": True}, "['made']"),
        ("timer:app", {}, "[tick]"),
        ("wsgi:app", {"server": "wsgiref"}, "['later']"),
    ],
)
def test_it_runs_on_the_loop_that_it_has_found(
    server: MakeServer, folder: Path, app: str, options: dict[str, Any], answer: str
) -> None:
    one = server().start(app, cwd=folder, workers=1, wait=False, boot_timeout=60, **options)
    one.wait_ready(60)  # aiohttp may take 10 s to import on a busy machine
    host, _, port = one.address.rpartition(":")
    client = http.client.HTTPConnection(host, int(port), timeout=20)
    client.request("GET", "/", headers={"Connection": "close"})
    assert client.getresponse().read().decode() == answer
    client.close()
    again = "is loaded again" in one.log
    assert again == ((app, options) in REPEATED)


REPEATED: list[tuple[str, dict[str, Any]]] = [
    ("running:app", {}),
    ("running:app", {"server": "hypercorn"}),
    ("runs:app", {"as": "asgi"}),
    ("stream:handler", {}),
]


@pytest.mark.parametrize(
    ("app", "options", "line"),
    [
        ("impossible:app", {}, "no worker could start: the application needs a running loop when it is loaded"),
        ("made:make", {"factory": True, "as": "wsgi"}, "no worker could start: the factory is async"),
        ("running:app", {"preload": True}, ".*RuntimeError: no running event loop; --preload loads it in the master"),
        ("made:make", {"factory": True, "preload": True}, "the factory is async, .*; --preload loads it in the master"),
    ],
)
def test_it_is_refused_without_a_loop(
    server: MakeServer, folder: Path, app: str, options: dict[str, Any], line: str
) -> None:
    one = server()
    one.expect("ERROR", "^ *Traceback ", "^pyfanout: ")
    one.start(app, cwd=folder, workers=1, wait=False, boot_timeout=60, **options)
    assert one.wait_exit(60) == 4
    one.wait_log(f"^pyfanout: {line}")


@pytest.mark.parametrize("app", ["running:app", "web:make"])
def test_a_check_loads_it_as_a_worker_does(folder: Path, app: str) -> None:
    command = [sys.executable, "-W", "default", "-m", "pyfanout", "run", app, "--check-config"]
    command += ["--factory"] if app == "web:make" else []
    said = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    assert (said.returncode, said.stderr) == (0, "")
    assert "\nserved as = " + ("aiohttp by aiohttp" if app == "web:make" else "asgi by uvicorn") in said.stdout


@pytest.mark.parametrize("options", [{}, {"as": "asgi"}])
def test_a_stop_is_heard_while_a_factory_waits(server: MakeServer, folder: Path, options: dict[str, Any]) -> None:
    """On asyncio's loop, and on uvloop's."""
    one = server().start("waits:make", cwd=folder, workers=1, wait=False, factory=True, **options)
    one.wait_log("app: waiting")
    one.send(signal.SIGTERM)
    assert one.wait_exit() == 0
    assert "SIGKILL" not in one.log


def test_a_factory_that_waits_too_long_is_killed(server: MakeServer, folder: Path) -> None:
    one = server()
    one.expect("ERROR", "^ *Fatal Python error", "^pyfanout: ")
    one.start("waits:make", cwd=folder, workers=1, wait=False, factory=True, boot_timeout=0.5)
    assert one.wait_exit() == 3
    one.wait_log("is not ready after 0.5 s .boot_timeout.; it is killed")
