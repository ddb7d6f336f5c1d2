"""Servers on machines whose pages are larger: see `pages`. Each worker there lives as it does here."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import Server, ask, kill
from master_script import run
from pages import SIZES, larger

WORKERS = 6
"""More than fit on one page, if a score had 4 KiB."""


@pytest.fixture(params=SIZES)
def environment(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, str]:
    """Of a machine with such pages."""
    return larger(tmp_path, request.param)


@pytest.mark.parametrize("handler", ["act", "act_async"])
def test_a_server(server: Callable[..., Server], environment: dict[str, str], handler: str) -> None:
    """Workers live, fork a child that ends their connection once more, die, and are replaced; and leave."""
    one = server().start(handler, script={}, environ=environment, workers=WORKERS, min_uptime=0)
    first = one.wait_workers(WORKERS)
    one.wait_all_serve(first)
    forked = {ask(one.address, "fork return")["pid"] for _ in range(2 * WORKERS)}
    assert forked <= set(first)
    for pid in first[1:4]:
        kill(pid)
    second = one.wait_workers(WORKERS, gone=first[1:4])
    one.wait_ready_workers(WORKERS + 3)
    one.wait_all_serve(second)
    one.send(signal.SIGHUP)
    one.wait_log(r"reloaded: 6 workers are new")
    third = one.wait_workers(WORKERS, gone=second)
    one.wait_all_serve(third)
    assert one.stop() == 0
    ended = [line for line in one.log.splitlines() if "in progress" in line and "SIGKILL" not in line]
    assert not ended, "no worker ends that was not told to"


def test_a_dispatcher(environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    said = run(
        tmp_path,
        """
        import mmap

        def handler(conn, addr):
            conn.recv(99)
            conn.sendall(b"%d" % os.getpid())

        async def coroutine(reader, writer):
            await reader.read(99)
            writer.write(b"%d" % os.getpid())
            await writer.drain()

        def fork(dispatcher, app):
            pid = os.fork()
            if pid == 0:
                os._exit(dispatcher.serve(app))
            return pid

        def answered():
            host, port = dispatcher.addresses[0].rsplit(":", 1)
            with socket.create_connection((host, int(port)), 20) as client:
                client.sendall(b"x")
                return int(client.recv(99))

        def until_all_have_answered(pids):
            missing, end = set(pids), time.monotonic() + 20
            while missing:
                assert time.monotonic() < end, missing
                missing.discard(answered())

        with pyfanout.Dispatcher(**options) as dispatcher:
            workers = [fork(dispatcher, app) for app in (handler, coroutine) * 3]
            until_all_have_answered(workers)
            for number in (1, 4):
                os.kill(workers[number], signal.SIGKILL)
                os.waitpid(workers[number], 0)
                workers[number] = fork(dispatcher, coroutine)
            until_all_have_answered(workers)
        print(mmap.PAGESIZE, [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in workers])
        """,
    )
    assert said == f"{environment['PAGE_BYTES']} {[0] * WORKERS}\n"
