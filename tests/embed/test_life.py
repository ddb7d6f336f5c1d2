"""What is particular to a server: lifespan, websockets, forks, missing pieces, and how wrong applications are told."""

from __future__ import annotations

import select
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import Server, close_all, connect, fds_of, read_all, wait_until
from master_script import run
from websockets.sync.client import connect as open_websocket

from pyfanout.worker.idle import is_silent

from .kit import FOLDER, POOLED, SUBJECTS, Client, Subject, ask, fill_two_of_three, start

MakeServer = Callable[[], Server]


# ---- told apart, or told ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("app", "options", "words"),
    [
        ("apps:wsgi", {"server": "uvicorn"}, "server: uvicorn does not serve wsgi applications; waitress and .* do"),
        ("apps:wsgi", {"as": "wsgi", "server": "hypercorn"}, "server: hypercorn does not serve wsgi applications"),
        (
            "apps:asgi",
            {"as": "wsgi", "server": "hypercorn"},
            "--as wsgi does not fit the application asgi: .* --as asgi",
        ),
        (
            "apps:make_broken",
            {"factory": True},
            "the factory make_broken of 'apps:make_broken' failed: RuntimeError: not today",
        ),
        ("apps:SLOW_S", {}, "'apps:SLOW_S' is not a function: it is of type float"),
        ("apps:wsgi", {"as": "nonsense"}, "as: 'nonsense' .* is not one of auto, handler, coroutine, "),
        ("apps:broken_lifespan", {"as": "asgi"}, "the application's startup failed"),
        ("socketserver:TCPServer", {}, "TCPServer needs its class of request handlers: "),
        ("socketserver:UDPServer", {}, "UDPServer serves datagrams"),
    ],
)
def test_a_wrong_application_is_one_line(server: MakeServer, app: str, options: dict[str, object], words: str) -> None:
    one = server().start(app, cwd=FOLDER, workers=1, wait=False, **options)
    one.expect("could not start", "Traceback", "RuntimeError", "ERROR", "pyfanout: ")
    assert one.wait_exit() in (1, 3, 4)
    import re

    (line,) = [line for line in one.log.splitlines() if line.startswith("pyfanout: ")]
    assert re.search(words, line), one.log


def test_the_kind_said_outright(server: MakeServer) -> None:
    one = server().start("apps:make_wsgi", cwd=FOLDER, workers=1, factory=True, **{"as": "wsgi"})
    assert ask(one.address)["generation"] == 1


def test_missing_server(tmp_path: Path) -> None:
    """As if the extra was not installed: with the line that helps."""
    code = """
        import sys
        sys.modules["waitress"] = None
        import pyfanout
        def app(environ, start_response): ...
        pyfanout.serve(app, bind="127.0.0.1:0", workers=1)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 4
    assert "waitress is not installed: pip install 'pyfanout[wsgi]'" in done.stderr


HOOKS = """
async def hook(worker=None):
    print("the hook has run", flush=True)
def handler(conn, addr): ...
def wsgi(environ, start_response): ...
async def asgi(scope, receive, send): ...
async def stream(one): ...
import functools, http.server
from pyfanout.embed import anyio, cheroot, gevent, trio, twisted, waitress, wsgiref
options["workers"] = 1
"""
NOT_ON_ASYNCIO = {
    "waitress": "wsgi",
    "cheroot": "cheroot.Runner(wsgi)",
    "wsgiref": "wsgiref.Runner(wsgi)",
    "gevent": "gevent.Runner(wsgi)",
    "http.server": "http.server.SimpleHTTPRequestHandler",
    "trio": "trio.Runner(stream)",
    "twisted": "twisted.Runner(None)",
}


def refuse_hook(folder: Path, app: str, hook: str, code: int) -> None:
    said = run(folder, f"{HOOKS}\npyfanout.serve({app}, on_worker_start={hook}, **options)", code=code)
    assert "the hook has run" not in said
    assert "never awaited" not in said
    assert said.splitlines()[-1].endswith("a hook may be a coroutine function only beside a server on asyncio")


@pytest.mark.parametrize("name", NOT_ON_ASYNCIO)
def test_a_coroutine_hook_without_a_loop(tmp_path: Path, name: str) -> None:
    """The coroutine was dropped: the server was ready, and the hook had not run."""
    refuse_hook(tmp_path, NOT_ON_ASYNCIO[name], "hook", 4)


def test_a_coroutine_of_another_hook_without_a_loop(tmp_path: Path) -> None:
    refuse_hook(tmp_path, "wsgi", "functools.partial(hook)", 4)
    for app in ("wsgi", "handler"):  # what the hook returns is found when it is called
        refuse_hook(tmp_path, app, "lambda worker: hook()", 3)


def test_a_coroutine_hook_on_asyncio(tmp_path: Path) -> None:
    said = run(
        tmp_path,
        f"""{HOOKS}
