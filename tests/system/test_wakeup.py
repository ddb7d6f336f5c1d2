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
from harness import Server, connect, fds_of, kill, state_of

MakeServer = Callable[[], Server]

ANSWER_S = 5.0
"""A client that has no answer by then is stuck. A nudge takes some 10 ms."""

STEPS = (0.0, 0.0, 0.0, 20e-6, 50e-6, 100e-6, 200e-6)
"""Seconds between the connection and the signal: around the time that a hand-off takes."""


def inet_sockets(pid: int, own: int) -> int:
    """How many connections a worker holds."""
    return sum(link.startswith("socket:") for link in fds_of(pid).values()) - own


def pause(seconds: float) -> None:
    """Shorter than any sleep."""
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


def has_answer(sock: socket.socket, seconds: float) -> bool:
    return bool(select.select([sock], [], [], seconds)[0])


@pytest.mark.parametrize(
    ("kind", "policy"), [("act", "round-robin"), ("act_async", "round-robin"), ("act", "source-hash")]
)
def test_stopped(server: MakeServer, rng: random.Random, kind: str, policy: str) -> None:
    """Another worker answers, unless the stopped one has already taken it: that is seen in its descriptors.

    A stopped event loop, or a worker with its own channel, keeps what is in its channel until it goes on.
    """
    one = server().start(f"apps:{kind}", workers=3, policy=policy, log_level="info")
    address, workers = one.address, one.workers
    one.wait_idle()
    own = inet_sockets(workers[0], 0)
    for turn in range(300 if kind == "act" and policy == "round-robin" else 100):
        victim = workers[turn % 3] if rng.random() < 0.7 else rng.choice(workers)
        delay = rng.choice(STEPS)
        with connect(address, "identity") as client:
            pause(delay)
            os.kill(victim, signal.SIGSTOP)
            try:
                if not has_answer(client, 0.3):
                    pooled = kind == "act" and policy == "round-robin"
                    if pooled and inet_sockets(victim, own) == 0:
                        # Nobody has taken it, and two idle workers are there.
                        assert has_answer(client, ANSWER_S), f"turn {turn}: stuck in the pool, delay {delay}\n{one.log}"
            finally:
                os.kill(victim, signal.SIGCONT)
            assert has_answer(client, ANSWER_S), f"turn {turn}: stuck after SIGCONT, delay {delay}\n{one.log}"
            assert client.recv(4096).startswith(b"{")


@pytest.mark.parametrize(
    ("kind", "policy"), [("act", "round-robin"), ("act_async", "round-robin"), ("act", "source-hash")]
)
def test_killed(server: MakeServer, rng: random.Random, kind: str, policy: str) -> None:
    """The client is answered by another, or sees at once the end of a connection that the dead one had taken."""
    one = server().start(f"apps:{kind}", workers=3, policy=policy, log_level="info")
    address = one.address
    ended = 0
    turns = 200 if kind == "act" and policy == "round-robin" else 50
    for turn in range(turns):
        if len(one.workers) < 2:
            one.wait_until(lambda: len(one.workers) >= 2, "two workers")
        victim = rng.choice(one.workers)
        delay = rng.choice(STEPS)
        with connect(address, "identity") as client:
            pause(delay)
            kill(victim)
            assert has_answer(client, ANSWER_S), f"turn {turn}: stuck, delay {delay}\n{one.log}"
            try:
                ended += not client.recv(4096).startswith(b"{")
            except ConnectionResetError:
                ended += 1
    # The dead one can have taken one of three.
    assert ended < turns / 2


def test_stopped_and_killed_with_many_clients(server: MakeServer, rng: random.Random) -> None:
    """Stopped ones are killed after a while, in any order, while clients keep coming: all that nobody took are answered."""
    one = server().start("apps:act", workers=4, log_level="info")
    address = one.address
    for _ in range(20):
        clients = []
        victims = rng.sample(one.workers, min(2, len(one.workers)))
        for number in range(10):
            clients.append(connect(address, "identity"))
            if number == 3:
                for pid in victims:
                    os.kill(pid, signal.SIGSTOP)
        for pid in victims:
            kill(pid)
        lost = 0
        for client in clients:
            with client:
                assert has_answer(client, ANSWER_S), one.log
                try:
                    lost += not client.recv(4096)
                except ConnectionResetError:
                    lost += 1
        assert lost <= len(victims)
        one.wait_until(lambda victims=victims: not any(map(state_of, victims)), "they are reaped")
        one.wait_until(lambda: len(one.workers) >= 2, "two workers")
