"""The core of it all, by a server that is not root's: nothing here may need a privilege."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Callable

import pytest
from harness import NOBODY, Server, ask, collect, crowd, freeze, hold, kill, release, who

MakeServer = Callable[[], Server]


def start(server: MakeServer, handler: str, **options: object) -> Server:
    one = server().start(handler, script={"uid": NOBODY, "on_worker_exit": "exited"}, **options)  # type: ignore[arg-type]
    answer = ask(one.address)
    assert answer["uid"] == (NOBODY if os.getuid() == 0 else os.getuid())
    return one


def test_the_life_of_a_server(server: MakeServer, handler: str, options: dict) -> None:
    one = start(server, handler, workers=3, **options)
    seen: set[int] = set()
    one.wait_until(lambda: seen.add(ask(one.address)["pid"]) or seen == set(one.workers), "each has its turn")
    # killed with a queue behind it
    before = one.workers
    for pid in before:
        freeze(pid)
    queued = crowd(one.address, 50, "identity")
    for pid in before:
        kill(pid)
    answers = who(collect(queued))
    assert answers.count(None) == 0
    one.wait_workers(3, gone=before)
    one.wait_ready_workers(6)  # one that boots does not drain
    # drained
    victim = one.workers[0]
    os.kill(victim, signal.SIGTERM)
    one.wait_workers(3, gone=[victim])
    # stopped, with a handler at work
    one.wait_ready_workers(7)
    with hold(one.address) as held:
        one.send(signal.SIGTERM)
        one.wait_log("graceful stop")
        assert release(held) == b"released\n"
    assert one.wait_exit() == 0
    one.wait_nobody()
    assert one.log.count("app: exited") == 4


@pytest.mark.parametrize("policy", ["least-connections", "source-hash"])
def test_policies(server: MakeServer, handler: str, options: dict, policy: str) -> None:
    one = start(server, handler, workers=2, policy=policy, **options)
    counts = Counter(ask(one.address)["pid"] for _ in range(20))
    assert set(counts) <= set(one.workers)
    assert None not in who(collect(crowd(one.address, 100)))
    assert one.stop(signal.SIGINT) == 0


@pytest.mark.parametrize("handler", ["act", "act_async"])
def test_a_low_limit_of_descriptors(server: MakeServer, handler: str) -> None:
    """Its hard limit is low: the channels are made so small that they fit."""
    one = server().start(handler, script={"uid": NOBODY, "nofile": 64}, workers=2)
    assert None not in who(collect(crowd(one.address, 200, "identity")))
    assert one.stop() == 0
