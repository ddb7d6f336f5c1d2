"""The questions, their subjects, and their runs: `python -m bench dispatch`, `peers`, `life` or `embed`.

Of each its words, its unit, its number, its measure, and its subjects.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from operator import sub, truediv
from typing import Any, NamedTuple

from bench import life, losses, speed
from bench.field import BY_NAME, FIELD, HANDLERS
from bench.model import Asked, Measure, Question, Scale
from bench.server import ServerError
from bench.speed import HOLDS, ONE_IN_100, RATES, SHAPES, SHARES, SIZES

FASTER: dict[str, Any] = {"less_is_better": False, "starts": True}


def _asked(number: str = "{:.3f}", of: Callable[[float, float], float] | None = None, **bounds: float) -> Asked:
    return Asked(number, {word.replace("_", " "): bound for word, bound in bounds.items()}, of)


# ---- dispatch: beside what it replaces -----------------------------------------------------------------------------

OURS = {each: (f"pyfanout {each}, least-connections",) for each in HANDLERS}
REUSEPORT = {each: (*OURS[each], f"SO_REUSEPORT {each}") for each in HANDLERS}
SHARED = (*OURS["blocking"], "shared listener blocking")
EVEN = _asked("{:.4f}", at_most=1.01)
ONE_CORE = partial(speed.throughput, one_core=True)
NEVER = _asked("{:.0f}", no_round_over=0)


def _speed(handler: str, what: str, where: str, asked: Asked) -> Question:
    text = f"conn/s, {what}, 2 workers, {where.replace('-', ' ')}, to SO_REUSEPORT"
    measure = partial(speed.throughput, one_core=where == "one-core")
    more = FASTER | {"asked": asked}
    return Question(f"throughput-{handler}-{where}", text, "conn/s", "per_s", measure, REUSEPORT[handler], **more)


def _master(handler: str) -> Question:
    text, asked = f"master CPU per 100,000 connections, {handler}, one core", _asked("{:.3f} s", at_most=0.30)
    more = {"measured_by": f"throughput-{handler}-one-core", "asked": asked}
    return Question(f"master-{handler}", text, "s", "master_s_per_100k", ONE_CORE, OURS[handler], **more)


def _tail(load: int) -> Question:
    text = f"p99 of 1 ms requests, 1 % take 100 ms, 4 blocking workers, {load} % load, to the shared listener"
    measure, asked = partial(speed.tail, shapes={"1ms": ONE_IN_100}, shares=(load,)), _asked(of=truediv, at_most=1.03)
    return Question(f"tail-{load}", text, "ms, p99", f"p99_1ms_{load}_ms", measure, SHARED, asked=asked)


def _hold(policy: str, how: str, rate: float | None, subjects: tuple[str, ...]) -> Question:
    name = f"hold-{policy}-{f'{rate:.0f}' if rate else 'at-once'}"
    text = f"4,000 held, 4 asyncio workers, {policy} {how}, max/mean"
    measure = partial(losses.balance, count=4000, rate=rate)
    return Question(name, text, "x its share", "max_to_mean", measure, subjects, asked=EVEN)


def _sequence(handler: str) -> Question:
    text = f"400 one after the other, 4 idle {handler} workers: the furthest from 100"
    measure = partial(losses.sequence, count=400)
    return Question(f"sequence-{handler}", text, "off", "off_by", measure, OURS[handler], asked=NEVER)


def _added(handler: str, rate: int, most: float) -> Question:
    name, text = f"added-{handler}-{rate}", f"p50 added to SO_REUSEPORT's, {handler}, 4 workers, {rate:,}/s"
    measure = partial(speed.latency, rates={f"{rate}": (rate, 1)})
    more = {"asked": _asked("{:.1f} us", sub, at_most=most), "starts": True}
    return Question(name, text, "us, median", f"p50_{rate}_us", measure, REUSEPORT[handler], **more)


def _idle(handler: str) -> list[Question]:
    name, text, asked = f"idle-{handler}", f"idle, 2 {handler} workers and master", replace(NEVER, number="{:.0f} ns")
    cpu = Question(name, f"{text}: CPU", "ns", "idle_cpu_ns", speed.idle, OURS[handler], asked=asked)
    switches = {"name": f"{name}-switches", "text": f"{text}: context switches", "unit": "switches"}
    return [cpu, replace(cpu, key="idle_wakeups", asked=NEVER, measured_by=name, **switches)]


RESPAWN = "from SIGKILL of the only worker to the first answer of its replacement"
SOON = {"asked": _asked("{:.2f} ms", at_most=3), "starts": True}
DISPATCH = (
    _speed("blocking", "blocking", "one-core", _asked(of=truediv, at_least=1.05, no_round_under=0.95)),
    _speed("asyncio", "asyncio streams", "one-core", _asked(of=truediv, at_least=1)),
    _speed("asyncio", "asyncio streams", "core-each", _asked(of=truediv, at_least=1)),
    *map(_master, HANDLERS),
    *map(_tail, (50, 70, 85)),
    _hold("round-robin", "at 2,000/s", 2000, ("pyfanout asyncio",)),
    _hold("least-connections", "at 2,000/s", 2000, OURS["asyncio"]),
    _hold("least-connections", "all at once", None, OURS["asyncio"]),
    *map(_sequence, HANDLERS),
    *(_added(each, rate, most) for each in HANDLERS for rate, most in ((500, 75), (5000, 30))),
    Question("respawn", RESPAWN, "ms", "respawn_ms", losses.respawn, OURS["blocking"], **SOON),
    *_idle("blocking"),
    *_idle("asyncio"),
)

# ---- peers: beside other servers -----------------------------------------------------------------------------------

TAIL = "at 70 % of what 4 blocking workers can do"
WAITS = f"Does a short request wait behind a long one? p99 of {{}} {TAIL}, where a worker serves one or a few at once."
TEXTS = {
    "throughput": "How many connections a second? A new one for each request, 64 in flight, 2 workers on one core.",
    "cpu": "What does a connection cost? CPU time of all the server's processes, in the runs of the question before.",
    **{
        f"latency-{name}": f"How long does an answer take at {rate:,.0f} connections a second? 4 workers on one core."
        for name, (rate, _) in RATES.items()
    },
    "tail-one-in-100": WAITS.format("those that take 1 ms, when 1 % take 100 ms,"),
    "tail-exponential": WAITS.format("all, when they take 2 ms in the mean, exponentially distributed,"),
    "tail-bimodal": WAITS.format("those that take 1 ms, when 10 % take 11 ms,"),
    "tail-event-loop": "And where a worker serves any number at once? p99 of those that take 1 ms, when 1 % take 100"
    f" ms, {TAIL}.",
    "balance-at-once": "How even are 1,000 connections that come at once, and stay? What the fullest of 4 workers has,"
    " to its share.",
    "balance-steady": "How even are 1,000 that come at 500 a second, and stay?",
    "balance-restart": "How even are 1,000, when a worker was killed after half of them?",
    "kill": "What is lost when a worker is killed, at 500 connections a second of 1 ms each?",
    "reload": "What is lost in a reload, at 500 connections a second?",
    "stop": "What is lost in a graceful stop? 64 clients in a closed loop until the server has exited, and 1 s beyond;"
    " refused ones are not lost.",
    "restart": "What is lost when the whole service is restarted, at 500 connections a second? The signal for a"
    " graceful stop, and when it has ended, the same command again; refused ones are lost, too.",
    "recovery": "How long is a service away, when all its workers are killed? Two of them, both at once.",
    "memory": "What do 4 workers take over an application of 250 MB?",
    "workers": "How does the cost of a connection grow with the workers? CPU time on one core, 64 in flight, with 64"
    " workers.",
    "held-memory": "What does a connection take that stays open? Of memory, with 20,000 held by 4 workers.",
    "held-cpu": "And what does a new one cost beside them? CPU time, one after the other, with 20,000 held by 4"
    " workers.",
}
NOTES = {
    "kill": "A worker that is killed cannot finish what it had begun. nginx has nothing that takes a while.",
    "stop": "A client that was refused comes again after 10 ms.",
    "restart": "Nothing listens meanwhile. A service manager that holds the listener (systemd's socket units) lets"
    " clients wait instead; pyfanout's `--bind fd://` takes such a one.",
    "memory": "It is loaded before the fork by all servers that can, with an option where they need it. uvicorn,"
    " hypercorn, granian, Node and PM2 load it in every worker.",
    "held-memory": "The processes' own (Pss); what the kernel takes for the sockets is not in it, and is the same for"
    " all.",
}
TOO_FEW = "a worker serves one at a time, or as many as it has threads"
LACKING = {
    "sleeps": "a worker serves any number at once, which is asked below, or has nothing to wait for",
    "loops": "a worker serves one or a few at once, which is asked above, or has nothing to wait for",
    "keeps": TOO_FEW,
    "replaces": "does not replace a worker that dies",
    "reloads": "has no signal or command for it",
    "works": "has no application",
}
"""Why subjects without these traits are not asked."""
ONE_OF_EACH = "one of each design is, and none that starts 64 programs for a minute"
TOO_LONG = (
    f"{TOO_FEW}; or it looks through all that it holds at each turn, so that 20,000 take minutes (waitress); or"
    " another of the same protocol and language is asked"
)
GROWING = (
    *("pyfanout blocking", "pyfanout asyncio", "SO_REUSEPORT blocking", "SO_REUSEPORT asyncio"),
    *("shared listener blocking", "pyfanout gunicorn gthread", "gunicorn gthread", "Node cluster, SCHED_RR", "nginx"),
)
"""One of each design."""
HOLDING = (
    *("pyfanout asyncio", "SO_REUSEPORT asyncio", "pyfanout gunicorn gthread", "pyfanout uvicorn", "gunicorn gthread"),
    *("uvicorn", "granian", "Node cluster, SCHED_RR", "nginx"),
)
"""One of each protocol and language: which process accepts does not matter to a connection that stays."""
ACROSS: dict[str, Any] = {"across": True}
STEADY = partial(losses.balance, rate=500)
LOOP = partial(speed.tail, shapes={"one-in-100": ONE_IN_100}, shares=(70,))


def _peer(name: str, unit: str, key: str, measure: Measure, *traits: str, **more: Any) -> Question:
    """Asked of subjects with these traits; of variants only where what they differ in may matter."""
    asked = more.get("measured_by") or name
    able = [each for each in FIELD if each.has(*traits) and (not each.asked or asked.startswith(each.asked))]
    unasked = ", or ".join(LACKING[trait] for trait in traits)
    more = {"subjects": tuple(each.name for each in able), "notes": NOTES.get(name, ""), "unasked": unasked, **more}
    return Question(name, TEXTS[name], unit, key, measure, **more)


def _latency(at: int, name: str) -> Question:
    more: dict[str, Any] = {"runs": (at, at + 1), "measured_by": "latency-low" if at else "", "starts": True}
    more |= {"added_to": "SO_REUSEPORT blocking", "points": (("p99, us", f"p99_{name}_us"),)}
    return _peer(f"latency-{name}", "us, median", f"p50_{name}_us", speed.latency, **more)


def _shape(at: int, name: str) -> Question:
    points = tuple((f"load {each} %", f"p99_{name}_{each}_ms") for each in SHARES)
    more = {"runs": (len(SHARES) * at, len(SHARES) * (at + 1)), "measured_by": "tail-one-in-100" if at else ""}
    return _peer(f"tail-{name}", "ms, p99", f"p99_{name}_70_ms", speed.tail, "sleeps", points=points, **more)


def _held(name: str, unit: str, key: str, measured_by: str = "") -> Question:
    points, more = _points("held", key, HOLDS), {"measured_by": measured_by, "unasked": TOO_LONG}
    return _peer(name, unit, points[-1][1], speed.grow_held, subjects=HOLDING, points=points, **more)


def _points(along: str, key: str, at: Sequence[int]) -> tuple[tuple[str, str], ...]:
    """`key` has the place of the number that grows."""
    return tuple((f"{along} {each:,}", key.format(each)) for each in at)


def _took(what: str) -> dict[str, Any]:
    return {"points": ((f"{what} after, s", "took_s"),), "across": True}


CPU = _points("workers", "cpu_{}_us", SIZES)
PEERS = (
    _peer("throughput", "conn/s", "per_s", speed.throughput, **FASTER),
    _peer("cpu", "us", "cpu_us", speed.throughput, measured_by="throughput"),
    *(_latency(at, name) for at, name in enumerate(RATES)),
    *(_shape(at, name) for at, name in enumerate(SHAPES)),
    _peer("tail-event-loop", "ms, p99", "p99_one-in-100_70_ms", LOOP, "loops"),
    _peer("balance-at-once", "x its share", "max_to_mean", losses.balance, "keeps", **ACROSS),
    _peer("balance-steady", "x its share", "max_to_mean", STEADY, "keeps", **ACROSS),
    _peer("balance-restart", "x its share", "max_to_mean", losses.killed_between, "keeps", "replaces", **ACROSS),
    _peer("kill", "connections a kill", "lost_per_kill", losses.kills, "replaces", **ACROSS),
    _peer("reload", "connections", "lost", losses.reload, "reloads", **_took("all replaced")),
    _peer("stop", "connections", "lost", losses.stop, **_took("exited")),
    _peer("restart", "connections", "lost", losses.restart, **_took("serves again")),
    _peer("recovery", "ms", "recovery_ms", losses.recovery, "replaces", starts=True, **ACROSS),
    _peer("memory", "MB", "pss_mb", speed.memory, "works"),
    _peer("workers", "us", CPU[-1][1], speed.grow_workers, subjects=GROWING, points=CPU, unasked=ONE_OF_EACH),
    _held("held-memory", "kB a connection", "kb_{}"),
    _held("held-cpu", "us", "cpu_{}_us", "held-memory"),
)
LONG = ("tail-event-loop", "restart", "workers", "held-memory")
"""Not in the short run."""

# ---- life: while workers of pyfanout die, hang, are replaced and scaled --------------------------------------------


def _life(name: str, text: str, unit: str, key: str, measure: Measure, most: Asked = NEVER) -> Question:
    handler = "asyncio" if "asyncio" in name else "blocking"
    return Question(name, text, unit, key, measure, (f"pyfanout run, {handler}",), asked=most)


def _reloads(handler: str, requests: int) -> Question:
    text = f"failures in rolling reloads at 1,000/s, {handler}, {requests} requests on each connection"
    measure = partial(losses.reload, rate=life.RATE, requests=requests)
    return _life(f"reload-{handler}-{requests}", text, "lost", "lost", measure)


def _broken(how: str) -> Question:
    text, (first, *_) = f"failures while a release that {how} is refused", how.split()
    return _life(f"broken-{first}", text, "lost", "number", partial(life.broken, how=how))


def _kills(name: str, text: str, path: str, number: str, most: float) -> Question:
    measure = partial(losses.kills, rate=2000, path=path, check=life.each_in_a_handler)
    return _life(name, text, "lost a kill", "lost_per_kill", measure, _asked(number, no_round_over=most))


STOPPED, GROWN = _asked("{:.2f}", no_round_over=1.10), _asked("{:.0f} KiB", no_round_over=256)
LIFE = (
    _kills("kill-busy", "failures per SIGKILL, 2,000/s, 1 ms of service, 4 blocking workers", "work", "{:.2f}", 1),
    _kills("kill-idle", "the same, no service time", "fast", "{:.3f}", 0.05),
    *(_reloads(each, requests) for each in HANDLERS for requests in (1, 20)),
    *map(_broken, life.BROKEN),
    _life("stopped", "p99 after one of 4 was stopped and replaced, to before", "x", "number", life.stopped, STOPPED),
    _life("scaling", "failures while scaling 4, 8, 1, 4 at 1,000/s", "lost", "number", life.scaling),
    _life("deaths", "KiB that the master has grown by after the deaths", "KiB", "number", life.deaths, GROWN),
)

# ---- embed: servers under pyfanout, against their own way to use several processes ---------------------------------

ITSELF = ("uvicorn", "uvicorn, asyncio", "hypercorn", "aiohttp", "gunicorn gthread", "gunicorn asgi", "tornado")
BOTH = tuple(name for each in ITSELF for name in (BY_NAME[each].beside, each))
CONNECTIONS = "conn/s, a new connection for each request, 64 in flight, 2 workers on one core, to itself"
KEPT = "requests/s on 64 connections that are kept, 2 workers on one core, to itself"
FULLER = "1,000 held, opened one after the other: what the fuller of 2 workers has, to its half"
NEARLY = {"asked": _asked(of=truediv, at_least=0.95)}
EMBED = (
    Question("embed-new", CONNECTIONS, "conn/s", "per_s", speed.throughput, BOTH, **FASTER | NEARLY),
    Question("embed-kept", KEPT, "requests/s", "requests_per_s", speed.kept, BOTH, **FASTER),
    Question("embed-held", FULLER, "x its half", "max_to_mean", losses.one_by_one, BOTH, **ACROSS),
)

# ---- the runs ------------------------------------------------------------------------------------------------------


class Run(NamedTuple):
    about: str
    questions: tuple[Question, ...]
    full: Scale
    quick: Scale


QUICK = Scale(rounds=1, starts=1, each_s=0.5, tail_s=1, kills=2, idle_s=1)
RUNS = {
    "dispatch": Run(
        "pyfanout against the same handlers on what it replaces",
        DISPATCH,
        Scale(rounds=5, starts=3, each_s=3, tail_s=20),
        replace(QUICK, each_s=1, tail_s=3),
    ),
    "peers": Run("pyfanout beside other servers with several processes", PEERS, Scale(rounds=3, starts=2), QUICK),
    "life": Run(
        "what clients see while workers die, hang, are replaced and scaled",
        LIFE,
        Scale(rounds=3, starts=1, pinned=False, kills=120, reloads=50),
        replace(QUICK, pinned=False, kills=20, reloads=10, window_s=4, cycles=3, deaths=500),
    ),
    "embed": Run(
        "servers under pyfanout against their own way to use several processes",
        EMBED,
        Scale(rounds=3, starts=3, each_s=3),
        replace(QUICK, each_s=1),
    ),
}
ALL = tuple(question for run in RUNS.values() for question in run.questions)


def selected(run: Run, only: Sequence[str], subjects: Sequence[str], *, quick: bool) -> list[Question]:
    """Those to measure: questions, and of them subjects, with a name that begins with one of these; all if there are
    none. `quick`: of the long run only some, unless some are named."""
    quick = quick and run.questions is PEERS

    def is_wanted(name: str) -> bool:
        return name.startswith(tuple(subjects)) if subjects else BY_NAME[name].quick or not quick

    long = LONG if quick and not only else ()
    named = [each for each in run.questions if each.name.startswith((*only,) or "") and each.name not in long]
    wanted = {each.experiment for each in named}
    found = [
        replace(each, subjects=tuple(filter(is_wanted, each.subjects)))
        for each in run.questions
        if each.name in wanted and any(map(is_wanted, each.subjects))
    ]
    if not found:
        raise ServerError(f"no question has this name; there are {', '.join(each.name for each in run.questions)}")
    return found
