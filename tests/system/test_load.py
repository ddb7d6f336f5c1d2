"""10,000 connections from load generators that others wrote."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable

import pytest
from harness import Server

MakeServer = Callable[[], Server]


def tool(name: str, package: str) -> str:
    path = shutil.which(name)
    assert path, f"this test needs `{name}`: install the package {package}"
    return path


@pytest.mark.parametrize(
    ("handler", "options"),
    [("hello", {}), ("hello", {"threads": 3}), ("hello_async", {})],
    ids=["blocking", "threads", "asyncio"],
)
@pytest.mark.parametrize("policy", ["round-robin", "least-connections"])
def test_ab(server: MakeServer, handler: str, options: dict, policy: str) -> None:
    ab = tool("ab", "apache2-utils")
    one = server().start(f"apps:{handler}", workers=2, policy=policy, log_level="info", **options)
    command = [ab, "-q", "-n", "10000", "-c", "64", "-s", "20", f"http://{one.address}/"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    report = dict(re.findall(r"^([A-Z][\w ]+):\s+(\S+)", done.stdout, re.MULTILINE))
    assert report["Complete requests"] == "10000"
    assert report["Failed requests"] == "0"
    assert "Non-2xx" not in done.stdout
    assert one.stop() == 0
    assert "WARNING" not in one.log


@pytest.mark.parametrize("handler", ["hello", "hello_async"])
def test_wrk(server: MakeServer, handler: str) -> None:
    """As fast as it can for 1 s, a new connection for each request."""
    wrk = tool("wrk", "wrk")
    one = server().start(f"apps:{handler}", workers=2, log_level="info")
    command = [wrk, "-t1", "-c64", "-d1s", "-H", "Connection: close", f"http://{one.address}/"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    match = re.search(r"(\d+) requests in", done.stdout)
    assert match
    assert int(match[1]) > 1000
    assert "Socket errors" not in done.stdout, done.stdout
    assert one.stop() == 0
