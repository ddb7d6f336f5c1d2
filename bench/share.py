"""Who gets the connections: how evenly they are spread over the workers."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections import Counter
from collections.abc import Collection, Iterator

from bench import loadgen
from bench.clients import held
from bench.field import Subject
from bench.loadgen import common
from bench.model import Context, Values
from bench.server import Server

HELD = 1000
REPLACED_LIMIT_S = 5.0
SETTLE_S = 0.5
"""For what a server does when those that were there before have gone."""
ASKED_AGAIN_S = 0.25
"""Some servers lose those who come just after a kill, and let them wait."""


def balance(
    context: Context, subject: Subject, seed: int, *, count: int = HELD, rate: float | None = None, workers: int = 4
) -> Values:
    """Connections that come so many a second, or at once, and stay: what the fullest worker has, to its share."""
    with _settled(context, subject, workers) as server:
        answers = loadgen.load(server.port, cpu=context.load, hold=count, rate=rate, seed=1 + seed, timeout=30)
    if answers.errors:
        return {"failed": f"not all could be held: {answers.errors}", "errors": answers.errors}
    return _unevenness(answers["workers"].values(), workers) | common(answers)


@contextlib.contextmanager
def _settled(context: Context, subject: Subject, workers: int) -> Iterator[Server]:
    """Where those who asked whether it has started have gone, and it knows that."""
    with Server(subject, workers=workers, cpu=context.server) as server:
        time.sleep(SETTLE_S)
        yield server


def _unevenness(by_worker: Collection[int], workers: int) -> Values:
    shares = [0] * (workers - len(by_worker)) + sorted(by_worker)
    return {"max_to_mean": max(shares) * workers / sum(shares), "shares": shares}


def one_by_one(context: Context, subject: Subject, _seed: int, *, count: int = HELD, workers: int = 2) -> Values:
    """Connections that come one after the other, and stay."""
    with _settled(context, subject, workers) as server, held(server.port, count) as pids:
        return _unevenness(Counter(pids).values(), workers) | {"errors": {}}


def sequence(context: Context, subject: Subject, _seed: int, *, count: int, workers: int = 4) -> Values:
    """One connection after the other to idle workers: how far from exactly its share one is."""
    with _settled(context, subject, workers) as server:
        answers = loadgen.load(server.port, cpu=context.load, closed=1, count=count, duration=20)
    shares = [*answers["workers"].values(), *[0] * (workers - len(answers["workers"]))]
    return {"off_by": max(abs(share - count // workers) for share in shares), **common(answers)}


def killed_between(_context: Context, subject: Subject, _seed: int, *, count: int = HELD, workers: int = 4) -> Values:
    """Half of them, then a worker is killed; who was with it comes again, then the other half."""

    def is_replaced() -> bool:
        with contextlib.suppress(OSError), held(server.port, 8, ASKED_AGAIN_S) as answers:
            return not set(answers) <= set(before)
        return False

    with Server(subject, workers=workers) as server, held(server.port, count // 2) as before:
        os.kill(before[0], signal.SIGKILL)
        server.wait(is_replaced, "has no other worker after a kill", REPLACED_LIMIT_S)
        kept = Counter(pid for pid in before if pid != before[0])
        with held(server.port, count - kept.total()) as after:
            return _unevenness((kept + Counter(after)).values(), workers) | {"errors": {}}
