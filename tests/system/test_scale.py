"""More and fewer workers while clients come; nobody notices."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable

from harness import Server, ask, collect, crowd, hold, is_over, kill, load, release, who

MakeServer = Callable[..., Server]


def slots(one: Server, count: int) -> set[int]:
    return {answer["slot"] for answer in who(collect(crowd(one.address, count, "identity")))}


def test_one_more_and_one_fewer(server: MakeServer, handler: str, options: dict) -> None:
    one = server().start(f"apps:{handler}", workers=1, **options)
    for count in (2, 3, 4):
        one.send(signal.SIGTTIN)
        one.wait_workers(count)
        one.wait_ready_workers(count)
    seen: set[int] = set()
    one.wait_until(lambda: seen.update(slots(one, 20)) or seen == {0, 1, 2, 3}, "all have a turn")
    for count in (3, 2, 1):
        one.send(signal.SIGTTOU)
        one.wait_workers(count)
    assert slots(one, 20) == {0}
    one.send(signal.SIGTTOU)
    assert ask(one.address)["slot"] == 0
    assert len(one.workers) == 1, "there is always one"
    assert "WARNING" not in one.log


def test_down_loses_nobody(server: MakeServer, handler: str, options: dict) -> None:
    """The newest slot goes first, and finishes what it has begun."""
    one = server().start(f"apps:{handler}", workers=2, **options)
    held = [hold(one.address) for _ in range(2)]
    one.send(signal.SIGTTOU)
    one.wait_log("scaling from 2 to 1")
    waiting = crowd(one.address, 10, "identity")
    for sock in held:
        assert release(sock) == b"released\n"
    assert {answer["slot"] for answer in who(collect(waiting))} <= {0, 1}
    one.wait_workers(1)
    assert slots(one, 10) == {0}


def test_up_and_down_under_load(server: MakeServer, handler: str, options: dict) -> None:
    one = server().start(f"apps:{handler}", workers=2, **options)
    descriptors = []
    with load(one.address):
        for _ in range(5):
            for signum, count in ((signal.SIGTTIN, 3), (signal.SIGTTIN, 4), (signal.SIGTTOU, 3), (signal.SIGTTOU, 2)):
                one.send(signum)
                one.wait_workers(count)
    for _ in range(3):
        one.send(signal.SIGTTIN)
        one.wait_workers(3)
        one.send(signal.SIGTTOU)
        one.wait_workers(2)
        one.wait_idle_master()
        descriptors.append(len(os.listdir(f"/proc/{one.pid}/fd")))
    assert len(set(descriptors)) == 1
    assert "WARNING" not in one.log


def test_a_slot_that_is_scaled_away_is_not_replaced(server: MakeServer, handler: str, options: dict) -> None:
    one = server().start(f"apps:{handler}", workers=2, **options)
    with contextlib.ExitStack() as held:
        for _ in range(2 * options.get("threads", 1)):  # all threads: each worker has something to finish
            held.enter_context(hold(one.address))
        one.send(signal.SIGTTOU)
        one.wait_log("scaling from 2 to 1")
        leaving = one.wait_log("READY->DRAINING")[0]
        pid = next(pid for pid in one.workers if f"pid={pid} " in leaving)
        kill(pid)
        one.wait_until(lambda: is_over(pid), "it is gone")
    assert len(one.wait_workers(1)) == 1


def test_scaling_while_it_reloads(server: MakeServer, handler: str, options: dict) -> None:
    one = server().start(f"apps:{handler}", workers=3, min_uptime=0, **options)
    old = one.workers
    with load(one.address):
        one.send(signal.SIGHUP)
        for number, (signum, change) in enumerate(
            [(signal.SIGTTOU, "3 to 2"), (signal.SIGTTIN, "2 to 3"), (signal.SIGTTOU, "3 to 2")]
        ):
            one.send(signum)  # one after the other: two of a kind that wait are one
            one.wait_log(f"scaling from {change}", 1 + (number == 2))
        one.wait_log("reloaded: ")
        one.wait_workers(2, gone=old)
