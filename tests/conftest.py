"""Guards on every test, the `server` fixture, the seed of random tests."""

from __future__ import annotations

import gc
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harness import Census, Server, close_clients

FRESH = {
    *("embed/test_ends", "embed/test_goodbye", "embed/test_greenlets", "embed/test_identity", "embed/test_loading"),
    "embed/test_signals",
    *("system/test_boot_failure", "system/test_exhaustion", "system/test_exits", "system/test_leaks"),
    *("system/test_pages", "system/test_signals", "system/test_soak", "system/test_start_and_end"),
    *("system/test_stdio", "system/test_unprivileged"),
}
"""Tests of imports, memory, start and exit: their servers are no forks of a fork server (`fork_server.py`)."""
SEED = pytest.StashKey[int]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seed", type=int, default=None, help="of random tests; default: TEST_SEED, or a new one")


def pytest_configure(config: pytest.Config) -> None:
    # A shell starts what it puts into the background with SIGINT and SIGQUIT ignored, nohup with SIGHUP ignored. The
    # programs that tests start would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for signum in (signal.SIGQUIT, signal.SIGHUP):
        signal.signal(signum, signal.SIG_DFL)
    given = config.getoption("--seed")
    text = os.environ.get("TEST_SEED", "")
    config.stash[SEED] = given if given is not None else int(text) if text else random.SystemRandom().getrandbits(32)


@pytest.hookimpl(hookwrapper=True)
def pytest_collection() -> Iterator[None]:
    """pytest keeps the test modules that it has compiled, for the other processes of this run, also where Python may
    write no bytecode."""
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, False
    yield
    sys.dont_write_bytecode = before


def pytest_report_header(config: pytest.Config) -> str:
    return f"seed of random tests: {config.stash[SEED]} (take it back with --seed or TEST_SEED)"


def left_over(before: Census, patience_s: float = 5.0) -> list[str]:
    """What a test has left open, running or unreaped. Patient: on a busy machine it takes a while to go."""
    end = time.monotonic() + patience_s
    while lines := Census.take().left_since(before):
        gc.collect()
        if time.monotonic() >= end:
            return lines
        time.sleep(0.01)
    return []


@pytest.fixture(autouse=True)
def guard() -> Iterator[None]:
    """The descriptors, children and threads of this process are what they were."""
    before = Census.take()
    yield
    close_clients()
    if lines := left_over(before):
        pytest.fail("the test leaves something behind:\n" + "\n".join(lines), pytrace=False)


@pytest.fixture
def server(request: pytest.FixtureRequest, tmp_path: Path, guard: None) -> Iterator[Callable[..., Server]]:
    """Makes servers under test, of a class. Afterwards they are ended, and must have been good: see `Server.close`."""
    servers: list[Server] = []

    def make(kind: type[Server] = Server) -> Server:
        servers.append(kind(tmp_path, f"server{len(servers)}"))
        servers[-1].fresh = "/".join(request.path.with_suffix("").parts[-2:]) in FRESH
        return servers[-1]

    yield make
    problems = []
    for each in servers:
        if wrong := each.close():
            problems += [*wrong, f"--- log of {each.log_path.name}:", each.log]
    if problems:
        pytest.fail("\n".join(problems), pytrace=False)


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> random.Random:
    """Random, but the same again for the same seed and test."""
    seed = request.config.stash[SEED]
    print(f"seed: {seed} (repeat with --seed={seed})")
    return random.Random(f"{seed}:{request.node.nodeid}")
