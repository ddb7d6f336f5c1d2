"""An application that sets up logging for itself: each failure is in the log, and once."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import Server, collect, crowd, kill
from master_script import run

MakeServer = Callable[[], Server]

APP = """
import logging, logging.config, sys
{setup}

def handler(conn, addr):
    conn.recv(4096)
    1 / 0
"""

BASIC = 'logging.basicConfig(level="DEBUG", format="app: %(message)s")'
DICT = """logging.config.dictConfig({
    "version": 1,
    "formatters": {"own": {"format": "app: %(message)s"}},
    "handlers": {"own": {"class": "logging.StreamHandler", "formatter": "own"}},
    HANDLERS
})"""
ROOT = DICT.replace("HANDLERS", '"root": {"handlers": ["own"], "level": "DEBUG"}')
OTHER = DICT.replace("HANDLERS", '"loggers": {"shop": {"handlers": ["own"]}}')
ERRORS = DICT.replace("HANDLERS", '"root": {"handlers": ["own"]}').replace(
    '"formatter": "own"', '"formatter": "own", "level": "ERROR"'
)
QUEUE = """
import atexit, contextlib, logging.handlers, queue
own, sending, root = logging.StreamHandler(), logging.handlers.QueueHandler(None), logging.getLogger()
own.setFormatter(logging.Formatter("app: %(message)s"))
root.addHandler(sending)
root.setLevel("DEBUG")

def listen(worker=None):
    sending.queue = queue.SimpleQueue()  # a copy of one that a thread has read at the fork may never wake its reader
    listener = logging.handlers.QueueListener(sending.queue, own)
    listener.start()
    atexit.register(listener.stop)

listen()
"""
SETUPS = {"basicConfig": BASIC, "root": ROOT, "another": OTHER, "errors": ERRORS, "queue": QUEUE}


@pytest.mark.parametrize("preload", [False, True])
@pytest.mark.parametrize("setup", SETUPS.values(), ids=SETUPS.keys())
def test_each_failure_is_logged_once(server: MakeServer, tmp_path: Path, setup: str, preload: bool) -> None:
    """A handler's traceback, by the worker, and a death, by the master."""
    (tmp_path / "app.py").write_text(APP.format(setup=setup))
    one = server().start("app:handler", cwd=tmp_path, workers=1, **({"preload": True} if preload else {}))
    one.expect("the handler raised an exception", "Traceback", "ZeroDivisionError", "was killed by")
    (old,) = one.workers
    assert collect(crowd(one.address, 1)) == [b""]
    one.wait_log("ZeroDivisionError")
    kill(old)
    one.wait_workers(1, gone=[old])
    one.wait_log("was killed by SIGKILL")
    one.stop()
    assert one.log.count("the handler raised an exception") == 1
    assert one.log.count("ZeroDivisionError") == 1
    assert one.log.count("was killed by SIGKILL") == 1
    assert one.log.count("stopped: ") == 1


@pytest.mark.parametrize("hook", [None, "listen"])
def test_a_queue_that_only_the_program_reads(tmp_path: Path, hook: str | None) -> None:
    """Its thread is not there in a worker, whose lines stayed in the queue."""
    said = run(
        tmp_path,
        f"""{QUEUE}
def handler(conn, addr):
    conn.recv(99)
    1 / 0

options["log_level"] = "info"
with pyfanout.Master(handler, on_worker_start={hook}, workers=1, **options) as master:
    until_ready(master)
    with contextlib.suppress(ValueError):  # there is no answer
        ask(master)
    master.stop()
    until_over(master)
""",
    )
    assert said.count("ZeroDivisionError") == 1
    assert said.count("app: worker=0: the handler raised an exception") == (hook is not None)
    assert said.count("app: stopped: ") == said.count("stopped: ") == 1


LOSES_A_TASK = """
import asyncio, gc, logging

async def fail():
    1 / 0

async def lose(setup):
    if setup:
        logging.basicConfig(format="app: %(message)s")
    task = asyncio.create_task(fail())
    await asyncio.wait([task])
    del task
    gc.collect()

async def handler(reader, writer):
    await lose((await reader.read(4096)).strip() == b"setup")

async def asgi(scope, receive, send):
    if scope["type"] == "http":
        await lose(scope["path"] == "/setup")
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body"})
"""


