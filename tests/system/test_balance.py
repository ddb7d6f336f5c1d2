"""Who gets how many."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Callable

import pytest
from harness import Server, ask, close_all, connect, hold, read_line, release

MakeServer = Callable[[], Server]


@pytest.mark.parametrize("policy", ["round-robin", "least-connections"])
@pytest.mark.parametrize("handler", ["act", "act_async"])
def test_one_after_the_other_to_idle_workers_is_exactly_fair(server: MakeServer, handler: str, policy: str) -> None:
    one = server().start(f"apps:{handler}", workers=4, policy=policy)
    one.favour()
    address = one.address
    counts: Counter[int] = Counter()
    for _ in range(400):
        one.wait_idle()
        counts[ask(address, "identity")["pid"]] += 1
    assert counts == dict.fromkeys(one.workers, 100)


@pytest.mark.parametrize("policy", ["round-robin", "least-connections"])
def test_event_loops_are_served_in_turn_however_fast_clients_come(server: MakeServer, policy: str) -> None:
    """The client that has seen its connection end is not counted any more when it comes back."""
    one = server().start("apps:act_async", workers=4, policy=policy)
    address = one.address
    counts = Counter(ask(address, "identity")["pid"] for _ in range(400))
    assert counts == dict.fromkeys(one.workers, 100)


@pytest.mark.parametrize("policy", ["round-robin", "least-connections"])
def test_held_connections_are_spread_evenly(server: MakeServer, policy: str) -> None:
    one = server().start("apps:act_async", workers=4, policy=policy)
    held = [hold(one.address) for _ in range(200)]
    try:
        # Each worker's descriptors: what it had, and its share.
        assert [count_sockets(pid) - 5 for pid in one.workers] == [50, 50, 50, 50]
    finally:
        close_all(held)


def count_sockets(pid: int) -> int:
    """Of a worker: channel, control and asyncio's own pair, and its connections; stdin and its like are none."""
    links = [os.readlink(f"/proc/{pid}/fd/{name}") for name in os.listdir(f"/proc/{pid}/fd")]
    return sum(link.startswith("socket:") for link in links) + 1


def test_a_busy_blocking_worker_gets_nothing_while_others_are_idle(server: MakeServer) -> None:
    one = server().start("apps:act", workers=3)
    address = one.address
    held = [hold(address), hold(address)]
    try:
        answers = [ask(address, "identity")["pid"] for _ in range(30)]
        assert len(set(answers)) == 1
    finally:
        assert [release(sock) for sock in held] == [b"released\n"] * 2


def test_nobody_waits_behind_a_blocked_loop(server: MakeServer) -> None:
    one = server().start("apps:act_async", workers=2, ping_timeout=60)
    one.expect("in progress", "SIGKILL")
    with connect(one.address, "stick sleep"):
        (pid,) = one.wait_log(r"stuck pid=\d+")
        stuck = int(pid.rpartition("=")[2])
        assert {ask(one.address, "identity")["pid"] for _ in range(20)} == {*one.workers} - {stuck}
        os.kill(stuck, 9)


@pytest.mark.parametrize("handler", ["act", "act_async"])
def test_least_connections_prefers_the_emptiest(server: MakeServer, handler: str) -> None:
    one = server().start(f"apps:{handler}", workers=2, policy="least-connections")
    address = one.address
    first = connect(address, "hold")
    try:
        assert read_line(first) == b"held\n"
        assert len({ask(address, "identity")["pid"] for _ in range(20)}) == 1
    finally:
        assert release(first) == b"released\n"


@pytest.mark.parametrize("policy", ["round-robin", "least-connections"])
def test_a_loop_at_max_connections_gets_nothing_while_others_are_idle(server: MakeServer, policy: str) -> None:
    one = server().start("apps:act_async", workers=2, policy=policy, max_connections=1)
    with hold(one.address) as held:
        answers = [ask(one.address, "identity", timeout=5)["pid"] for _ in range(10)]
        assert len(set(answers)) == 1
        assert release(held) == b"released\n"


def test_a_loop_holds_max_connections_and_no_more(server: MakeServer) -> None:
    """The others wait until one has left; all are served."""
    one = server().start("apps:act_async", workers=1, max_connections=3)
    socks = [hold(one.address) for _ in range(3)]
    waiting = connect(one.address, "identity")
    waiting.settimeout(0.3)
    with pytest.raises(TimeoutError):
        waiting.recv(1)
    assert release(socks.pop()) == b"released\n"
    waiting.settimeout(20)
    assert read_line(waiting).startswith(b"{")
    waiting.close()
    assert [release(sock) for sock in socks] == [b"released\n"] * 2


@pytest.mark.parametrize("handler", ["act", "act_async"])
def test_source_hash_sticks_to_the_address(server: MakeServer, handler: str) -> None:
    one = server().start(f"apps:{handler}", workers=4, policy="source-hash")
    address = one.address
    seen: dict[str, set[int]] = defaultdict(set)
    for _ in range(5):
        for last in range(1, 41):
            source = f"127.0.0.{last}"
            answer = ask(address, "whoami", source=source)
            assert answer["addr"].startswith(f"('{source}', ")
            seen[source].add(answer["slot"])
    assert all(len(slots) == 1 for slots in seen.values()), seen
    shares = Counter(next(iter(slots)) for slots in seen.values())
    assert len(shares) == 4  # 40 addresses; that one of 4 workers has none has odds of 1 in 25,000
    # The slot is what counts: a new worker in it gets the same clients.
    victim = one.workers[0]
    os.kill(victim, 9)
    one.wait_workers(4, gone=[victim])
    one.wait_ready_workers(5)
    for source, slots in seen.items():
        assert ask(address, "whoami", source=source)["slot"] in slots