for app in (asgi, anyio.Runner(stream)):
    with pyfanout.Master(app, on_worker_start=hook, on_worker_exit=lambda worker: hook(), **options) as master:
        until_ready(master)
        master.stop()
        until_over(master)
""",
    )
    assert said.count("the hook has run") == 4


PATCHED = {
    "before": "from gevent import monkey; monkey.patch_all()\nimport pyfanout",
    "after": "import pyfanout\nfrom gevent import monkey; monkey.patch_all()",
}


@pytest.mark.parametrize("lines", PATCHED.values(), ids=PATCHED.keys())
def test_a_master_that_gevent_has_patched(lines: str) -> None:
    """It could start no worker, or not even be imported."""
    code = f"""{lines}
from pyfanout.embed import gevent
pyfanout.serve(gevent.Runner(print), bind="127.0.0.1:0", workers=1)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("pyfanout: gevent has patched the master's process; have it patch the workers only")


def test_a_module_that_gevent_patches_is_imported_in_the_workers(server: MakeServer, tmp_path: Path) -> None:
    """The recipe in docs/embedding.md; with --preload it is refused."""
    (tmp_path / "app.py").write_text(
        f"""
from gevent import monkey
monkey.patch_all()
import sys
sys.path.insert(0, {str(FOLDER)!r})
from pyfanout.embed import gevent
from apps import wsgi
app = gevent.Runner(wsgi, spawn=100)
"""
    )
    one = server().start("app:app", cwd=tmp_path, workers=1)
    assert ask(one.address)["slot"] == 0
    assert one.stop() == 0
    refused = server().start("app:app", cwd=tmp_path, workers=1, preload=True, wait=False)
    refused.expect("pyfanout: ")
    assert refused.wait_exit() == 1
    assert "without --preload" in refused.log


def write_server(folder: Path, loop: str) -> None:
    """app.py: one that serves any protocol on the loop that it makes."""
    (folder / "app.py").write_text(
        textwrap.dedent(
            f"""
            import asyncio, uvloop
            from pyfanout.embed import loop
            from pyfanout.embed.aio import AsyncioRunner

            class Mine(AsyncioRunner):
                loop = staticmethod({loop})

                async def run(self, worker, listener, started, stopping):
                    await asyncio.get_running_loop().create_server(asyncio.Protocol, sock=listener)
                    started()
                    await stopping.wait()

            app = Mine()
            """
        )
    )


def test_stock_uvloop_does_not_take_the_listener_in_silence(server: MakeServer, tmp_path: Path) -> None:
    """Its create_server would take the descriptor and never accept."""
    write_server(tmp_path, "uvloop.new_event_loop")
    one = server().start("app:app", cwd=tmp_path, workers=1, wait=False)
    one.expect("could not start", "Traceback", "RuntimeError", "pyfanout: ", "ResourceWarning: .*TCPServer")
    assert one.wait_exit() == 3
    assert "uvloop cannot accept from a pyfanout.Listener: use pyfanout.embed.loop" in one.log


