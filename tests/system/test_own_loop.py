"""A program that has a loop of its own, and `Master.fileno`."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from harness import ask_plain
from master_script import run

EXAMPLE = Path(__file__).parents[2] / "examples/own_loop.py"


def test_the_example_serves_replaces_and_stops(tmp_path: Path) -> None:
    code = EXAMPLE.read_text().replace("127.0.0.1:8000", "127.0.0.1:0")
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as shown:
        try:
            assert shown.stderr is not None
            lines = iter(shown.stderr.readline, "")
            port = next(int(found[1]) for line in lines if (found := re.search(r"listening on 127.0.0.1:(\d+)", line)))
            for _ in range(20):
                assert ask_plain(port).endswith(b"Hello\n")
            shown.send_signal(signal.SIGTERM)
            out, log = shown.communicate(timeout=20)
        finally:
            shown.kill()
    assert shown.returncode == 0, out + log


def test_the_descriptor_tells_of_all_there_is_to_do(tmp_path: Path) -> None:
    """Connections, deaths, delays, pings, calls from outside; and it is silent when there is nothing."""
    run(
        tmp_path,
        """
        import select
        poll = select.poll()

        def drive(condition, what):
            end = time.monotonic() + 20
            while not condition():
                assert time.monotonic() < end, (what, master.workers)
                if poll.poll(100):
                    assert master.step(0), what

        with pyfanout.Master("app:handler", workers=2, min_uptime=2, **options) as master:
            poll.register(master.fileno(), select.POLLIN)
            drive(lambda: states(master) == ["READY", "READY"], "ready")
            drive(lambda: all(worker.last_pong is not None for worker in master.workers), "pongs")
            for generation in (2, 3):  # the second time after a delay
                os.kill(master.workers[0].pid, signal.SIGKILL)
                drive(lambda: master.workers[0].generation == generation and states(master) == ["READY"] * 2, "again")
            master.reload(wait=False)
            drive(lambda: [worker.generation for worker in master.workers] == [4, 2], "reloaded")
            host, port = master.addresses[0].rsplit(":", 1)
            clients = [socket.create_connection((host, int(port)), 20) for _ in range(100)]
            for client in clients:
                client.sendall(b"x")
            drive(lambda: all(select.select([client], [], [], 0)[0] for client in clients), "answers")
            for client in clients:
                client.close()
            drive(lambda: not sum(worker.in_flight for worker in master.workers), "nothing in flight")
            steps = 0
            end = time.monotonic() + 1
            while time.monotonic() < end:
                if poll.poll(100):
                    steps += 1
                    master.step(0)
            assert steps < 30, steps  # a round of pings: a timer, two pongs
            master.stop()
            while not poll.poll(20_000) or master.step(0):
                pass
        """,
    )


def test_one_fork_each_time_the_loop_comes_round(tmp_path: Path) -> None:
    """At the start, to more workers, after many deaths, in a reload: clients are served in between."""
    run(
        tmp_path,
        """
        forks = 0

        def count(notice):
            global forks
            forks += 1

        def drive(condition):
            global forks
            end = time.monotonic() + 30
            while not condition():
                assert time.monotonic() < end, master.workers
                before = forks
                assert master.step(1)
                assert forks <= before + 1, "two in one"

        with pyfanout.Master("app:handler", workers=4, min_uptime=0, reload_batch=8, **options) as master:
            master.on("fork", count)
            drive(lambda: states(master) == ["READY"] * 4)
            master.scale(12, wait=False)
            drive(lambda: states(master) == ["READY"] * 12)
            for worker in master.workers:
                os.kill(worker.pid, signal.SIGKILL)
            drive(lambda: [worker.generation for worker in master.workers] == [2] * 12 and
                          states(master) == ["READY"] * 12)
            master.reload(wait=False)
            drive(lambda: [worker.generation for worker in master.workers] == [3] * 12)
            assert forks == 36
            master.stop()
            master.run()
        """,
    )


@pytest.mark.parametrize("when", ["before", "after", "removed"])
def test_a_loop_with_signals_of_its_own(tmp_path: Path, when: str) -> None:
    """asyncio takes the interpreter's one wake-up descriptor, and removes any other: all signals reach the master and
    the loop, and neither waits for another event."""
    run(
        tmp_path,
        f"""
        import asyncio
        when = {when!r}

        async def main():
            loop = asyncio.get_running_loop()
            news, own = asyncio.Queue(), asyncio.Event()

            async def hear(event):
                while await asyncio.wait_for(news.get(), 20) != event:
                    pass

            async def hear_own():
                os.kill(os.getpid(), signal.SIGUSR2)
                await asyncio.wait_for(own.wait(), 20)
                own.clear()

            if when == "before":
                loop.add_signal_handler(signal.SIGUSR2, own.set)
            with pyfanout.Master("app:handler", workers=1, ping_interval=0, **options) as master:
                over = loop.create_future()

                def step():
                    if not master.step(0):
                        loop.remove_reader(master.fileno())
                        over.set_result(None)

                for event in ("ready", "reload"):
                    master.on(event, lambda notice: news.put_nowait(notice.event))
                loop.add_reader(master.fileno(), step)
                await hear("ready")
                if when != "before":
                    loop.add_signal_handler(signal.SIGUSR2, own.set)
                await hear_own()
                if when == "removed":
                    loop.remove_signal_handler(signal.SIGUSR2)
                os.kill(os.getpid(), signal.SIGHUP)
                await hear("reload")
                if when != "removed":
                    await hear_own()
                os.kill(os.getpid(), signal.SIGTERM)
                await asyncio.wait_for(over, 20)
            if when != "removed":
                await hear_own()

        asyncio.run(main())
        """,
    )


def test_a_loop_that_rests_while_the_master_runs(tmp_path: Path) -> None:
    """Its signals reach it afterwards."""
    run(
        tmp_path,
        """
        import asyncio

        async def main():
            loop, own = asyncio.get_running_loop(), asyncio.Event()
            loop.add_signal_handler(signal.SIGUSR2, own.set)
            with pyfanout.Master("app:handler", workers=1, ping_interval=0, **options) as master:
                until_ready(master)
                os.kill(os.getpid(), signal.SIGUSR2)
                os.kill(os.getpid(), signal.SIGTERM)
                master.run()
            await asyncio.wait_for(own.wait(), 20)

        asyncio.run(main())
        """,
    )
