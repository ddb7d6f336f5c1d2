"""What is lost, and for how long a service is away, when workers are killed, replaced, stopped or started again."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator

from bench import loadgen, procfs
from bench.clients import at_once, first_answer_s, held
from bench.field import Subject
from bench.loadgen import Answers, common
from bench.model import Context, Values
from bench.server import Server, ServerError
from bench.share import REPLACED_LIMIT_S
from bench.speed import IN_FLIGHT, WORKERS

LOSS_RATE = 500.0
KILL_EVERY_S = 0.5
UNDER_WAY_S = 0.5
"""Of load, before something is done to the server: its workers have all been asked by then."""
BEYOND_S = 1.0
"""Of load, after it was done."""
UNTIL_DONE_S = 12.0
"""It must be done by then: who is slower has failed."""
ASKED_FOR_ALL = 64
"""At once, in which every worker is found."""
Check = Callable[[Server, int, Answers], Values]
"""What else is to be said of so many kills."""


@contextlib.contextmanager
def loading(context: Context, server: Server, **knobs: loadgen.Knob) -> Iterator[subprocess.Popen[bytes]]:
    """The load generator before, beside and beyond what is done to the server meanwhile."""
    knobs = {"cpu": context.load, "duration": 3600, **knobs}
    with loadgen.beside(server.port, **knobs if "closed" in knobs else {"rate": LOSS_RATE, **knobs}) as run:
        time.sleep(UNDER_WAY_S)
        yield run
        time.sleep(BEYOND_S)
        run.terminate()


def _path(subject: Subject) -> str:
    return "work" if subject.has("works") else "fast"


def kills(
    context: Context,
    subject: Subject,
    seed: int,
    *,
    rate: float = LOSS_RATE,
    path: str = "",
    check: Check = lambda *_: {},
) -> Values:
    """Connections that got no whole answer, for each SIGKILL under load, of the worker whose turn it is."""
    with Server(subject, workers=WORKERS, cpu=context.server) as server:
        with loading(context, server, rate=rate, path=path or _path(subject), seed=seed + 1) as run:
            killed = sum(_kill_one(server.port) for _ in range(context.scale.kills))
        answers = loadgen.answers(run)
        try:
            at_once(server.port, 1, REPLACED_LIMIT_S)
        except OSError as error:
            raise ServerError(f"nobody serves any more after {killed} kills ({answers.errors})") from error
        more = check(server, killed, answers)
    lost = sum(answers.errors.values())
    return {"lost_per_kill": lost / max(killed, 1), "lost": lost, "kills": killed, **common(answers), **more}


def _kill_one(port: int) -> bool:
    """After a while; whether there was one."""
    time.sleep(KILL_EVERY_S)
    with contextlib.suppress(OSError), held(port, 1, KILL_EVERY_S) as (victim,):
        os.kill(victim, signal.SIGKILL)
        return True
    return False


def reload(context: Context, subject: Subject, seed: int, *, rate: float = LOSS_RATE, **knobs: loadgen.Knob) -> Values:
    """Connections that got no whole answer while all workers were replaced, as it is told to do that."""
    with Server(subject, workers=WORKERS, cpu=context.server) as server:
        with loading(context, server, rate=rate, seed=seed + 1, **knobs) as run:
            took_s = [_reload_s(server) for _ in range(context.scale.reloads)]
        answers = loadgen.answers(run)
    return {"lost": sum(answers.errors.values()), "took_s": max(took_s), **common(answers)}


def _reload_s(server: Server) -> float:
    """How long until all that serve now have exited."""
    old = at_once(server.port, ASKED_FOR_ALL)
    begin_s = time.monotonic()
    server.reload()
    for pid in old:
        if not procfs.exits(pid, begin_s + UNTIL_DONE_S - time.monotonic()):
            raise ServerError(f"a worker is not replaced after {UNTIL_DONE_S:g} s")
    return time.monotonic() - begin_s


def stop(context: Context, subject: Subject, seed: int) -> Values:
    """A closed loop of clients while the server is told to stop, and until it has: connections that were made, and got
    no whole answer. Who is refused because it no longer listens is not lost."""
    with Server(subject, workers=WORKERS, cpu=context.server) as server:
        with loading(context, server, closed=IN_FLIGHT, path=_path(subject), seed=seed + 1) as run:
            took_s = server.stopped_s(UNTIL_DONE_S)
        answers = loadgen.answers(run)
    lost = sum(count for kind, count in answers.errors.items() if kind != "refused")
    return {"lost": lost, "took_s": took_s, **common(answers)}


def restart(context: Context, subject: Subject, seed: int) -> Values:
    """Connections that got no answer, refused ones too, around a restart as a service manager does it."""
    with Server(subject, workers=WORKERS, cpu=context.server) as server:
        with loading(context, server, seed=seed + 1) as run:
            begin_s = time.monotonic()
            server.restart()
            took_s = time.monotonic() - begin_s
            if took_s > UNTIL_DONE_S:
                raise ServerError(f"was not back after {UNTIL_DONE_S:g} s")
        answers = loadgen.answers(run)
    return {"lost": sum(answers.errors.values()), "took_s": took_s, **common(answers)}


def recovery(_context: Context, subject: Subject, _seed: int) -> Values:
    """From SIGKILL of both workers at once to the first answer."""
    with Server(subject, workers=2) as server:
        workers = set[int]()
        while len(workers) < 2:
            workers |= at_once(server.port, 8)
        for pid in workers:
            os.kill(pid, signal.SIGKILL)
        return {"recovery_ms": first_answer_s(server.port, REPLACED_LIMIT_S) * 1e3, "errors": {}}


def respawn(_context: Context, subject: Subject, _seed: int) -> Values:
    """From SIGKILL of the only worker to the answer to a client that connects right after it, and waits."""
    with Server(subject, workers=1) as server:
        (old,) = at_once(server.port, 1)
        begin_s = time.monotonic()
        os.kill(old, signal.SIGKILL)
        (new,) = at_once(server.port, 1)
        took_s = time.monotonic() - begin_s
    if new == old:
        raise ServerError(f"worker {old} answered after its SIGKILL")
    return {"respawn_ms": took_s * 1e3, "errors": {}}
