"""The load generator is checked before it is trusted: a server that stalls must be seen to stall."""

from __future__ import annotations

import os
import signal
import time

from bench import loadgen
from bench.field import BY_NAME
from bench.runner import choose_cores
from bench.server import Server, ServerError

RATE = 500.0
DURATION_S = 1.0
BEFORE_S = 0.3
STALL_S = 0.2
"""A fifth of the run: so a tenth of all wait for half of it or more."""


def check() -> str:
    """Stop the only worker for a while; what the load generator saw, in words. Raises ServerError if it did not: one
    that waits for an answer before it asks again would count one slow request instead of everybody's wait."""
    loadgen.build()
    serves, asks = choose_cores()
    with Server(BY_NAME["shared listener asyncio"], workers=1, cpu=serves) as server:
        (worker,) = server.workers()
        run = loadgen.start(server.port, cpu=asks, rate=RATE, duration=DURATION_S, seed=1)
        time.sleep(BEFORE_S)
        os.kill(worker, signal.SIGSTOP)
        time.sleep(STALL_S)
        os.kill(worker, signal.SIGCONT)
        answers = loadgen.answers(run)
    most_s, p90_s = answers.fast_ns("max") / 1e9, answers.fast_ns("p90") / 1e9
    said = f"a stall of {STALL_S * 1e3:.0f} ms was seen as p90 {p90_s * 1e3:.0f} ms, at most {most_s * 1e3:.0f} ms"
    if most_s < 0.9 * STALL_S or p90_s < 0.3 * STALL_S:
        raise ServerError(f"the load generator is not to be trusted: {said}")
    return said
