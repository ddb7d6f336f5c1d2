"""A worker that is stopped or killed in the instant it is woken: its wake-up dies with it, its connection must not.

1,000 times in all, at random moments around that instant.
"""

from __future__ import annotations

import os
import random
import select
import signal
import socket
import time
from collections.abc import Callable

import pytest
from harness import Server, ask, connect, fds_of, kill

MakeServer = Callable[[], Server]

ANSWER_S = 5.0
"""A client that has no answer by then is stuck. A nudge takes some 10 ms."""

STEPS = (0.0, 0.0, 0.0, 20e-6, 50e-6, 100e-6, 200e-6)
"""Seconds between the connection and the signal: around the time that a hand-off takes."""

CASES = {"pool": ("act", "round-robin"), "loops": ("act_async", "round-robin"), "hash": ("act", "source-hash")}


def start(server: MakeServer, case: str, workers: int) -> Server:
    """No back-off: a worker that is killed ten times a second must be there again for the next turn."""
    handler, policy = CASES[case]
    return server().start(handler, script={}, min_uptime=0, workers=workers, policy=policy, drain_timeout=1)


def next_in_turn(one: Server, case: str, rng: random.Random) -> int:
    """Who will have the next connection, mostly. The one that came last in the pool's queue has the longest to wait."""
    if case == "hash":
        return int(ask(one.address, "identity")["pid"])  # it is always the same slot
    return rng.choice(one.workers)


def sockets_of(pid: int) -> int:
    return sum(link.startswith("socket:") for link in fds_of(pid).values())


def pause(seconds: float) -> None:
    """Shorter than any sleep."""
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


def has_answer(sock: socket.socket, seconds: float) -> bool:
    return bool(select.select([sock], [], [], seconds)[0])


def is_answered(sock: socket.socket) -> bool:
    """After `has_answer`: by the whole answer, not by the end."""
    try:
        return sock.recv(4096).startswith(b"{")
    except ConnectionResetError:
        return False


@pytest.mark.parametrize(("case", "turns"), [("pool", 500), ("loops", 100), ("hash", 100)])
def test_stopped(server: MakeServer, rng: random.Random, case: str, turns: int) -> None:
    """From the pool another worker answers, unless the stopped one has it already: its descriptors tell.

    What waits in a channel of its own is for the stopped one, when it goes on.
    """
    one = start(server, case, 2)
    one.wait_idle()
    own = sockets_of(one.workers[0])
    for turn in range(turns):
        victim = next_in_turn(one, case, rng)
        delay = rng.choice(STEPS)
        with connect(one.address, "identity") as client:
            pause(delay)
            os.kill(victim, signal.SIGSTOP)
            try:
                if case == "pool" and not has_answer(client, 0.05) and sockets_of(victim) == own:
                    assert has_answer(client, ANSWER_S), f"turn {turn}: stuck in the pool, delay {delay}\n{one.log}"
            finally:
                os.kill(victim, signal.SIGCONT)
            assert has_answer(client, ANSWER_S), f"turn {turn}: stuck after SIGCONT, delay {delay}\n{one.log}"
            assert is_answered(client)


@pytest.mark.parametrize(("case", "turns"), [("pool", 150), ("loops", 50), ("hash", 50)])
def test_killed(server: MakeServer, rng: random.Random, case: str, turns: int) -> None:
    """The client is answered by another, or sees at once the end of a connection that the dead one had taken."""
    one = start(server, case, 2)
    ended = 0
    for turn in range(turns):
        one.wait_ready_workers(2 + turn)  # one that dies while it boots is held back
        one.wait_until(lambda: len(one.workers) == 2, "two workers")
        victim = next_in_turn(one, case, rng)
        delay = rng.choice(STEPS)
        with connect(one.address, "identity") as client:
            pause(delay)
            kill(victim)
            assert has_answer(client, ANSWER_S), f"turn {turn}: stuck, delay {delay}\n{one.log}"
            ended += not is_answered(client)
    print(f"{ended} of {turns} ended without an answer")
    assert ended < turns * 0.8  # else the one that is killed does not matter, and something else is wrong


@pytest.mark.parametrize("case", CASES)
def test_stopped_then_killed(server: MakeServer, rng: random.Random, case: str) -> None:
    """While clients keep coming; whoever the dead ones had not begun is answered."""
    one = start(server, case, 3)
    turns = {"pool": 13, "loops": 6, "hash": 6}[case]
    for turn in range(turns):
        one.wait_ready_workers(3 + 2 * turn)
        victims = rng.sample(one.wait_workers(3), 2)
        clients = [connect(one.address, "identity") for _ in range(4)]
        for pid in victims:
            os.kill(pid, signal.SIGSTOP)
        clients += [connect(one.address, "identity") for _ in range(6)]
        for pid in victims:
            kill(pid)
        lost = 0
        for client in clients:
            with client:
                assert has_answer(client, ANSWER_S), one.log
                lost += not is_answered(client)
        if case != "loops":  # a loop may have taken all that were there
            assert lost <= len(victims), one.log
