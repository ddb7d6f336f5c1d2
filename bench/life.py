"""`python -m bench life`: what happens to clients while workers die, hang, are replaced and scaled.

Each row runs real load against `pyfanout run` and counts what clients saw. It keeps nothing but counts: a failure is
a connection that did not get its whole answer.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from bench import installed, loadgen, procfs
from bench.server import ServerError, free_port

APP = "from bench.workloads import HANDLERS\nhandler = HANDLERS[{kind!r}]\n"
BROKEN = {
    "raises at import": "raise RuntimeError('a broken release')\n",
    "exits at start": "import os\nos._exit(9)\n",
    "never becomes ready": "import time\ntime.sleep(600)\n",
}
LIMIT_S = 60.0

BOOT_S = 0.02
"""Longer than a worker takes to be ready, of which nothing tells at this log level. If too short, it is slower."""


@dataclass(frozen=True, slots=True)
class Scale:
    """How long, and how often."""

    kill_s: float
    reloads: int
    window_s: float
    cycles: int
    deaths: int
    rounds: int


FULL = Scale(kill_s=60, reloads=50, window_s=10, cycles=20, deaths=10_000, rounds=3)
QUICK = Scale(kill_s=10, reloads=10, window_s=4, cycles=3, deaths=500, rounds=1)


class Life:
    """A server whose application is a file that can be replaced: `with Life("blocking", workers=4) as life:`."""

    def __init__(self, kind: str, workers: int, **options: object) -> None:
        self.port = free_port()
        self._kind, self._workers, self._options = kind, workers, options

    def __enter__(self) -> Life:
        with contextlib.ExitStack() as undo:
            folder = undo.enter_context(tempfile.TemporaryDirectory())
            self._app = Path(folder, "release.py")
            self._log_path = Path(folder, "log")
            self.release(APP.format(kind=self._kind))
            ready, ready_write = os.pipe()
            undo.callback(os.close, ready)
            words = [f"--bind=127.0.0.1:{self.port}", f"--workers={self._workers}"]
            words += [f"--ready-fd={ready_write}", "--backlog=4096"]
            words += [f"--{name.replace('_', '-')}={value}" for name, value in self._options.items()]
            with self._log_path.open("wb") as log:
                self._process = subprocess.Popen(
                    [str(installed.python()), "-m", "pyfanout", "run", "release:handler", *words],
                    cwd=folder,
                    env=installed.environment(),
                    stderr=log,
                    pass_fds=[ready_write],
                    start_new_session=True,
                )
            os.close(ready_write)
            if os.read(ready, 1) != b"\n":
                raise ServerError(f"the server did not start; its log:\n{self.log}")
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        with self._undo:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(LIMIT_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            for pid in procfs.session(self.pid):
                os.kill(pid, signal.SIGKILL)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def log(self) -> str:
        return self._log_path.read_text(errors="replace")

    @property
    def workers(self) -> list[int]:
        return [pid for pid in procfs.session(self.pid) if pid != self.pid]

    def release(self, text: str) -> None:
        fresh = self._app.with_name("fresh")
        fresh.write_text(text)
        fresh.rename(self._app)

    def send(self, signum: int) -> None:
        self._process.send_signal(signum)

    def wait_log(self, pattern: str, count: int) -> None:
        """Until so many lines match."""
        self.wait(lambda: len(re.findall(pattern, self.log)) >= count, pattern)

    def wait(self, condition: Callable[[], bool], what: str) -> None:
        end_s = time.monotonic() + LIMIT_S
        while not condition():
            if time.monotonic() > end_s:
                raise ServerError(f"{what}: not within {LIMIT_S:g} s; the log:\n{self.log[-4000:]}")
            time.sleep(0.005)

    def wait_workers(self, count: int, without: Collection[int] = ()) -> None:
        """Until there are so many, those that are known aside."""
        self.wait(lambda: len(set(self.workers).difference(without)) == count, f"{count} workers")

    def lost_in_handlers(self) -> int:
        """Connections that workers had in their hands when they were killed, as the log names them."""
        return sum(map(int, re.findall(r"was killed by SIG\w+.* with (\d+) connections? in its hands", self.log)))


@contextlib.contextmanager
def loaded(port: int, duration_s: float, **knobs: float | str) -> Iterator[list[loadgen.Answers]]:
    """Load beside what is done inside; its answers are there afterwards."""
    found: list[loadgen.Answers] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            found.append(loadgen.load(port, duration=duration_s, run_s=duration_s + LIMIT_S, **knobs))
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield found
    finally:
        thread.join()
    if failed:
        raise failed[0]


@dataclass(frozen=True, slots=True)
class Outcome:
    """One round of a row."""

    value: float
    good: bool
    detail: str


def _failures(answers: loadgen.Answers) -> str:
    return f"{answers['errors_total']} of {answers['started']} failed {answers.errors or ''}".rstrip()


# ---- the rows --------------------------------------------------------------------------------------------------


def kills(path: str, allowed: float) -> Callable[[Scale, int], Outcome]:
    """SIGKILL to a random worker every 0.5 s."""

    def measure(scale: Scale, seed: int) -> Outcome:
        chance = random.Random(seed)
        killed = 0
        with Life("blocking", 4) as life:
            with loaded(life.port, scale.kill_s, rate=2000, path=path, seed=seed, timeout=10) as found:
                end_s = time.monotonic() + scale.kill_s
                while time.monotonic() < end_s - 0.5:
                    time.sleep(0.5)
                    with contextlib.suppress(ProcessLookupError, IndexError):
                        os.kill(chance.choice(life.workers), signal.SIGKILL)
                        killed += 1
            life.wait_log("was killed by SIGKILL", killed)
            answers, lost = found[0], life.lost_in_handlers()
        per_kill = answers["errors_total"] / killed
        others = {kind: count for kind, count in answers.errors.items() if kind not in ("reset", "short")}
        good = per_kill <= allowed and answers["errors_total"] <= lost and not others
        return Outcome(per_kill, good, f"{_failures(answers)} at {killed} kills; the log names {lost} in handlers")

    return measure


def reloads(kind: str, requests: int, rate: float) -> Callable[[Scale, int], Outcome]:
    """One rolling reload after the other, under `rate` connections per second with `requests` on each."""

    def measure(scale: Scale, seed: int) -> Outcome:
        with Life(kind, 4) as life:
            done = threading.Event()
            total: list[loadgen.Answers] = []

            def ask_on() -> None:
                while not done.is_set():
                    total.append(
                        loadgen.load(life.port, rate=rate, requests=requests, duration=2, seed=seed + len(total))
                    )

            thread = threading.Thread(target=ask_on)
            thread.start()
            try:
                for count in range(scale.reloads):
                    life.send(signal.SIGHUP)
                    life.wait_log("reloaded: 4 workers are new", count + 1)
            finally:
                done.set()
                thread.join()
        failed = sum(one["errors_total"] for one in total)
        started = sum(one["started"] for one in total)
        return Outcome(failed, failed == 0, f"{failed} of {started} connections failed, {scale.reloads} reloads")

    return measure


def broken(how: str) -> Callable[[Scale, int], Outcome]:
    """A reload onto a release that does not start, twice; then one that does."""

    def measure(_scale: Scale, seed: int) -> Outcome:
        with Life("blocking", 4, boot_timeout=1.0) as life:
            old = life.workers
            with loaded(life.port, 4, rate=1000, seed=seed) as found:
                life.release(BROKEN[how])
                for count in (1, 2):
                    life.send(signal.SIGHUP)
                    life.wait_log("the reload has stopped, 0 of 4 workers are new", count)
            same = life.workers == old
        failed = found[0]["errors_total"]
        return Outcome(
            failed, failed == 0 and same, f"{_failures(found[0])}; old workers {'stayed' if same else 'LEFT'}"
        )

    return measure


def stopped(scale: Scale, seed: int) -> Outcome:
    """One of 4 workers is stopped; p99 after it was replaced, to p99 before."""
    with Life("blocking", 4) as life:
        before = loadgen.load(life.port, rate=1000, duration=scale.window_s, warmup=1, path="work", seed=seed)
        with loaded(life.port, 12, rate=1000, path="work", seed=seed + 1, timeout=20) as found:
            time.sleep(1)
            os.kill(life.workers[0], signal.SIGSTOP)
        life.wait_log(r"was killed by SIG\w+ \(hung: ", 1)
        lost = life.lost_in_handlers()
        after = loadgen.load(life.port, rate=1000, duration=scale.window_s, warmup=1, path="work", seed=seed)
    ratio = after.fast_ns("p99") / before.fast_ns("p99")
    failed = found[0]["errors_total"]
    good = failed <= lost and not before.errors and not after.errors and ratio <= 1.10
    return Outcome(ratio, good, f"{_failures(found[0])}, {lost} in the handler of the one that was stopped")


def scaling(scale: Scale, seed: int) -> Outcome:
    """4 to 8 to 1 to 4 workers, again and again."""
    with Life("blocking", 4) as life:
        with loaded(life.port, 2.5 * scale.cycles, rate=1000, path="work", seed=seed) as found:
            end_s = time.monotonic() + 2.5 * scale.cycles
            for _ in range(scale.cycles):
                for signum, steps in (
                    (signal.SIGTTIN, range(5, 9)),
                    (signal.SIGTTOU, range(7, 0, -1)),
                    (signal.SIGTTIN, range(2, 5)),
                ):
                    for count in steps:
                        life.send(signum)
                        life.wait_workers(count)
            spare_s = end_s - time.monotonic()
        answers = found[0]
    failed = answers["errors_total"]
    return Outcome(failed, failed == 0 and spare_s > 0, f"{_failures(answers)}, {scale.cycles} times")


def deaths(scale: Scale, _seed: int) -> Outcome:
    """What the master has after so many deaths, to before."""
    with Life("blocking", 4, min_uptime=0, log_level="error") as life:

        def die(count: int) -> None:
            """Four at a time, each when it was ready: one that dies while it boots is held back on purpose."""
            for _ in range(0, count, 4):
                old = set(life.workers)
                for pid in old:
                    os.kill(pid, signal.SIGKILL)
                life.wait_workers(4, without=old)
                time.sleep(BOOT_S)

        die(1000)  # now what is remembered of the last deaths is full, and the heap has its holes
        before = _holdings(life.pid)
        die(scale.deaths)
        after = _holdings(life.pid)
    same = after[:3] == before[:3]
    grown_kib = after[3] - before[3]
    detail = f"descriptors, zombies, mappings {before[:3]} -> {after[:3]}; resident {before[3]} -> {after[3]} KiB"
    return Outcome(grown_kib, same and grown_kib < 256, detail)


def _holdings(pid: int) -> tuple[int, int, int, int]:
    """Descriptors, zombie children, shared mappings, resident KiB."""
    proc = Path(f"/proc/{pid}")
    children = (proc / "task" / str(pid) / "children").read_text().split()
    zombies = sum("\nState:\tZ" in Path(f"/proc/{child}/status").read_text() for child in children)
    shared = sum(" rw-s " in line or "/dev/zero" in line for line in (proc / "maps").read_text().splitlines())
    resident = next(line for line in (proc / "status").read_text().splitlines() if line.startswith("VmRSS"))
    return len(os.listdir(proc / "fd")), zombies, shared, int(resident.split()[1])


@dataclass(frozen=True, slots=True)
class Row:
    name: str
    label: str
    asked: str
    measure: Callable[[Scale, int], Outcome]


ROWS = (
    Row(
        "kill-busy", "failures per SIGKILL, 2,000/s, 1 ms of service, 4 blocking workers", "at most 1", kills("work", 1)
    ),
    Row("kill-idle", "the same, no service time", "at most 0.05", kills("fast", 0.05)),
    Row("reload-blocking-1", "failures in rolling reloads at 1,000/s, blocking", "0", reloads("blocking", 1, 1000)),
    Row("reload-blocking-20", "the same, 20 requests on each connection", "0", reloads("blocking", 20, 1000)),
    Row("reload-asyncio-1", "failures in rolling reloads at 1,000/s, asyncio", "0", reloads("asyncio", 1, 1000)),
    Row("reload-asyncio-20", "the same, 20 requests on each connection", "0", reloads("asyncio", 20, 1000)),
    *(
        Row(f"broken-{how.split()[0]}", f"failures while a release that {how} is refused", "0", broken(how))
        for how in BROKEN
    ),
    Row("stopped", "p99 after one of 4 was stopped and replaced, to before", "at most 1.10", stopped),
    Row("scaling", "failures while scaling 4, 8, 1, 4 at 1,000/s", "0", scaling),
    Row("deaths", "KiB that the master has grown by after the deaths", "as before", deaths),
)


def run(scale: Scale, only: list[str]) -> list[str]:
    """The table, a line each; progress goes to stderr."""
    loadgen.build()
    rows = [row for row in ROWS if not only or any(row.name.startswith(name) for name in only)]
    if not rows:
        raise ServerError(f"no row is called {' or '.join(only)}: {', '.join(row.name for row in ROWS)}")
    outcomes: dict[str, list[Outcome]] = {row.name: [] for row in rows}
    for round_ in range(scale.rounds):
        for row in rows:
            outcome = row.measure(scale, 1000 * (round_ + 1))
            outcomes[row.name].append(outcome)
            verdict = "ok" if outcome.good else "MISSED"
            print(f"round {round_ + 1} {row.name}: {outcome.value:.4g} {verdict}; {outcome.detail}", file=sys.stderr)
    lines = ["| what | asked | median (min..max) | n | verdict | last round |", "|---|---|---|---|---|---|"]
    for row in rows:
        values = [one.value for one in outcomes[row.name]]
        spread = f"{statistics.median(values):.4g} ({min(values):.4g}..{max(values):.4g})"
        verdict = "reached" if all(one.good for one in outcomes[row.name]) else "**missed**"
        detail = outcomes[row.name][-1].detail
        lines.append(f"| {row.label} | {row.asked} | {spread} | {len(values)} | {verdict} | {detail} |")
    return lines
