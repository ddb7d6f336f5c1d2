"""A soak: as many connections as a service has in a day, and then as much memory and as many descriptors as before.

20,000 of each kind in `make test`, SOAK connections in `make soak`: 10 million are 116 a second for 24 hours. Every
client is counted: it got a whole answer.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import Server, fds_of

from bench import loadgen, procfs

MakeServer = Callable[[], Server]

SOAK = int(os.environ.get("SOAK", "20000"))
PARTS = 10
"""The first one warms up: arenas, caches, lazy imports."""
AT_ONCE = 32
PART_S = 900
GROWTH_BYTES = 1 << 20
"""Of private memory, of each process, in all the parts after the first. One leaked byte a connection would be ten times
that in 10 million."""

HANDLERS = {"blocking": "blocking", "asyncio": "streams"}


def private_bytes(pid: int) -> int:
    """What is its own alone; shared pages that are copied late are few, and are over after the first part."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) * 1024


@pytest.mark.parametrize("kind", HANDLERS)
def test_soak(server: MakeServer, kind: str, rng: random.Random) -> None:
    loadgen.build()
    one = server().start(f"bench.workloads:{HANDLERS[kind]}", workers=2, backlog=4096, cwd=loadgen.HERE.parent)
    port = int(one.address.rpartition(":")[2])
    pids = (one.pid, *one.workers)

    def ask(count: int) -> None:
        answers = loadgen.load(
            port, closed=AT_ONCE, count=count, duration=PART_S, run_s=PART_S, seed=rng.getrandbits(32)
        )
        assert answers["answered"] == count, answers.errors
        assert not answers.errors

    def open_fds() -> list[int]:
        return [len(fds_of(pid)) for pid in pids]

    fds = open_fds()
    ask(SOAK // PARTS)
    one.wait_idle()
    before = {pid: private_bytes(pid) for pid in pids}
    for _ in range(PARTS - 1):
        ask(SOAK // PARTS)
    one.wait_idle()
    assert (one.pid, *one.workers) == pids, "somebody died"
    grown = {pid: private_bytes(pid) - before[pid] for pid in pids}
    print(f"{kind}: {SOAK:,} connections; KiB grown: {[value // 1024 for value in grown.values()]}")
    one.wait_until(lambda: open_fds() == fds, "what lingers is closed")
    assert max(grown.values()) < GROWTH_BYTES
    used = [procfs.cpu_ns(pid) / 1e9 for pid in pids]
    print(f"CPU seconds: {[round(each, 1) for each in used]}")
