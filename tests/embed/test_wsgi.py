"""What a WSGI application is told of its server."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from harness import Server

from .kit import ask

MakeServer = Callable[[], Server]

APPS = """
import json, os, socketserver
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

def app(environ, start_response):
    told = [environ["wsgi.multiprocess"], environ["wsgi.multithread"]]
    body = json.dumps({"told": told, "pid": os.getpid()}).encode()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]

class Threads(socketserver.ThreadingMixIn, WSGIServer):
    RequestHandlerClass = WSGIRequestHandler
    application = staticmethod(app)

class Forks(socketserver.ForkingMixIn, WSGIServer):
    RequestHandlerClass = WSGIRequestHandler
    application = staticmethod(app)

def gevent_of_one():
    from pyfanout.embed import gevent
    return gevent.Runner(app, spawn=1)

def waitress_of_one():
    from pyfanout.embed import waitress
    return waitress.Runner(app, threads=1)

def cheroot_of_one():
    from pyfanout.embed import cheroot
    return cheroot.Runner(app, numthreads=1)

def twisted():
    from twisted.internet import reactor
    from twisted.web import server, wsgi
    from pyfanout.embed import twisted
    site = server.Site(wsgi.WSGIResource(reactor, reactor.getThreadPool(), app))
    site.noisy = False
    return twisted.Runner(site)
"""

FACTORY = {"factory": True}
SUBJECTS: dict[str, tuple[str, dict[str, object], bool, bool]] = {
    # its options; with one worker: multiprocess, multithread
    "waitress": ("app", {}, False, True),
    "waitress-1": ("waitress_of_one", FACTORY, False, False),
    "cheroot": ("app", {"server": "cheroot"}, False, True),
    "cheroot-1": ("cheroot_of_one", FACTORY, False, False),
    "gevent": ("app", {"server": "gevent"}, False, True),
    "gevent-1": ("gevent_of_one", FACTORY, False, False),
    "wsgiref": ("app", {"server": "wsgiref"}, False, False),
    "wsgiref-2": ("app", {"server": "wsgiref", "threads": 2}, False, True),
    "wsgiref-threading": ("Threads", {}, False, True),
    "wsgiref-forking": ("Forks", {"threads": 2}, True, False),
    "twisted": ("twisted", FACTORY, False, True),
}


@pytest.mark.parametrize("name", SUBJECTS)
def test_it_knows_of_others(server: MakeServer, name: str, tmp_path: Path) -> None:
    """Of the other workers as soon as there are to be any: it may be one that was alone when it was forked."""
    (tmp_path / "app.py").write_text(APPS)
    app, options, forks, multithread = SUBJECTS[name]
    one = server().start(f"app:{app}", cwd=tmp_path, workers=1, **options)
    (first,) = one.workers
    assert ask(one.address)["told"] == [forks, multithread]
    one.send(signal.SIGTTIN)
    one.wait_ready_workers(2)
    told: dict[int, Any] = {}

    def both_have_told() -> bool:
        answer = ask(one.address)
        told[answer["pid"]] = answer["told"]
        return len(told) >= 2

    one.wait_until(both_have_told, "both answer")
    assert set(map(tuple, told.values())) == {(True, multithread)}
    one.send(signal.SIGTTOU)
    one.wait_workers(1)
    assert one.workers == [first]
    assert ask(one.address)["told"] == [forks, multithread]


def test_a_worker_of_a_dispatcher_may_have_siblings(tmp_path: Path) -> None:
    from master_script import run

    run(
        tmp_path,
        APPS
        + """
import http.client

with pyfanout.Dispatcher(**options) as dispatcher:
    if (pid := os.fork()) == 0:
        os._exit(dispatcher.serve(app))
    client = http.client.HTTPConnection(dispatcher.addresses[0], timeout=20)
    client.request("GET", "/")
    assert json.loads(client.getresponse().read())["told"] == [True, True]
    client.close()
assert os.waitpid(pid, 0)[1] == 0
""",
    )
