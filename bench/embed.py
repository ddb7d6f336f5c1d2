"""`python -m bench embed`: servers under pyfanout, against the same servers' own way to use several processes.

Both run at once, with the same application, on one core, and are asked in slices from the other: ratios within a round.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from bench import installed, loadgen, procfs
from bench.run import choose_cores
from bench.server import ServerError, free_port

WORKERS = 2
SLICES = 8
SLICE_S = 1
"""Short, for on a shared machine what a core does in a second drifts by a tenth and more."""
IN_FLIGHT = 64
HELD = 1000
LIMIT_S = 20.0
POLL_S = 0.05
"""Between two tries to connect to a server that starts: nothing tells when it listens."""


@dataclass(frozen=True, slots=True)
class Pair:
    """One server, twice. {port} and {workers} are filled in."""

    name: str
    ours: str
    theirs: str
    asked: float


RUN = "-m pyfanout run bench.embedded:{app} --bind 127.0.0.1:{{port}} --workers {{workers}} --log-level error"
UVICORN = "-m uvicorn bench.embedded:asgi --port {port} --workers {workers} --no-access-log --log-level error"
GUNICORN = (
    "-m gunicorn bench.embedded:{app} --bind 127.0.0.1:{{port}} --workers {{workers}} --worker-class {worker}"
    " --keep-alive 75 --worker-connections 5000 --no-control-socket --log-level error"
)
PAIRS = (
    Pair("uvicorn, uvloop", RUN.format(app="asgi"), UVICORN + " --loop uvloop", 0.75),
    Pair("uvicorn, asyncio", RUN.format(app="uvicorn_on_asyncio") + " --factory", UVICORN + " --loop asyncio", 0.95),
    Pair(
        "hypercorn",
        RUN.format(app="asgi") + " --server hypercorn",
        "-m hypercorn bench.embedded:asgi --bind 127.0.0.1:{port} --workers {workers} --log-level error",
        0.95,
    ),
    Pair(
        "aiohttp, gunicorn",
        RUN.format(app="aiohttp") + " --factory",
        "-m gunicorn bench.embedded:aiohttp_for_gunicorn --bind 127.0.0.1:{port} --workers {workers}"
        " --worker-class aiohttp.GunicornWebWorker --log-level error",
        0.95,
    ),
    Pair(
        "gunicorn, gthread",
        GUNICORN.format(app="wsgi", worker="pyfanout.embed.gunicorn.GThread") + " --threads 4",
        GUNICORN.format(app="wsgi", worker="gthread") + " --threads 4",
        0.95,
    ),
    Pair(
        "gunicorn, asgi",
        GUNICORN.format(app="asgi", worker="pyfanout.embed.gunicorn.ASGI") + " --asgi-loop asyncio",
        GUNICORN.format(app="asgi", worker="asgi") + " --asgi-loop asyncio",
        0.95,
    ),
    Pair(
        "tornado, fork_processes",
        RUN.format(app="tornado") + " --factory",
        "-m bench.embedded tornado {port} {workers}",
        0.95,
    ),
)


@contextlib.contextmanager
def running(command: str, cpu: int) -> Iterator[int]:
    """The port of a server that answers."""
    port = free_port()
    words = [str(installed.python()), *command.format(port=port, workers=WORKERS).split()]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            ["taskset", "--cpu-list", str(cpu), *words],
            cwd=installed.SITE,
            env=installed.environment(),
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            end_s = time.monotonic() + LIMIT_S
            found: set[bytes] = set()
            while len(found) < WORKERS:
                if time.monotonic() > end_s or process.poll() is not None:
                    said = os.pread(log.fileno(), 9999, 0).decode()
                    raise ServerError(f"{len(found)} workers answer: {command}; its log:\n{said}")
                try:
                    with held(port, IN_FLIGHT) as answers:
                        found.update(answers)
                except OSError:  # it does not listen yet
                    time.sleep(POLL_S)
            yield port
        finally:
            process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(LIMIT_S)
            for pid in procfs.session(process.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.wait()


def connections_per_s(port: int, cpu: int) -> float:
    answers = loadgen.load(port, cpu=cpu, closed=IN_FLIGHT, warmup=0.3, duration=SLICE_S, path="fast")
    if answers.errors:
        raise ServerError(f"failures: {answers.errors}")
    return answers.per_s


def requests_per_s(port: int, cpu: int) -> float:
    """On connections that are kept."""
    url = f"http://127.0.0.1:{port}/fast"
    command = ["taskset", "--cpu-list", str(cpu), "wrk", "-t1", f"-c{IN_FLIGHT}", f"-d{SLICE_S}s", url]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"Requests/sec:\s*([\d.]+)", printed)
    if found is None or "Non-2xx" in printed:
        raise ServerError(f"wrk: {printed}")
    return float(found[1])


@contextlib.contextmanager
def held(port: int, count: int) -> Iterator[list[bytes]]:
    """So many connections, one after the other, that stay: what each was answered, which is the name of its worker."""
    conns = [http.client.HTTPConnection("127.0.0.1", port, timeout=LIMIT_S) for _ in range(count)]
    answers = []
    try:
        for conn in conns:
            conn.request("GET", "/fast")
            answers.append(conn.getresponse().read())
        yield answers
    finally:
        for conn in conns:
            conn.close()


def uneven(port: int) -> float:
    """Of HELD connections, what the fullest worker has, to its share."""
    with held(port, HELD) as answers:
        return max(Counter(answers).values()) / (HELD / WORKERS)


def measure(pair: Pair) -> tuple[float, float, float, float]:
    """Connections and requests per second as ratios, and how uneven each is."""
    _, layout = choose_cores()
    with running(pair.ours, layout.server) as ours, running(pair.theirs, layout.server) as theirs:
        ratios = []
        for per_s in (connections_per_s, requests_per_s):
            pairs = []
            for slice_ in range(-1, SLICES):
                found = per_s(ours, layout.load), per_s(theirs, layout.load)
                if slice_ >= 0:
                    pairs.append(found)
            ratios.append(statistics.fmean(one for one, _ in pairs) / statistics.fmean(other for _, other in pairs))
        return ratios[0], ratios[1], uneven(ours), uneven(theirs)


def run(rounds: int, only: list[str]) -> list[str]:
    """The table, a line each; progress goes to stderr."""
    loadgen.build()
    pairs = [pair for pair in PAIRS if not only or any(pair.name.startswith(name) for name in only)]
    if not pairs:
        raise ServerError(f"no pair is called {' or '.join(only)}: {', '.join(pair.name for pair in PAIRS)}")
    found: dict[str, list[tuple[float, float, float, float]]] = {pair.name: [] for pair in pairs}
    for round_ in range(rounds):
        for pair in pairs:
            found[pair.name].append(values := measure(pair))
            text = " ".join(f"{value:.3f}" for value in values)
            print(f"round {round_ + 1} {pair.name}: conn/s, req/s, held ours, theirs: {text}", file=sys.stderr)
    lines = ["| server | asked | conn/s, ours to theirs | requests/s, kept | 1,000 held: ours | theirs |"]
    lines.append("|---|---|---|---|---|---|")
    for pair in pairs:
        cells = [_spread([values[i] for values in found[pair.name]]) for i in range(4)]
        lines.append(f"| {pair.name} | {pair.asked} | {' | '.join(cells)} |")
    return lines


def _spread(values: list[float]) -> str:
    return f"{statistics.median(values):.3f} ({min(values):.3f}..{max(values):.3f})"
