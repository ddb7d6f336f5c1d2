"""The functions that run at the end of a worker: those that the application has registered in it, as under a server
that exits, and not those of the master or of a preloaded application."""

from __future__ import annotations

import re
import signal
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import Server, children_of, connect, is_over

MakeServer = Callable[[], Server]

APP = """
    import asyncio, atexit, concurrent.futures, logging.handlers, multiprocessing, os, sys, tempfile, threading, time
    import weakref

    ON_IMPORT = os.getpid()

    def note(what):
        os.write(2, f"app: {what} in {os.getpid()}\\n".encode())

    def later(what):
        time.sleep(0.3)
        note(what)

    class Thing:
        pass

    thing, folder = Thing(), tempfile.TemporaryDirectory()
    weakref.finalize(thing, note, "finalizer")
    atexit.register(note, "atexit")
    memory = logging.handlers.MemoryHandler(1000, target=logging.StreamHandler())
    logging.getLogger("app").addHandler(memory)
    processes = multiprocessing.get_context("fork")

    def leave_behind():
        jobs = concurrent.futures.ThreadPoolExecutor(1)
        for _ in range(3):
            jobs.submit(later, "job")
        threading.Thread(target=later, args=("thread",)).start()
        logging.getLogger("app").warning(f"app: logged in {os.getpid()}")
        if "gevent" in sys.modules:  # whose threads go on in a child
            return
        processes.Process(target=time.sleep, args=(1000,), daemon=True).start()
        pool = concurrent.futures.ProcessPoolExecutor(1, mp_context=processes)
        pool.submit(os.getpid).result()
        globals().update(pool=pool)

    def act(word):
        if word == "leave":
            leave_behind()
        elif word == "hang":
            atexit.register(time.sleep, 1000)
        elif word == "stay":
            processes.Process(target=time.sleep, args=(1000,), daemon=True).start()
            threading.Thread(target=time.sleep, args=(1000,)).start()
        elif word == "exit":
            sys.exit(5)
        return f"{os.path.exists(folder.name)}!".encode()

    def handler(conn, addr):
        conn.sendall(act(conn.recv(100).decode().strip()))

    async def coroutine(reader, writer):
        writer.write(act((await reader.readline()).decode().strip()))

    def trio():
        from pyfanout.embed import trio

        async def handle(stream):
            await stream.send_all(act((await stream.receive_some(100)).decode().strip()))

        return trio.Runner(handle)

    def wsgi(environ, start_response):
        start_response("200 OK", [])
        return [act(environ["PATH_INFO"][1:])]

    async def asgi(scope, receive, send):
        body = act(scope["path"][1:])
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
        await send({"type": "http.response.body", "body": body})
"""

KINDS = {
    "handler": ("app:handler", {}),
    "threads": ("app:handler", {"threads": 3}),
    "coroutine": ("app:coroutine", {}),
    "trio": ("app:trio", {"factory": True}),
    "waitress": ("app:wsgi", {}),
    "gevent": ("app:wsgi", {"server": "gevent"}),
    "uvicorn": ("app:asgi", {"as": "asgi"}),
}
FEW = ["handler", "coroutine"]


@pytest.fixture
def begin(server: MakeServer, tmp_path: Path) -> Callable[..., Server]:
    def begin(kind: str, **options: object) -> Server:
        (tmp_path / "app.py").write_text(textwrap.dedent(APP))
        app, more = KINDS[kind]
        one = server()
        one.expect("ResourceWarning: Implicitly cleaning up", "_warnings.warn")  # of the folder
        one.expect("is multi-threaded, use of fork")  # Python 3.12 on: it forks beside its own threads
        return one.start(app, cwd=tmp_path, workers=1, **{"drain_timeout": 60, **more, **options})

    return begin


def tell(one: Server, kind: str, word: str) -> bytes:
    http = kind in ("waitress", "gevent", "uvicorn")
    line = f"GET /{word} HTTP/1.0\r\n\r" if http else word
    answer = b""
    with connect(one.address, line) as client:  # what is forked may keep it open
        while not answer.endswith(b"!") and (more := client.recv(4096)):
            answer += more
    return answer


