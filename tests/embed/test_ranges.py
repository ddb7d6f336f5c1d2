"""Each option at both ends of what it takes, through a whole life: start, requests, a reload, scaling, a stop. Those
that do not stand in each other's way share a life."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable

import pytest
from harness import TESTS, Server, connect, read_all

from pyfanout.config import Config, options
from pyfanout.options import MAX_COUNT, MAX_SECONDS, MAX_THREADS, MAX_WORKERS

from .kit import FOLDER, SUBJECTS, Subject

MakeServer = Callable[..., Server]

BLOCKING, ASYNCIO = Subject("apps:act"), Subject("apps:act_async")
KINDS = {"blocking": BLOCKING, "asyncio": ASYNCIO, "waitress": SUBJECTS["waitress"], "uvicorn": SUBJECTS["uvicorn"]}

PATIENCE_S = 60.0
"""For a start: these import many servers, which takes more than ten seconds on a machine that is busy enough."""

LEAST_S = 1e-300
"""What is above 0, and less than a nanosecond."""

LIVES: dict[str, dict[str, object]] = {
    "low": {
        **dict.fromkeys(("workers", "threads", "backlog", "reload_batch"), 1),
        **dict.fromkeys(("max_connections", "max_requests", "max_requests_jitter"), 0),
        **dict.fromkeys(("drain_timeout", "timeout", "ping_interval", "min_uptime"), 0),
        "log_level": "debug",
    },
    "one": {  # next to the 0 that switches something off
        **dict.fromkeys(("workers", "max_connections", "max_requests"), 1),
        **dict.fromkeys(("ping_interval", "min_uptime", "drain_timeout"), LEAST_S),
        "max_requests_jitter": 0,
    },
    "high": {
        **dict.fromkeys(("backlog", "max_connections", "max_requests", "max_requests_jitter"), MAX_COUNT),
        **dict.fromkeys(("drain_timeout", "boot_timeout", "timeout", "ping_interval", "ping_timeout"), MAX_SECONDS),
        "handshake_timeout": MAX_SECONDS,
        "proxy_protocol": True,
        "threads": MAX_THREADS,
        "reload_batch": MAX_WORKERS,
        "workers": 2,  # of MAX_WORKERS, a thousand forks take a minute
        "log_level": "info",
    },
    "long": {  # a reload of which no worker comes to its end
        "min_uptime": MAX_SECONDS,
        "workers": 2,
    },
}
SHORT = ("boot_timeout", "ping_timeout", "handshake_timeout", "timeout")
"""Which cannot be 0, or not for a worker to be spared: with the least no worker, or no client, comes in time."""

PROXY_HEADER = "PROXY TCP4 192.0.2.1 192.0.2.2 4321 443\r\n"


def begin(server: Server, subject: Subject, **given: object) -> Server:
    cwd = TESTS if subject in (BLOCKING, ASYNCIO) else FOLDER
    server.start(subject.app, cwd=cwd, wait=False, **{**subject.options, **given})
    server.wait_ready(PATIENCE_S)
    return server


def ask(one: Server, kind: str, header: str) -> int:
    """The worker that has answered."""
    request = "whoami" if KINDS[kind] in (BLOCKING, ASYNCIO) else "GET / HTTP/1.0\r\n\r"
    answer = read_all(connect(one.address, header + request))
    found = re.search(rb'"pid": (\d+)', answer)
    assert found, answer
    return int(found[1])


def test_every_number_is_here() -> None:
    """At its least and at its most; but for those that have no life of their own."""
    numbers = {name for name, option in options().items() if option.values.metavar in ("N", "SECONDS")} - {"ready_fd"}
    assert set(LIVES["high"]) | {"min_uptime"} >= numbers
    assert set(LIVES["low"]) | set(SHORT) >= numbers
    for life in LIVES.values():
        Config(**life)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("life", LIVES)
def test_a_life_at_both_ends(server: MakeServer, kind: str, life: str) -> None:
    given, subject = LIVES[life], KINDS[kind]
    workers, header = int(str(given["workers"])), PROXY_HEADER if given.get("proxy_protocol") else ""
    one = begin(server(), subject, **given)
    assert all(ask(one, kind, header) for _ in range(3))
    old = set(one.workers)
    one.send(signal.SIGHUP)
    one.wait_log("reloading")
    if life != "long":
        one.wait_log("reloaded: ", deadline_s=PATIENCE_S)
        one.wait_until(lambda: ask(one, kind, header) not in old, "a new worker answers")
    for signum, change in ((signal.SIGTTIN, (workers, workers + 1)), (signal.SIGTTOU, (workers + 1, workers))):
        one.send(signum)
        one.wait_log("scaling from {} to {}".format(*change))
        assert ask(one, kind, header)
    assert one.stop() == 0
    one.wait_nobody()
