"""What is asked, of whom, and in which run: `python -m bench dispatch`, `peers`, `life` or `embed`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from operator import sub, truediv
from typing import Any

from bench import holdings, life, losses, share, speed
from bench.field import BY_NAME, FIELD
from bench.model import Asked, Measure, Question, Scale
from bench.server import ServerError
from bench.speed import Work

HANDLERS = ("blocking", "asyncio")
ONE_IN_100 = Work(0.99 * 1 + 0.01 * 100, {"path": "work", "slow_fraction": 0.01})
EXPONENTIAL = Work(2, {"exponential": 2000})
BIMODAL = Work(0.9 * 1 + 0.1 * 11, {"path": "wait/1000", "slow_path": "wait/11000", "slow_fraction": 0.1})
Bounds = dict[str, float]


def _bounded(
    name: str, text: str, key: str, measure: Measure, who: tuple[str, ...], asked: Asked, **more: Any
) -> Question:
    return Question(
        name, text, asked.number.partition("}")[2].strip() or "number", key, measure, who, asked=asked, **more
    )


# ---- dispatch: against SO_REUSEPORT and a shared listener ----------------------------------------------------------

OURS = {handler: (f"pyfanout {handler}, least-connections",) for handler in HANDLERS}
REUSEPORT = {handler: (*OURS[handler], f"SO_REUSEPORT {handler}") for handler in HANDLERS}
SHARED = (*OURS["blocking"], "shared listener blocking")
EVEN = Asked("{:.4f}", {"at most": 1.01})
NEVER = Asked("{:.0f}", {"no round over": 0})
SPEED: dict[str, Any] = {"less_is_better": False, "starts": True}


def _speed(bounds: Bounds) -> Asked:
    return Asked("{:.3f}", bounds, of=truediv)


def _master(handler: str) -> Question:
    name, text = f"master-{handler}", f"master CPU per 100,000 connections, {handler}, one core"
    measure, asked = speed.throughput(one_core=True), Asked("{:.3f} s", {"at most": 0.30})
    source = f"throughput-{handler}-one-core"
    return _bounded(name, text, "master_s_per_100k", measure, OURS[handler], asked, measured_by=source)


def _hold(policy: str, how: str, rate: float | None, who: tuple[str, ...]) -> Question:
    name = f"hold-{policy}-{'at-once' if rate is None else f'{rate:.0f}'}"
    text = f"4,000 held, 4 asyncio workers, {policy} {how}, max/mean"
    return _bounded(name, text, "max_to_mean", share.balance(4000, rate), who, EVEN)


def _idle(handler: str) -> list[Question]:
    name, text, who = f"idle-{handler}", f"idle, 2 {handler} workers and master", OURS[handler]
    cpu = _bounded(name, f"{text}: CPU", "idle_cpu_ns", holdings.idle, who, replace(NEVER, number="{:.0f} ns"))
    switches = {"name": f"{name}-switches", "text": f"{text}: context switches", "key": "idle_wakeups", "asked": NEVER}
    return [cpu, replace(cpu, measured_by=name, **switches)]


DISPATCH = (
    _bounded(
        "throughput-blocking-one-core",
        "conn/s, blocking, 2 workers, one core, to SO_REUSEPORT",
        *("per_s", speed.throughput(one_core=True), REUSEPORT["blocking"]),
        _speed({"at least": 1.05, "no round under": 0.95}),
        **SPEED,
    ),
    _bounded(
        "throughput-asyncio-one-core",
        "conn/s, asyncio streams, 2 workers, one core, to SO_REUSEPORT",
        *("per_s", speed.throughput(one_core=True), REUSEPORT["asyncio"], _speed({"at least": 1})),
        **SPEED,
    ),
    _bounded(
        "throughput-asyncio-core-each",
        "conn/s, asyncio streams, 2 workers, core each, to SO_REUSEPORT",
        *("per_s", speed.throughput(), REUSEPORT["asyncio"], _speed({"at least": 1})),
        **SPEED,
    ),
    *map(_master, HANDLERS),
    *(
        _bounded(
            f"tail-{load}",
            f"p99 of 1 ms requests, 1 % take 100 ms, 4 blocking workers, {load} % load, to the shared listener",
            *(f"p99_1ms_{load}_ms", speed.tail({"1ms": ONE_IN_100}, (load,)), SHARED, _speed({"at most": 1.03})),
        )
        for load in (50, 70, 85)
    ),
    _hold("round-robin", "at 2,000/s", 2000, ("pyfanout asyncio",)),
    _hold("least-connections", "at 2,000/s", 2000, OURS["asyncio"]),
    _hold("least-connections", "all at once", None, OURS["asyncio"]),
    *(
        _bounded(
            f"sequence-{handler}",
            f"400 one after the other, 4 idle {handler} workers: the furthest from 100",
            *("off_by", share.sequence(400), OURS[handler], NEVER),
        )
        for handler in HANDLERS
    ),
    *(
        _bounded(
            f"added-{handler}-{rate}",
            f"p50 added to SO_REUSEPORT's, {handler}, 4 workers, {rate:,}/s",
            *(f"p50_{rate}_us", speed.latency({f"{rate}": (rate, 1)}), REUSEPORT[handler]),
            Asked("{:.1f} us", {"at most": most}, of=sub),
            starts=True,
        )
        for handler in HANDLERS
        for rate, most in ((500, 75), (5000, 30))
    ),
    _bounded(
        "respawn",
        "from SIGKILL of the only worker to the first answer of its replacement",
        *("respawn_ms", losses.respawn, OURS["blocking"], Asked("{:.2f} ms", {"at most": 3})),
        starts=True,
    ),
    *_idle("blocking"),
    *_idle("asyncio"),
)

# ---- peers: beside everybody else ----------------------------------------------------------------------------------

BASE = "SO_REUSEPORT blocking"
"""Whose latency is that of the kernel and the load generator alone."""
HELD = 1000
RATES = {"low": (200.0, 2.0), "middle": (1000.0, 4 / 3), "high": (3000.0, 4 / 3)}
"""Connections a second, and for how long, to a closed loop: the fewer, the longer."""
SHARES = (50, 70, 85, 95)
"""Percent of what 4 blocking workers can do, in the questions about the tail."""
SHARE = 70
"""That which is compared."""
SHAPES = {"one-in-100": ONE_IN_100, "exponential": EXPONENTIAL, "bimodal": BIMODAL}
WHOSE = {
    "one-in-100": "those that take 1 ms, when 1 % take 100 ms,",
    "exponential": "all, when they take 2 ms in the mean, exponentially distributed,",
    "bimodal": "those that take 1 ms, when 10 % take 11 ms,",
}
BALLAST_MB = 250
SIZES = (1, 4, 16, 64)
"""Workers."""
HOLDS = (100, 1000, 20_000)
"""Connections that stay open."""
GROWING = (
    *("pyfanout blocking", "pyfanout asyncio", "SO_REUSEPORT blocking", "SO_REUSEPORT asyncio"),
    *("shared listener blocking", "pyfanout gunicorn gthread", "gunicorn gthread", "Node cluster, SCHED_RR", "nginx"),
)
"""One of each design, and nobody who starts 64 programs for a minute."""
HOLDING = (
    *("pyfanout asyncio", "SO_REUSEPORT asyncio", "pyfanout gunicorn gthread", "pyfanout uvicorn", "gunicorn gthread"),
    *("uvicorn", "granian", "Node cluster, SCHED_RR", "nginx"),
)
"""One of each protocol and language: who accepts does not matter to one that stays."""
TOO_FEW = "a worker serves one at a time, or as many as it has threads"
UNREPLACED = "does not replace a worker that dies"
ABOVE = "a worker serves one or a few at once, which is asked above, or has nothing to wait for"
BELOW = "a worker serves any number at once, which is asked below, or has nothing to wait for"
HELD_UNASKED = (
    f"{TOO_FEW}; or it looks through all that it holds at each turn, so that {HOLDS[-1]:,} take minutes (waitress); or"
    " somebody of the same protocol and language is asked"
)


def _among(name: str, *traits: str) -> tuple[str, ...]:
    """Who of the field has these traits; variants only where what they differ in may matter."""
    return tuple(each.name for each in FIELD if each.has(*traits) and (not each.asked or name.startswith(each.asked)))


def _balance(name: str, text: str, measure: Measure, *traits: str, unasked: str = TOO_FEW) -> Question:
    who = _among("balance", "keeps", *traits)
    return Question(name, text, "x its share", "max_to_mean", measure, who, across=True, unasked=unasked)


def _lost(name: str, text: str, unit: str, key: str, measure: Measure, *traits: str, **more: Any) -> Question:
    return Question(name, text, unit, key, measure, _among(name, *traits), across=True, **more)


PEERS = (
    Question(
        "throughput",
        "How many connections a second? A new one for each request, 64 in flight, 2 workers on one core.",
        *("conn/s", "per_s", speed.throughput(), _among("throughput")),
        **SPEED,
    ),
    Question(
        "cpu",
        "What does a connection cost? CPU time of all the server's processes, in the runs of the question before.",
        *("us", "cpu_us", speed.throughput(), _among("throughput")),
        measured_by="throughput",
    ),
    *(
        Question(
            f"latency-{name}",
            f"How long does an answer take at {rate:,.0f} connections a second? 4 workers on one core.",
            *("us, median", f"p50_{name}_us", speed.latency(RATES), _among("latency")),
            starts=True,
            points=(("p99, us", f"p99_{name}_us"),),
            added_to=BASE,
            runs=(at, at + 1),
            measured_by="latency-low" if at else "",
        )
        for at, (name, (rate, _)) in enumerate(RATES.items())
    ),
    *(
        Question(
            f"tail-{name}",
            f"Does a short request wait behind a long one? p99 of {whose} at {SHARE} % of what 4 blocking workers can"
            " do, where a worker serves one or a few at once.",
            *("ms, p99", f"p99_{name}_{SHARE}_ms", speed.tail(SHAPES, SHARES), _among("tail", "sleeps")),
            points=tuple((f"load {each} %", f"p99_{name}_{each}_ms") for each in SHARES),
            runs=(len(SHARES) * at, len(SHARES) * (at + 1)),
            measured_by="tail-one-in-100" if at else "",
            unasked=BELOW,
        )
        for at, (name, whose) in enumerate(WHOSE.items())
    ),
    Question(
        "tail-event-loop",
        f"And where a worker serves any number at once? p99 of those that take 1 ms, when 1 % take 100 ms, at {SHARE} %"
        " of what 4 blocking workers can do.",
        *("ms, p99", f"p99_one-in-100_{SHARE}_ms", speed.tail({"one-in-100": ONE_IN_100}, (SHARE,))),
        _among("tail", "loops"),
        unasked=ABOVE,
    ),
    _balance(
        "balance-at-once",
        f"How even are {HELD:,} connections that come at once, and stay? What the fullest of 4 workers has, to its"
        " share.",
        share.balance(HELD, None),
    ),
    _balance("balance-steady", f"How even are {HELD:,} that come at 500 a second, and stay?", share.balance(HELD, 500)),
    _balance(
        "balance-restart",
        f"How even are {HELD:,}, when a worker was killed after half of them?",
        *(share.balance_after_restart(HELD), "replaces"),
        unasked=f"{TOO_FEW}, or {UNREPLACED}",
    ),
    _lost(
        "kill",
        f"What is lost when a worker is killed, at {losses.LOSS_RATE:,.0f} connections a second of 1 ms each?",
        *("connections a kill", "lost_per_kill", losses.kills(), "replaces"),
        notes="A worker that is killed cannot finish what it had begun. nginx has nothing that takes a while.",
        unasked=UNREPLACED,
    ),
    _lost(
        "reload",
        f"What is lost in a reload, at {losses.LOSS_RATE:,.0f} connections a second?",
        *("connections", "lost", losses.reload(), "reloads"),
        points=(("all replaced after, s", "took_s"),),
        unasked="has no signal or command for it",
    ),
    _lost(
        "stop",
        f"What is lost in a graceful stop? {speed.IN_FLIGHT} clients in a closed loop until the server has exited, and"
        f" {losses.BEYOND_S:g} s beyond; refused ones are not lost.",
        *("connections", "lost", losses.stop),
        points=(("exited after, s", "took_s"),),
        notes="A client that was refused comes again after 10 ms.",
    ),
    _lost(
        "restart",
        f"What is lost when the whole service is restarted, at {losses.LOSS_RATE:,.0f} connections a second? The signal"
        " for a graceful stop, and when it has ended, the same command again; refused ones are lost, too.",
        *("connections", "lost", losses.restart),
        points=(("serves again after, s", "took_s"),),
        notes="Nobody listens meanwhile. A service manager that holds the listener (systemd's socket units) lets them"
        " wait instead; pyfanout's `--bind fd://` takes such a one.",
    ),
    _lost(
        "recovery",
        "How long is a service away, when all its workers are killed? Two of them, both at once.",
        *("ms", "recovery_ms", losses.recovery, "replaces"),
        starts=True,
        unasked=UNREPLACED,
    ),
    Question(
        "memory",
        f"What do 4 workers take over an application of {BALLAST_MB} MB?",
        *("MB", "pss_mb", holdings.memory(BALLAST_MB), _among("memory", "works")),
        notes="It is loaded before the fork by all who can, and are told to if they must be. uvicorn, hypercorn,"
        " granian, Node and PM2 load it in every worker.",
        unasked="has no application",
    ),
    Question(
        "workers",
        f"How does the cost of a connection grow with the workers? CPU time on one core, {speed.IN_FLIGHT} in flight,"
        f" with {SIZES[-1]} workers.",
        *("us", f"cpu_{SIZES[-1]}_us", speed.grow_workers(SIZES), GROWING),
        points=tuple((f"workers {size}", f"cpu_{size}_us") for size in SIZES),
        unasked="one of each design is, and nobody who starts 64 programs for a minute",
    ),
    Question(
        "held-memory",
        f"What does a connection take that stays open? Of memory, with {HOLDS[-1]:,} held by 4 workers.",
        *("kB a connection", f"kb_{HOLDS[-1]}", holdings.grow_held(HOLDS), HOLDING),
        points=tuple((f"held {count:,}", f"kb_{count}") for count in HOLDS),
        notes="The processes' own (Pss); what the kernel takes for the sockets is not in it, and is the same for all.",
        unasked=HELD_UNASKED,
    ),
    Question(
        "held-cpu",
        f"And what does a new one cost beside them? CPU time, one after the other, with {HOLDS[-1]:,} held by 4"
        " workers.",
        *("us", f"cpu_{HOLDS[-1]}_us", holdings.grow_held(HOLDS), HOLDING),
        points=tuple((f"held {count:,}", f"cpu_{count}_us") for count in HOLDS),
        measured_by="held-memory",
        unasked=HELD_UNASKED,
    ),
)
LONG = ("tail-event-loop", "restart", "workers", "held-memory")
"""Not in the short run."""

# ---- life: while workers of ours die, hang, are replaced and scaled ------------------------------------------------


def _life(name: str, text: str, key: str, measure: Measure, asked: Asked, handler: str = "blocking") -> Question:
    return _bounded(name, text, key, measure, (f"pyfanout run, {handler}",), asked)


BUSY, IDLE = (losses.kills(2000, path, life.each_in_a_handler) for path in ("work", "fast"))
LIFE = (
    _life(
        "kill-busy",
        "failures per SIGKILL, 2,000/s, 1 ms of service, 4 blocking workers",
        *("lost_per_kill", BUSY, Asked("{:.2f}", {"no round over": 1})),
    ),
    _life(
        "kill-idle",
        "the same, no service time",
        *("lost_per_kill", IDLE, Asked("{:.3f}", {"no round over": 0.05})),
    ),
    *(
        _life(
            f"reload-{handler}-{requests}",
            f"failures in rolling reloads at 1,000/s, {handler}, {requests} requests on each connection",
            *("lost", losses.reload(life.RATE, requests=requests), NEVER, handler),
        )
        for handler in HANDLERS
        for requests in (1, 20)
    ),
    *(
        _life(
            f"broken-{how.split()[0]}",
            f"failures while a release that {how} is refused",
            *("number", life.broken(how), NEVER),
        )
        for how in life.BROKEN
    ),
    _life(
        "stopped",
        "p99 after one of 4 was stopped and replaced, to before",
        *("number", life.stopped, Asked("{:.2f}", {"no round over": 1.10})),
    ),
    _life("scaling", "failures while scaling 4, 8, 1, 4 at 1,000/s", "number", life.scaling, NEVER),
    _life(
        "deaths",
        "KiB that the master has grown by after the deaths",
        *("number", life.deaths, Asked("{:.0f}", {"no round over": 256})),
    ),
)

# ---- embed: servers under pyfanout, against their own way to use several processes ---------------------------------

ITSELF = ("uvicorn", "uvicorn, asyncio", "hypercorn", "aiohttp", "gunicorn gthread", "gunicorn asgi", "tornado")
BOTH = tuple(name for each in ITSELF for name in (BY_NAME[each].beside, each))
EMBED = (
    Question(
        "embed-connections",
        "conn/s, a new connection for each request, 64 in flight, 2 workers on one core, to itself",
        *("conn/s", "per_s", speed.throughput(), BOTH),
        asked=_speed({"at least": 0.95}),
        **SPEED,
    ),
    Question(
        "embed-kept",
        "requests/s on 64 connections that are kept, 2 workers on one core, to itself",
        *("requests/s", "requests_per_s", speed.kept, BOTH),
        **SPEED,
    ),
    Question(
        "embed-held",
        f"{HELD:,} held, opened one after the other: what the fuller of 2 workers has, to its half",
        *("x its half", "max_to_mean", share.one_by_one(HELD, 2), BOTH),
        across=True,
    ),
)

# ---- the runs ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Run:
    about: str
    questions: tuple[Question, ...]
    full: Scale
    quick: Scale


QUICK = Scale(rounds=1, starts=1, each_s=0.5, tail_s=1, kills=2, idle_s=1)
RUNS = {
    "dispatch": Run(
        "pyfanout against the same handlers on what it replaces",
        *(DISPATCH, Scale(rounds=5, starts=3, each_s=3, tail_s=20), replace(QUICK, each_s=1, tail_s=3)),
    ),
    "peers": Run("pyfanout beside who else serves with several processes", PEERS, Scale(rounds=3, starts=2), QUICK),
    "life": Run(
        "what clients see while workers die, hang, are replaced and scaled",
        *(LIFE, Scale(rounds=3, starts=1, kills=120, reloads=50)),
        replace(QUICK, kills=20, reloads=10, window_s=4, cycles=3, deaths=500),
    ),
    "embed": Run(
        "servers under pyfanout against their own way to use several processes",
        *(EMBED, Scale(rounds=3, starts=3, each_s=6), replace(QUICK, each_s=1)),
    ),
}
ALL = tuple(question for run in RUNS.values() for question in run.questions)


def selected(run: Run, only: Sequence[str], who: Sequence[str], *, quick: bool) -> list[Question]:
    """Those to measure: of the questions, and with the subjects, whose names begin with one of these; all if there are
    none. `quick`: of the long run only some, unless some are named."""
    wanted = {
        each.experiment
        for each in run.questions
        if (each.name.startswith(tuple(only)) if only else not (quick and each.name in LONG))
    }
    found = []
    for question in run.questions:
        named = [name for name in question.subjects if _is_wanted(name, who, quick=quick and run.questions is PEERS)]
        if question.name in wanted and named:
            found.append(replace(question, subjects=tuple(named)))
    if not found:
        raise ServerError(f"no question is called so; there are {', '.join(each.name for each in run.questions)}")
    return found


def _is_wanted(name: str, who: Sequence[str], *, quick: bool) -> bool:
    return name.startswith(tuple(who)) if who else BY_NAME[name].quick or not quick