@pytest.mark.parametrize("loop", ["new_asyncio_loop", "new_uvloop"])
def test_protocols_that_fail(server: MakeServer, tmp_path: Path, loop: str) -> None:
    """Of four clients the first and the third find their connection closed, since no protocol was made for them, the
    second one that was aborted by its protocol, and none of them is held."""
    (tmp_path / "app.py").write_text(
        textwrap.dedent(
            f"""
            import asyncio, itertools
            from pyfanout.embed import loop
            from pyfanout.embed.aio import AsyncioRunner

            numbers = itertools.count()

            class Answer(asyncio.Protocol):
                def connection_made(self, transport):
                    transport.write(b"%d" % LISTENER.live)
                    transport.close()

            class Abort(asyncio.Protocol):
                def connection_made(self, transport):
                    transport.abort()

            def make():
                match next(numbers) % 4:
                    case 0:
                        raise ZeroDivisionError("not for you")
                    case 1:
                        return Abort()
                    case 2:
                        raise asyncio.CancelledError
                return Answer()

            class Some(AsyncioRunner):
                loop = staticmethod(loop.{loop})

                async def run(self, worker, listener, started, stopping):
                    global LISTENER
                    LISTENER = listener
                    await asyncio.get_running_loop().create_server(make, sock=listener)
                    started()
                    await stopping.wait()

            app = Some()
            """
        )
    )
    one = server().start("app:app", cwd=tmp_path, workers=1)
    one.expect(
        "no transport for a connection", "Traceback", "ZeroDivisionError", "CancelledError", "Exception in callback"
    )
    (worker,) = one.workers
    answers: list[bytes] = []
    at_first = len(fds_of(worker))
    for _ in range(20):
        one.wait_idle()
        with connect(one.address) as client:
            try:
                answers.append(read_all(client))
            except ConnectionResetError:
                answers.append(b"")
    assert answers == [b"", b"", b"", b"1"] * 5
    one.wait_until(lambda: len(fds_of(worker)) <= at_first + 1, "libuv opens one at its first connection")
    assert one.log.count("made no transport for a connection") == 5
    assert one.stop() == 0


def test_uvloop_is_not_for_who_is_behind_a_proxy(server: MakeServer, tmp_path: Path) -> None:
    """However it is chosen."""
    write_server(tmp_path, "loop.new_uvloop")
    one = server().start("app:app", cwd=tmp_path, workers=1, wait=False, proxy_protocol=True)
    one.expect("could not start", "Traceback", "ConfigError", "pyfanout: ")
    assert one.wait_exit() == 3
    assert "uvloop asks the kernel who the client is, and so finds the proxy; use asyncio" in one.log


UNIX = ("uvicorn", "uvicorn-asyncio", "hypercorn", "hypercorn-uvloop", "aiohttp", "tornado", "cheroot")


@pytest.mark.parametrize("name", UNIX)
def test_a_stop_waits_for_who_has_just_connected_by_unix(server: MakeServer, tmp_path: Path, name: str) -> None:
    """The kernel does not know how long its client is silent already."""
    one = start(server(), SUBJECTS[name], workers=1, threads=2, bind=f"unix:{tmp_path}/s", drain_timeout=20)
    (worker,) = one.workers
    before = len(fds_of(worker))
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(f"{tmp_path}/s")
        one.wait_until(lambda: len(fds_of(worker)) > before, "it is accepted")
        one.send(signal.SIGTERM)
        one.wait_log("graceful stop: workers have")
        one.wait_until(lambda: f"pid={worker} READY->DRAINING" in one.log, "it drains")
        assert not select.select([client], [], [], 0.3)[0], "nor ended at the server's next look"
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert b" 200 " in read_all(client)
    assert one.wait_exit() == 0


# ---- ASGI ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["uvicorn", "uvicorn-asyncio", "hypercorn", "hypercorn-uvloop"])
def test_lifespan(server: MakeServer, name: str) -> None:
    one = start(server(), SUBJECTS[name], workers=1)
    assert one.out.splitlines().count("app: lifespan.startup") == 1
    ask(one.address)
    one.stop()
    assert one.out.splitlines().count("app: lifespan.shutdown") == 1


@pytest.mark.parametrize("name", ["uvicorn", "uvicorn-asyncio", "hypercorn", "aiohttp", "tornado"])
def test_a_websocket_outlives_ten_reloads(server: MakeServer, name: str) -> None:
    """Its worker drains, and stays as long as it does."""
    one = start(server(), SUBJECTS[name], workers=2, min_uptime=0, drain_timeout=60)
    with open_websocket(f"ws://{one.address}/ws") as socket:
        socket.send("hello")
        pid, _, text = str(socket.recv()).partition(" ")
        assert text == "hello"
        for count in range(1, 11):
            one.send(signal.SIGHUP)
            one.wait_log("reloaded: 2 workers are new", count)
            socket.send(str(count))
            assert socket.recv() == f"{pid} {count}"
    one.wait_until(lambda: f"pid={pid} has exited" in one.log, "its worker leaves when it is closed")


WEBSOCKETS = ("uvicorn", "uvicorn-asyncio", "hypercorn", "hypercorn-uvloop", "aiohttp", "aiohttp-uvloop", "tornado")


