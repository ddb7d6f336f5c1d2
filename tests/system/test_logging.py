"""An application that sets up logging for itself: each failure is in the log, and once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from harness import Server, collect, crowd, kill

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


@pytest.mark.parametrize("preload", [False, True])
@pytest.mark.parametrize("setup", [BASIC, ROOT, OTHER, ERRORS], ids=["basicConfig", "root", "another", "errors"])
def test_each_failure_is_logged_once(server: MakeServer, tmp_path: Path, setup: str, preload: bool) -> None:
    """A handler's traceback, by the worker, and a death, by the master."""
    (tmp_path / "app.py").write_text(APP.format(setup=setup))
    one = server().start("app:handler", cwd=tmp_path, workers=1, **({"preload": True} if preload else {}))
    one.expect("the handler failed", "Traceback", "ZeroDivisionError", "was killed by")
    (old,) = one.workers
    assert collect(crowd(one.address, 1)) == [b""]
    kill(old)
    one.wait_workers(1, gone=[old])
    one.wait_log("was killed by SIGKILL")
    one.stop()
    assert one.log.count("the handler failed") == 1
    assert one.log.count("ZeroDivisionError") == 1
    assert one.log.count("was killed by SIGKILL") == 1
    assert one.log.count("stopped: ") == 1
