"""Connections of many requests, over a drain: a request is finished, silence is ended, nothing is reset."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import Server, connect, read_all, read_line

MakeServer = Callable[..., Server]

ECHO = """
import asyncio, os
async def handler(reader, writer):
    while line := await reader.readline():
        if line == b"slow\\n":
            await asyncio.sleep(2)
        writer.write(b"%d " % os.getpid() + line)
    writer.write(b"bye\\n")
"""


@pytest.fixture(params=["127.0.0.1:0", "unix"])
def echo(server: MakeServer, tmp_path: Path, request: pytest.FixtureRequest) -> Server:
    (tmp_path / "app.py").write_text(ECHO)
    bind = f"unix:{tmp_path}/sock" if request.param == "unix" else request.param
    return server().start("app:handler", cwd=tmp_path, workers=1, min_uptime=0, bind=bind)


def test_silence_is_ended_by_an_end_of_file(echo: Server) -> None:
    """The handler sees its client go, and says good-bye: no reset."""
    with connect(echo.address, "one") as client:
        assert read_line(client).endswith(b" one\n")
        echo.send(signal.SIGHUP)
        assert read_all(client) == b"bye\n"
    echo.wait_workers(1)
    assert "READY->DRAINING" in echo.log


def test_one_that_never_said_anything(echo: Server) -> None:
    with connect(echo.address) as client:
        with connect(echo.address, "one") as other:
            read_line(other)
        echo.send(signal.SIGHUP)
        assert read_all(client) == b"bye\n"


def test_a_request_that_is_under_way_is_finished(echo: Server) -> None:
    with connect(echo.address, "slow") as client:
        with connect(echo.address, "one") as other:
            read_line(other)
        echo.send(signal.SIGTERM)
        assert read_line(client).endswith(b" slow\n")
        assert read_all(client) == b"bye\n"
    assert echo.wait_exit() == 0


def test_half_a_request_is_waited_for(echo: Server) -> None:
    """Its client is slower than the patience with silence."""
    with connect(echo.address) as client, connect(echo.address, "one") as other:
        read_line(other)
        client.sendall(b"two and ")
        echo.send(signal.SIGHUP)
        assert read_all(other) == b"bye\n"
        client.sendall(b"a half\n")
        assert read_line(client).endswith(b" two and a half\n")


def test_requests_that_follow_each_other_go_on(echo: Server) -> None:
    """A client that has more to ask is served until it has none, by the worker that drains."""
    with connect(echo.address, "0") as client:
        first = read_line(client).split()[0]
        echo.send(signal.SIGHUP)
        echo.wait_log("READY->DRAINING")
        for number in range(1, 50):
            client.sendall(b"%d\n" % number)
            assert read_line(client) == b"%s %d\n" % (first, number)
        assert read_all(client) == b"bye\n"
