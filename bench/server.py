"""One subject as the bench sees it: started, ready, measured, stopped, and nothing left behind."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from bench import clients, installed, procfs
from bench.field import PEERS, Subject, program

READY_LIMIT_S = 20.0
READY_LIMIT_EACH_S = 1.0
"""And so much for each worker, of the slowest servers, which start them one after the other."""
REST_S = 0.2
"""All workers are there when a server has used no CPU for so long, and none of its processes waits for a core, as one
may for long where others use them all. They are not asked before: a worker of pyfanout that enters where another has
two connections is spared for 10 s (csrc/route.c)."""
REST_CPU_NS = 4_000_000
STOP_LIMIT_S = 20.0
SETTLE_S = 0.5
"""For what a server does when those that were there before have gone."""
PORT_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
LEAST_PORT = 10_000
"""Below are those that have names."""
POLL_S = 0.02
"""Between two tries to connect to a server that starts, for nothing tells when it listens, and other such looks."""
LOG_CHARACTERS = 4000


class ServerError(Exception):
    """The server did not start, did not stop, or left something; the text holds its log."""


def free_port() -> int:
    """A port that is free now, and until the server binds it, and does so again: if there are any, it is one of those
    that the kernel does not give to clients, and to listeners that ask for any."""
    first, last = map(int, PORT_RANGE.read_text().split())
    beside = [*range(LEAST_PORT, first), *range(last + 1, 1 << 16)]
    for port in [*random.SystemRandom().sample(beside, len(beside)), 0]:
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return int(probe.getsockname()[1])
    raise ServerError("there is no free port")


class Server:
    """`with Server(BY_NAME["uvicorn"], workers=4) as server:` - it has started inside: it has answered once, and has
    nothing more to do. It starts on all cores, which is quicker; then it has `cpu`."""

    orphans_s = 0.0
    """CPU of workers that were killed beside their parent: nothing waits for them, so `os.times` never counts them."""

    def __init__(
        self, subject: Subject, *, workers: int, cpu: int | None = None, ballast_mb: int = 0, options: str = ""
    ) -> None:
        self.subject = subject
        self.port = free_port()
        self._workers = workers
        self._cpu = cpu
        self._ballast_mb = ballast_mb
        self._options = options
        self._told = False
        """To stop: a second SIGTERM, in the last instant of a process, would end it by that."""

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace").strip()

    def workers(self) -> list[int]:
        return [pid for pid in procfs.session(self.pid) if pid != self.pid]

    def __enter__(self) -> Server:
        with contextlib.ExitStack() as undo:
            self.folder = Path(undo.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
            values = {"port": self.port, "workers": self._workers, "folder": self.folder, "here": PEERS}
            for name, text in self.subject.files:
                (self.folder / name).write_text(text % values)
            own = {name: text.format(**values) for name, text in self.subject.variables}
            self._environment = {**installed.environment(), "BENCH_BALLAST_MB": str(self._ballast_mb), **own}
            command = f"{self.subject.command} {self._options}".format(**values, python=installed.python())
            first, *rest = command.split()
            self._words = [program(first) or first, *rest]
            self._launch([])
            undo.callback(self._end_all)
            self.wait(self.answers, "does not answer")
            self.wait(self._rests, "does not come to rest")
            if self._cpu is not None:
                procfs.pin(self.pid, self._cpu)
            self._undo = undo.pop_all()
        return self

    def _launch(self, prefix: list[str]) -> None:
        own = {"cwd": installed.SITE, "env": self._environment, "stdin": subprocess.DEVNULL, "start_new_session": True}
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen([*prefix, *self._words], stdout=log, stderr=log, **own)

    def wait(self, condition: Callable[[], bool], otherwise: str, limit_s: float | None = None) -> None:
        """Until it is true. Raises ServerError, with the log, if the server ends before, or it is not so in time."""
        end_s = time.monotonic() + (limit_s or READY_LIMIT_S + READY_LIMIT_EACH_S * self._workers)
        while not condition():
            if time.monotonic() > end_s or self._process.poll() is not None:
                raise ServerError(f"{self.subject.name} {otherwise}; its log:\n{self.log[-LOG_CHARACTERS:]}")
            time.sleep(POLL_S)

    def answers(self) -> bool:
        with contextlib.suppress(OSError):  # it does not listen yet
            return bool(clients.at_once(self.port, 1))
        return False

    def _rests(self) -> bool:
        before = procfs.session_cpu_ns(self.pid)
        time.sleep(REST_S)
        return procfs.session_cpu_ns(self.pid) - before < REST_CPU_NS and procfs.sleeps(self.pid)

    def reload(self) -> None:
        """To replace its workers; it may return before they are."""
        if isinstance(self.subject.reload, signal.Signals):
            os.kill(self.pid, self.subject.reload)
        elif self.subject.reload:
            command = self.subject.reload.split()
            subprocess.run(command, cwd=installed.SITE, env=self._environment, check=True, capture_output=True)

    def terminate(self) -> None:
        """To stop gracefully, once."""
        if not self._told:
            self._told = True
            self._process.send_signal(self.subject.stop)

    def stopped_s(self, limit_s: float) -> float:
        """To stop gracefully: how long until its master and all its workers have exited. Raises ServerError."""
        begin_s = time.monotonic()
        took_s, leaving = 0.0, procfs.session(self.pid)
        self.terminate()
        while leaving:
            if not procfs.exit_before(begin_s + limit_s, leaving):
                raise ServerError(f"had not stopped after {limit_s:g} s")
            took_s = time.monotonic() - begin_s
            leaving = procfs.session(self.pid)  # what was forked meanwhile
        return took_s

    def restarted_s(self, limit_s: float) -> float:
        """As `systemctl restart` does it: the signal, and when it has ended, the same again, on its core from the
        beginning. How long until it answers: under load it never rests. Raises ServerError."""
        begin_s = time.monotonic()
        self._stop()
        self._told = False
        self._launch([] if self._cpu is None else ["taskset", "--cpu-list", str(self._cpu)])
        self.wait(self.answers, "does not answer")
        if (took_s := time.monotonic() - begin_s) > limit_s:
            raise ServerError(f"was not back after {limit_s:g} s")
        return took_s

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Of those that others have made, at once: how they stop is asked by a question of its own."""
        with self._undo:
            if not self.subject.exits:
                return
            left = self._stop()
            if kind is None and (left or self._process.returncode != 0):
                said = f"ended with {self._process.returncode} after TERM and left {len(left)} processes"
                raise ServerError(f"{self.subject.name} {said}; its log:\n{self.log}")

    def _stop(self) -> list[int]:
        """Gracefully, or by force; returns what was left."""
        self.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_LIMIT_S)
        return self._end_all()

    def _end_all(self) -> list[int]:
        """Kills what is left of the server's session; returns what that was."""
        left = procfs.session(self.pid)
        Server.orphans_s += sum(procfs.cpu_ns(pid) for pid in left if pid != self.pid) / 1e9
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait()
        deadline_s = time.monotonic() + STOP_LIMIT_S
        while procfs.session(self.pid) and time.monotonic() < deadline_s:
            time.sleep(0.01)
        return left
