"""The line with which a server starts says what runs, and the last one what was lost."""

from __future__ import annotations

import re
import signal
import sys
from collections.abc import Callable
from typing import Any

import pytest
from harness import Server, close_all, hold, kill, release

import pyfanout

MakeServer = Callable[..., Server]

PYTHON = f"pyfanout {pyfanout.__version__}, Python {sys.version.split()[0]}"


@pytest.mark.parametrize("serve", [False, True])
@pytest.mark.parametrize(("handler", "kind"), [("act", "handler"), ("act_async", "coroutine")])
def test_the_start_line(server: MakeServer, serve: bool, handler: str, kind: str) -> None:
    one = server()
    bind = ["127.0.0.1:0", f"unix:@start-{handler}-{serve}"]
    options: dict[str, Any] = {"workers": 2, "log_level": "info", "policy": "round-robin", "bind": bind}
    one = one.start(handler, script={}, **options) if serve else one.start(f"apps:{handler}", **options)
    (line,) = one.wait_log("all workers are ready")
    where = ", ".join(one.addresses)
    assert line.partition("] INFO ")[2] == (
        f"all workers are ready: apps:{handler} ({kind} by pyfanout) on {where} with 2 workers, round-robin, {PYTHON}"
    )


def last_line(one: Server) -> str:
    return one.log.splitlines()[-1].partition("] INFO ")[2]


def test_nothing_is_lost(server: MakeServer, handler: str, options: dict[str, Any]) -> None:
    """Also if a worker was killed before the stop: that has a line of its own."""
    one = server().start(f"apps:{handler}", workers=2, **options)
    with hold(one.address):
        for pid in one.workers:
            kill(pid)
        one.wait_log("was killed by SIGKILL", 2)
        one.wait_ready_workers(4)
    client = hold(one.address)
    one.send(signal.SIGTERM)
    one.wait_log("graceful stop: workers have")
    release(client)
    assert one.wait_exit() == 0
    assert last_line(one) == "stopped: 0 connections were cut off"


@pytest.mark.parametrize("how", ["INT", "TERM"])
def test_requests_that_are_cut_off_are_counted(
    server: MakeServer, kind: str, handler: str, options: dict[str, Any], how: str
) -> None:
    """In a fast stop, and when `drain_timeout` is over; of all workers together."""
    one = server().start(f"apps:{handler}", workers=2, drain_timeout=0.2, **options)
    clients = [hold(one.address) for _ in range(2 if kind == "blocking" else 5)]
    one.expect("ERROR")
    assert one.stop(getattr(signal, f"SIG{how}")) == 0
    assert last_line(one) == f"stopped: {len(clients)} connections were cut off"
    close_all(clients)


def test_one_that_is_killed_in_a_stop_is_counted(server: MakeServer) -> None:
    one = server().start("apps:act", workers=1)
    client = hold(one.address)
    one.send(signal.SIGTERM)
    one.wait_log("graceful stop: workers have")
    kill(one.workers[0])
    assert one.wait_exit() == 0
    client.close()
    assert last_line(one) == "stopped: 1 connection was cut off"


def test_a_start_that_is_cut_short_has_an_end_as_well(server: MakeServer, tmp_path: Any) -> None:
    (tmp_path / "slow.py").write_text("import time\ntime.sleep(100)\n")
    one = server().start("slow:handler", cwd=tmp_path, wait=False, workers=1, log_level="info")
    one.wait_log("listening on")
    assert one.stop() == 0
    assert last_line(one) == "stopped: 0 connections were cut off"
    assert not re.search("all workers are ready", one.log)