@pytest.mark.parametrize(
    ("app", "line", "setup"), [("handler", "", "setup"), ("asgi", "GET / HTTP/1.0\r\n\r", "GET /setup HTTP/1.0\r\n\r")]
)
def test_asyncio_logs_as_we_do(server: MakeServer, tmp_path: Path, app: str, line: str, setup: str) -> None:
    """It has no handler: its lines had neither time nor pid, and began at the margin. If the application sets one up,
    also later, they go there, once."""
    (tmp_path / "app.py").write_text(LOSES_A_TASK)
    one = server().start(f"app:{app}", cwd=tmp_path, workers=1)
    one.expect("Task exception was never retrieved", "Traceback", "ZeroDivisionError")
    for each in (line, setup):
        assert collect(crowd(one.address, 1, each)) != [None]
    one.wait_log(rf"^[-0-9]+ [:,0-9]+ \[{one.workers[0]}\] ERROR Task exception was never retrieved")
    one.wait_log("^app: Task exception was never retrieved")
    one.stop()
    ours, _, theirs = one.log.partition("\napp: ")
    assert "\nTraceback" not in ours
    assert "ERROR Task exception was never retrieved" not in theirs
    assert one.log.count("ZeroDivisionError: ") == 2


def test_a_level_that_the_application_sets_is_kept(server: MakeServer, tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(LOSES_A_TASK + 'logging.getLogger("asyncio").setLevel("CRITICAL")\n')
    one = server().start("app:handler", cwd=tmp_path, workers=1)
    assert collect(crowd(one.address, 1, "")) == [b""]
    one.stop()
    assert "never retrieved" not in one.log


def test_a_queue_of_the_worker_has_all_lines(server: MakeServer, tmp_path: Path) -> None:
    """Also those of loggers that are adopted where there is no handler, from warning on."""
    handler = "async def handler(reader, writer): logging.getLogger('asyncio').info('news')"
    (tmp_path / "app.py").write_text(QUEUE + handler)
    one = server().start("app:handler", cwd=tmp_path, workers=1)
    assert collect(crowd(one.address, 1)) == [b""]
    one.wait_log("^app: news")
    one.stop()
    assert one.log.count("news") == 1


FAILS = {
    "handler": "class Own(logging.Handler):\n    def emit(self, record): 1 / 0\nlogging.getLogger().addHandler(Own())",
    "filter": """
own = logging.StreamHandler()
own.addFilter(lambda record: setattr(record, "request", request.get()))
logging.getLogger().addHandler(own)
""",
    "factory": "logging.setLogRecordFactory(lambda *args, **named: request.get())",
}


@pytest.mark.parametrize("preload", [False, True])
@pytest.mark.parametrize("setup", FAILS)
def test_logging_that_fails_ends_no_process(server: MakeServer, tmp_path: Path, setup: str, preload: bool) -> None:
    """A line of the master's ended the service, and one of a worker's the thread that logged: after as many requests as
    there are threads the worker served no client any more, and was never replaced."""
    module = APP.format(setup=f'import contextvars\nrequest = contextvars.ContextVar("request")\n{FAILS[setup]}')
    (tmp_path / "app.py").write_text(module)
    one = server().start("app:handler", cwd=tmp_path, workers=1, threads=2, **({"preload": True} if preload else {}))
    one.expect("the handler raised an exception", "Traceback", "ZeroDivisionError", "has failed for the line above")
    before = one.workers
    for _ in range(4):
        assert collect(crowd(one.address, 1)) == [b""]
    assert one.workers == before
    assert one.log.count("the handler raised an exception") == 4
    one.send(signal.SIGHUP)
    one.wait_log("the last worker that was replaced has exited")
    one.stop()
    if setup != "factory":  # without it there is a record all the same
        assert one.log.count("has failed for the line above") >= 4
