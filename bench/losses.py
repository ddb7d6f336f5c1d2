"""How evenly connections are spread over workers; what is lost, and for how long a service is away, when workers are
killed, replaced, stopped or started again."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator

from bench import loadgen, procfs
from bench.clients import at_once, first_answer_s, held
from bench.field import Subject
from bench.loadgen import Answers, Knob, common
from bench.model import Context, Values
from bench.server import SETTLE_S, Server, ServerError
from bench.speed import IN_FLIGHT, WORKERS

HELD = 1000
REPLACED_LIMIT_S = 5.0
ASKED_AGAIN_S = 0.25
"""Some servers lose clients that come just after a kill, and let them wait."""
LOSS_RATE = 500.0
KILL_EVERY_S = 0.5
UNDER_WAY_S = 0.5
"""Of load, before something is done to the server: its workers have all been asked by then."""
BEYOND_S = 1.0
"""Of load, after it was done."""
UNTIL_DONE_S = 12.0
"""It must be done by then: a subject that is slower has failed."""
ASKED_FOR_ALL = 64
"""At once, in which every worker is found."""
Check = Callable[[Server, int, Answers], Values]
"""What else is to be said of so many kills."""


def balance(context: Context, subject: Subject, seed: int, *, count: int = HELD, rate: float | None = None) -> Values:
    """Connections that come so many a second, or at once, and stay: what the fullest worker has, to its share."""
    with _settled(context, subject, WORKERS) as server:
        answers = loadgen.load(server.port, cpu=context.load, hold=count, rate=rate, seed=1 + seed, timeout=30)
    if answers.errors:
        return {"failed": f"not all could be held: {answers.errors}", "errors": answers.errors}
    return _unevenness(answers["workers"].values(), WORKERS) | common(answers)


@contextlib.contextmanager
def _settled(context: Context, subject: Subject, workers: int) -> Iterator[Server]:
    """Where the clients that asked whether it has started have gone, and it knows that."""
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
    shares = _unevenness(answers["workers"].values(), workers)["shares"]
    return {"off_by": max(abs(share - count // workers) for share in shares), **common(answers)}


def killed_between(_context: Context, subject: Subject, _seed: int, *, count: int = HELD, workers: int = 4) -> Values:
    """Half of them, then a worker is killed; its clients come again, then the other half."""

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


@contextlib.contextmanager
def loading(context: Context, server: Server, **knobs: Knob) -> Iterator[Answers]:
    """The load generator before, beside and beyond what is done to the server meanwhile; its answers are there when it
    has ended."""
    rate = {} if "closed" in knobs else {"rate": LOSS_RATE}
    found, run = Answers(), loadgen.start(server.port, cpu=context.load, duration=3600, **rate | knobs)
    try:
        time.sleep(UNDER_WAY_S)
        yield found
        time.sleep(BEYOND_S)
        run.terminate()
        found.update(loadgen.answers(run))
    except BaseException:
        with run:
            run.kill()
        raise


def _path(subject: Subject) -> str:
    return "work" if subject.has("works") else "fast"


def kills(context: Context, subject: Subject, seed: int, *, check: Check | None = None, **knobs: Knob) -> Values:
    """Connections that got no whole answer, for each SIGKILL under load, of the next worker in turn."""
    with Server(subject, workers=WORKERS, cpu=context.server) as server:
        with loading(context, server, seed=seed + 1, **{"path": _path(subject)} | knobs) as answers:
            killed = sum(_kill_one(server.port) for _ in range(context.scale.kills))
        server.wait(server.answers, f"does not serve any more after {killed} kills", REPLACED_LIMIT_S)
        more = check(server, killed, answers) if check else {}
    lost = answers["errors_total"]
    return {"lost_per_kill": lost / max(killed, 1), "lost": lost, "kills": killed, **common(answers), **more}


def _kill_one(port: int) -> bool:
    """After a while; whether there was one."""
    time.sleep(KILL_EVERY_S)
    with contextlib.suppress(OSError), held(port, 1, KILL_EVERY_S) as (victim,):
        os.kill(victim, signal.SIGKILL)
        return True
    return False


def _while(context: Context, subject: Subject, seed: int, act: Callable[[Server], float], **knobs: Knob) -> Values:
    """Connections that got no answer, or not all of it, while this is done to a server, which says how long it took."""
    with (
        Server(subject, workers=WORKERS, cpu=context.server) as server,
        loading(context, server, seed=seed + 1, **knobs) as answers,
    ):
        took_s = act(server)
    return {"lost": answers["errors_total"], "took_s": took_s, **common(answers)}


def reload(context: Context, subject: Subject, seed: int, **knobs: Knob) -> Values:
    """What is lost while all workers are replaced, as it is told to do that; the longest of several."""
    times = range(context.scale.reloads)
    return _while(context, subject, seed, lambda server: max(_reload_s(server) for _ in times), **knobs)


def _reload_s(server: Server) -> float:
    """How long until all that serve now have exited."""
    old = at_once(server.port, ASKED_FOR_ALL)
    begin_s = time.monotonic()
    server.reload()
    if not procfs.exit_before(begin_s + UNTIL_DONE_S, old):
        raise ServerError(f"a worker is not replaced after {UNTIL_DONE_S:g} s")
    return time.monotonic() - begin_s


def stop(context: Context, subject: Subject, seed: int) -> Values:
    """A closed loop of clients while the server is told to stop, and until it has: connections that were made, and got
    no whole answer. A client that is refused because it no longer listens is not lost."""
    knobs = {"closed": IN_FLIGHT, "path": _path(subject)}
    found = _while(context, subject, seed, lambda server: server.stopped_s(UNTIL_DONE_S), **knobs)
    return found | {"lost": found["lost"] - found["errors"].get("refused", 0)}


def restart(context: Context, subject: Subject, seed: int) -> Values:
    """What is lost, refused ones too, around a restart as a service manager does it."""
    return _while(context, subject, seed, lambda server: server.restarted_s(UNTIL_DONE_S))


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