def lines(one: Server, what: str) -> list[int]:
    """The processes that have printed it."""
    return [int(pid) for pid in re.findall(rf"app: {what} in (\d+)$", one.log, re.M)]


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_begun_is_finished(begin: Callable[..., Server], kind: str) -> None:
    one = begin(kind)
    (pid,) = one.workers
    tell(one, kind, "leave")
    children = children_of(pid)
    assert len(children) == (0 if kind == "gevent" else 2)
    assert one.stop() == 0
    assert lines(one, "job") == [pid] * 3
    for what in ("thread", "atexit", "finalizer", "logged"):
        assert lines(one, what) == [pid], what
    assert one.log.index("app: job") < one.log.index("app: atexit"), "threads first, as at the end of an interpreter"
    one.wait_until(lambda: all(map(is_over, children)), "its processes are gone")
    one.wait_nobody()


def test_what_was_registered_before_the_fork_is_the_masters(begin: Callable[..., Server]) -> None:
    one = begin("handler", preload=True)
    (pid,) = one.workers
    tell(one, "handler", "leave")
    children = children_of(pid)
    one.send(signal.SIGHUP)
    one.wait_workers(1, gone=[pid])
    assert lines(one, "job") == [pid] * 3
    assert lines(one, "logged") == [pid], "the hook of logging is the worker's, too"
    one.wait_until(lambda: all(map(is_over, children)), "as multiprocessing's is")
    assert lines(one, "atexit") == lines(one, "finalizer") == []
    assert tell(one, "handler", "look").endswith(b"True!"), "the folder is there"
    assert one.stop() == 0
    assert lines(one, "atexit") == lines(one, "finalizer") == [one.pid]


@pytest.mark.parametrize("kind", FEW)
def test_an_exit_function_that_hangs(begin: Callable[..., Server], kind: str) -> None:
    """It has what is left of the drain."""
    one = begin(kind, drain_timeout=0.5)
    tell(one, kind, "hang")
    assert one.stop() == 0
    one.wait_log("drain_timeout of 0.5 s is over: the remaining workers stop now")
    assert "does not stop within 2 s of SIGQUIT and is killed" not in one.log
    one.wait_nobody()


@pytest.mark.parametrize("kind", FEW)
def test_a_fast_stop_waits_for_no_thread(begin: Callable[..., Server], kind: str) -> None:
    one = begin(kind)
    (pid,) = one.workers
    tell(one, kind, "stay")
    children = children_of(pid)
    assert one.stop(signal.SIGINT) == 0
    assert lines(one, "atexit") == lines(one, "finalizer") == [pid]
    assert "is killed" not in one.log
    assert len(children) == 1
    one.wait_nobody()


@pytest.mark.parametrize("kind", [*FEW, "trio"])
def test_an_exit_of_the_applications(begin: Callable[..., Server], kind: str) -> None:
    one = begin(kind)
    (pid,) = one.workers
    tell(one, kind, "stay")
    tell(one, kind, "exit")
    one.wait_workers(1, gone=[pid])
    one.wait_log(f"pid={pid} exited with code 5")
    assert lines(one, "atexit") == [pid]
    assert one.stop(signal.SIGINT) == 0


@pytest.mark.parametrize("kind", [*FEW, "waitress"])
def test_without_a_master(begin: Callable[..., Server], kind: str) -> None:
    """Its end is bounded all the same."""
    one = begin(kind, drain_timeout=0.5)
    tell(one, kind, "leave")
    tell(one, kind, "hang")
    (pid,) = one.workers
    one.send(signal.SIGKILL)
    assert one.wait_exit() == -signal.SIGKILL
    one.expect("threads or atexit functions have not ended", "the master has exited and 0.5 s are over")
    one.wait_until(lambda: is_over(pid), "it ends")
    one.wait_nobody()
