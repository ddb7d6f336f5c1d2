"""What happens to clients while workers of `pyfanout run` die, hang, are replaced and scaled.

What is lost is a connection that did not get its whole answer. Values say in `detail` what happened, and in
`missed` what should not have.
"""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Collection
from pathlib import Path

from bench import loadgen, procfs
from bench.field import Subject
from bench.loadgen import Answers, common
from bench.losses import LOSS_RATE, loading
from bench.model import Context, Values
from bench.server import Server
from bench.speed import WORKERS

BROKEN = {
    "raises at import": "raise RuntimeError('a broken release')\n",
    "exits at start": "import os\nos._exit(9)\n",
    "never becomes ready": "import time\ntime.sleep(600)\n",
}
RATE = 2 * LOSS_RATE
LIMIT_S = 60.0
BOOT_S = 0.02
"""Longer than a worker takes to be ready, of which nothing tells at this log level. If too short, it is slower."""


def _wait_log(server: Server, pattern: str, count: int) -> None:
    """Until so many lines match."""
    server.wait(lambda: len(re.findall(pattern, server.log)) >= count, f"has not logged {pattern}", LIMIT_S)


def _wait_workers(server: Server, count: int, without: Collection[int] = ()) -> None:
    """Until there are so many, those that are known aside."""
    server.wait(lambda: len({*server.workers()}.difference(without)) == count, f"has not {count} workers", LIMIT_S)


def _lost(answers: Answers, detail: str, missed: str) -> Values:
    detail = f"{answers['errors_total']} of {answers['started']:,} lost; {detail}"
    return {"number": answers["errors_total"], "detail": detail, "missed": missed, **common(answers)}


def each_in_a_handler(server: Server, killed: int, answers: Answers, *more: str) -> Values:
    """The log names the connections that workers had in their hands when they were killed: no other may be lost."""
    _wait_log(server, r"was killed by SIG\w+", killed)
    named = sum(map(int, re.findall(r"was killed by SIG\w+.* with (\d+) connections? in progress", server.log)))
    missed = (
        ""
        if set(answers.errors) <= {"reset", "short", *more} and answers["errors_total"] <= named
        else "not each in a handler"
    )
    return _lost(answers, f"{killed} kills; the log names {named} in handlers", missed)


def broken(context: Context, subject: Subject, seed: int, *, how: str) -> Values:
    """What is lost in two reloads onto a release that does not start; the old workers must stay."""
    with Server(subject, workers=WORKERS, options="--boot-timeout 1.0") as server:
        old = server.workers()
        with loading(context, server, rate=RATE, seed=seed) as answers:
            fresh = server.folder / "fresh"
            fresh.write_text(BROKEN[how])
            fresh.rename(server.folder / "release.py")
            for count in (1, 2):
                server.reload()
                _wait_log(server, "reload aborted, 0 of 4 workers are new, the rest not replaced", count)
        missed = "" if server.workers() == old else "old workers have left"
    return _lost(answers, "two reloads", missed)


def stopped(context: Context, subject: Subject, seed: int) -> Values:
    """p99 after one of 4 workers was stopped and replaced, to p99 before. What is lost must have been in its hands."""
    knobs = {"rate": RATE, "path": "work", "seed": seed}
    window = {"cpu": context.load, "duration": context.scale.window_s, "warmup": 1, **knobs}
    with Server(subject, workers=WORKERS) as server:
        before = loadgen.load(server.port, **window)
        with loading(context, server, timeout=20, **knobs) as answers:
            os.kill(server.workers()[0], signal.SIGSTOP)
            _wait_log(server, r"was killed by SIG\w+ \(hung: ", 1)
        found = each_in_a_handler(server, 1, answers, "timeout")
        after = loadgen.load(server.port, **window)
    missed = "others were lost before or after" if before.errors or after.errors else found["missed"]
    return found | {"number": after.fast_ns("p99") / before.fast_ns("p99"), "missed": missed}


def scaling(context: Context, subject: Subject, seed: int) -> Values:
    """What is lost while there are 4, 8, 1 and 4 workers, again and again."""
    up, down = signal.SIGTTIN, signal.SIGTTOU
    knobs = {"rate": RATE, "path": "work", "seed": seed}
    with Server(subject, workers=WORKERS) as server, loading(context, server, **knobs) as answers:
        for _ in range(context.scale.cycles):
            for signum, counts in ((up, range(5, 9)), (down, range(7, 0, -1)), (up, range(2, 5))):
                for count in counts:
                    os.kill(server.pid, signum)
                    _wait_workers(server, count)
    return _lost(answers, f"{context.scale.cycles} times", "")


def deaths(context: Context, subject: Subject, _seed: int) -> Values:
    """By how many KiB the master has grown after so many deaths. Descriptors, zombies and mappings must be the same."""
    with Server(subject, workers=WORKERS, options="--min-uptime 0 --log-level error") as server:
        _die(server, 1000)  # now what is remembered of the last deaths is full, and the heap has its holes
        *before, before_kib = _holdings(server.pid)
        _die(server, context.scale.deaths)
        *after, after_kib = _holdings(server.pid)
    detail = f"descriptors, zombies, mappings {before} -> {after}; resident {before_kib} -> {after_kib} KiB"
    missed = "" if after == before else "it holds something else"
    return {"number": after_kib - before_kib, "detail": detail, "missed": missed, "errors": {}}


def _die(server: Server, count: int) -> None:
    """Four at a time, each when it was ready: one that dies while it boots is held back on purpose."""
    for _ in range(0, count, WORKERS):
        old = set(server.workers())
        for pid in old:
            os.kill(pid, signal.SIGKILL)
        _wait_workers(server, WORKERS, without=old)
        time.sleep(BOOT_S)


def _holdings(pid: int) -> tuple[int, int, int, int]:
    """Descriptors, zombie children, shared mappings, resident KiB."""
    proc = Path(f"/proc/{pid}")
    children = (proc / "task" / str(pid) / "children").read_text().split()
    zombies = sum(procfs.field(Path(f"/proc/{child}/status"), "State") == "Z" for child in children)
    shared = sum(" rw-s " in line or "/dev/zero" in line for line in (proc / "maps").read_text().splitlines())
    return len(os.listdir(proc / "fd")), zombies, shared, int(procfs.field(proc / "status", "VmRSS"))