@pytest.mark.parametrize("name", WEBSOCKETS)
def test_a_websocket_is_told_when_the_time_is_up(server: MakeServer, name: str) -> None:
    """By a close frame, and the log says so."""
    one = start(server(), SUBJECTS[name], workers=1, drain_timeout=3)
    with open_websocket(f"ws://{one.address}/ws") as socket:
        socket.send("hello")
        socket.recv()
        one.send(signal.SIGTERM)
        with pytest.raises(Exception) as caught:  # noqa: PT011 - ConnectionClosed of one kind or another
            socket.recv(timeout=20)
        assert "1012" in str(caught.value)
    assert one.wait_exit() == 0
    assert one.log.count("worker=0 stops, with 1 connection in progress") == 1


# ---- others ----------------------------------------------------------------------------------------------------------


GOODBYE = {
    name: SUBJECTS[name]
    for name in ("uvicorn", "hypercorn", "waitress", "cheroot", "gevent", "http.server-threading", "aiohttp", "tornado")
} | {"http.server-forking": Subject("apps:ForkingWeb")}


def test_a_keep_alive_connection_is_told_that_it_ends(server: MakeServer) -> None:
    """A client that asks again and again finds `Connection: close` on an answer, and no reset."""
    for name, subject in GOODBYE.items():
        one = start(server(), subject, workers=1, drain_timeout=30)
        with Client(one.address) as client:
            client.ask()
            assert client.socket is not None, name
            one.send(signal.SIGTERM)
            wait_until(lambda client=client: client.ask() and client.socket is None, f"{name} says goodbye")
        assert one.wait_exit() == 0


def test_a_client_of_http_1_0_is_told_so_as_well(server: MakeServer) -> None:
    """A client that keeps its connection, as ab does: an answer says that it is kept, or that it ends, and then it ends
    without a reset."""
    for name, subject in GOODBYE.items():
        one = start(server(), subject, workers=1, drain_timeout=30)
        with connect(one.address) as client:
            kept, count = True, 0
            while kept:
                client.sendall(b"GET / HTTP/1.0\r\nHost: localhost\r\nConnection: keep-alive\r\n\r\n")
                answer = b""
                while not answer.endswith(b"}") and (more := client.recv(65536)):
                    answer += more
                head = answer.partition(b"\r\n\r\n")[0].lower()
                assert b" 200 " in head, (name, answer)
                said = head.count(b"connection: keep-alive"), head.count(b"connection: close")
                assert sum(said) <= 1, (name, head)
                kept = said == ((0, 0) if name.startswith("http.server") else (1, 0))  # http.server does not say so
                count += 1
                if count == 3:
                    one.send(signal.SIGTERM)
            assert client.recv(1) == b"", name
            if count < 3:  # it keeps none of these
                one.send(signal.SIGTERM)
        assert one.wait_exit() == 0


KEPT = {name: subject for name, subject in {**SUBJECTS, **GOODBYE}.items() if subject.keeps_alive}


@pytest.mark.parametrize("name", [name for name in KEPT if name not in POOLED])
def test_clients_that_wait_for_room_are_answered_in_a_stop(server: MakeServer, name: str) -> None:
    """A worker holds all that it may, and its clients are silent between two requests: it ends them, as long as other
    clients wait."""
    one = start(server(), KEPT[name], workers=1, max_connections=2, drain_timeout=60)
    kept, waiting = [Client(one.address) for _ in range(2)], []
    try:
        for client in kept:
            client.ask()
        for _ in range(3):
            waiting.append(connect(one.address))
            waiting[-1].sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        one.wait_idle()
        one.send(signal.SIGTERM)
        assert all(b" 200 " in read_all(client) for client in waiting), one.log
        assert one.wait_exit() == 0
    finally:
        close_all(waiting)
        for client in kept:
            client.__exit__()


