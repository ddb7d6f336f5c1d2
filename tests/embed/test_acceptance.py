"""A worker is ready when its server accepts what the dispatcher passes to it, and not before."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import Server, connect, is_asleep, read_all

from .kit import FOLDER, ask

MakeServer = Callable[[], Server]

BAD = {
    "elsewhere": r"; this process itself listens on 127\.0\.0\.1:\d+",
    "on_a_unix_socket": r"; this process itself listens on unix:@\d+-elsewhere",
    "nowhere": "",
    "without_proc": "",
}
REQUEST = b"GET / HTTP/1.0\r\n\r\n"


def test_a_server_that_does_not_accept_is_refused(server: MakeServer) -> None:
    """Before `boot_timeout` is over, in one line that says where it listens instead."""
    reason = "its server does not accept from the Listener of pyfanout"
    ones = {name: server() for name in BAD}
    for name, one in ones.items():
        one.expect(f"ERROR worker=0 .* could not start: {reason}")
        one.start(f"own_servers:{name}", cwd=FOLDER, workers=1, boot_timeout=20, wait=False)
    for name, one in ones.items():
        assert one.wait_exit(deadline_s=40) == 3, one.log
        (warning,) = one.wait_log("WARNING worker=0 is not ready: ")
        (line,) = one.wait_log("^pyfanout: no worker could start: ")
        assert re.search(f": {reason}{BAD[name]}$", line), line
        assert re.search(f": {reason}{BAD[name]}; meanwhile it gets no connections$", warning), warning
        assert "READY" not in one.log.replace("BOOTING", "")


def test_a_server_may_accept_late(server: MakeServer, tmp_path: Path) -> None:
    """It gets no client before that, who is then served. One that is told to stop meanwhile hears that when it
    accepts."""
    go = tmp_path / "go"
    ones = [server(), server()]
    for one in ones:
        one.start("own_servers:late", cwd=FOLDER, workers=1, wait=False, environ={"GO": str(go)})
    serves, stops = ones
    with connect(serves.address) as client:
        client.sendall(REQUEST)
        for one in ones:
            one.wait_log("WARNING worker=0 is not ready: its server does not accept")
            assert "READY" not in one.log
        stops.send(signal.SIGTERM)
        stops.wait_log("stopping now")
        go.touch()
        assert stops.wait_exit() == 0
        serves.wait_ready()
        assert b" 200 " in read_all(client)
    assert serves.stop() == 0


@pytest.mark.parametrize("app", ["asgi_with_metrics", "wsgi_with_metrics"])
def test_an_application_may_have_a_port_of_its_own(server: MakeServer, app: str) -> None:
    """Opened when the server starts."""
    options = {"factory": True} if app.startswith("wsgi") else {}
    one = server().start(f"own_servers:{app}", cwd=FOLDER, workers=1, **options)
    assert "app: metrics at " in one.out
    assert ask(one.address)["slot"] == 0
    assert one.stop() == 0


@pytest.mark.parametrize("name", ["OwnLoop", "EndlessLoop", "AroundTheLoop", "one_after_the_other", "sock_accept"])
def test_a_loop_of_the_servers_own(server: MakeServer, name: str) -> None:
    """`handle_request` waits for the next client, and no longer than the server's `timeout`; a drain ends the loop."""
    one = server().start(f"own_servers:{name}", cwd=FOLDER, workers=1, drain_timeout=60, ping_interval=0)
    for _ in range(3):
        with connect(one.address) as client:
            client.sendall(REQUEST)
            assert b" 200 " in read_all(client)
    if name == "EndlessLoop":
        one.wait_until(lambda: "app: nobody came" in one.out, "its timeout")
    else:
        (pid,) = one.workers
        one.wait_until(lambda: sleeps_on(pid), "it does not spin")
    assert one.stop() == 0
    if name.endswith("Loop"):
        assert "app: the loop is over" in one.out


def sleeps_on(pid: int) -> bool:
    """Not only between two looks."""
    for _ in range(20):
        if not is_asleep(pid):
            return False
        time.sleep(0.02)
    return True