def test_twisted_is_stopped_by_two_at_once() -> None:
    """The end of a drain and a SIGQUIT: it was a traceback in the log."""
    code = """
from twisted.internet import reactor
from pyfanout.embed.twisted import _stop
reactor.callWhenRunning(lambda: (_stop(reactor), _stop(reactor)))
reactor.run()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


UPLOADS = [*GOODBYE, "http.server", "http.server-handler", "wsgiref", "uvicorn-asyncio", "hypercorn-uvloop", "twisted"]


@pytest.mark.parametrize("name", UPLOADS)
def test_an_upload_that_pauses_is_not_cut(server: MakeServer, name: str) -> None:
    """Its client spoke last, however long ago: it does not only keep a connection."""
    one = start(server(), {**SUBJECTS, **GOODBYE}[name], workers=1, threads=2, drain_timeout=20)
    with connect(one.address) as client:
        client.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 10\r\n\r\n12345")
        one.wait_until(lambda: is_silent(client.fileno()), "it pauses")
        one.send(signal.SIGTERM)
        one.wait_log("graceful stop: workers have")
        assert not select.select([client], [], [], 0.7)[0], "not as long as a look or two takes"
        client.sendall(b"67890")
        assert b"1234567890" in read_all(client)
    assert one.wait_exit() == 0


def test_a_stop_that_comes_in_the_middle_of_trio_is_no_failure(server: MakeServer, tmp_path: Path) -> None:
    """When a worker has drained it no longer leaves signals to trio, and `Stopped` may be raised anywhere in it; which
    trio calls a bug of its own."""
    (tmp_path / "app.py").write_text(
        textwrap.dedent(
            """
            import signal, trio
            from pyfanout.embed.trio import Runner

            class Late(Runner):
                async def _live(self, worker):
                    await super()._live(worker)
                    trio.lowlevel.current_trio_token().run_sync_soon(signal.raise_signal, signal.SIGQUIT)
                    await trio.sleep_forever()

            app = Late(lambda stream: None)
            """
        )
    )
    one = server().start("app:app", cwd=tmp_path, workers=1)
    assert one.stop() == 0
    assert "exited with code" not in one.log


@pytest.mark.parametrize("app", ["waitress_of_three", "gevent_of_three"])
def test_one_at_the_limit_of_its_server_keeps_nobody_waiting(server: MakeServer, app: str) -> None:
    one = server().start(f"apps:{app}", cwd=FOLDER, factory=True, workers=2, policy="round-robin")
    fill_two_of_three(one.address)


def test_least_connections_counts_what_servers_hold(server: MakeServer) -> None:
    one = start(server(), SUBJECTS["uvicorn"], workers=2, policy="least-connections")
    held = [Client(one.address) for _ in range(10)]
    try:
        slots = [client.ask()[0]["slot"] for client in held]
        assert sorted(slots) == [0] * 5 + [1] * 5
        for client, slot in zip(held, slots, strict=True):
            if slot == 0:
                client.__exit__()
        one.wait_idle()
        fresh = [Client(one.address) for _ in range(5)]
        held += fresh
        assert [client.ask()[0]["slot"] for client in fresh] == [0] * 5
    finally:
        for client in held:
            client.__exit__()


BUSY = """
import asyncio, concurrent.futures, pathlib, time

thread = concurrent.futures.ThreadPoolExecutor(1)

def hold():
    while not pathlib.Path("go").exists():
        time.sleep(0.01)

def wsgi(environ, start_response):
    if environ["PATH_INFO"] == "/hold":
        hold()
    start_response("200 OK", [("Content-Length", "2")])
    return [b"{}"]

async def asgi(scope, receive, send):
    '''All of it on one thread, as Django has it for views that are no coroutines.'''
    if scope["type"] != "http":
        raise RuntimeError
    work = hold if scope["path"] == "/hold" else int
    await asyncio.get_running_loop().run_in_executor(thread, work)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"{}"})
"""


@pytest.mark.parametrize(
    ("app", "options", "threads"),
    [("wsgi", {}, 4), ("wsgi", {"server": "cheroot"}, 4), ("asgi", {}, 1)],
    ids=["waitress", "cheroot", "uvicorn"],
)
def test_a_quick_request_does_not_wait_behind_slow_ones(
    server: MakeServer, tmp_path: Path, app: str, options: dict[str, object], threads: int
) -> None:
    """With turns one of the two would have all the slow ones, and every second quick one."""
    (tmp_path / "app.py").write_text(BUSY)
    one = server().start(f"app:{app}", cwd=tmp_path, workers=2, threads=threads, **options)
    slow = [Client(one.address) for _ in range(threads)]
    for client in [*slow, *[None] * 4]:
        if client is not None:
            client.begin("/hold", close=True)
        ask(one.address)
        one.wait_idle()  # else the one that has answered may still count this connection, and be the other's equal
    (tmp_path / "go").touch()
    for client in slow:
        client.end(close=True)
