"""One server under test, as the suite sees it: started, ready, measured, stopped, and nothing left behind."""

from __future__ import annotations

import contextlib
import os
import random
import select
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType

from bench import clients, installed, procfs
from bench.peers import PEERS

READY_LIMIT_S = 20.0
READY_LIMIT_EACH_S = 1.0
"""And so much for each worker, of the slowest who start them one after the other."""
REST_S = 0.2
"""Some workers of a peer may never be given a connection; all are there when it has used no CPU for so long."""
REST_CPU_NS = 4_000_000
STOP_LIMIT_S = 20.0
LOG_LIMIT_BYTES = 1 << 20
ASKED_AT_ONCE = 16
"""Connections in which all workers of a peer should be found; if not, so many again."""
PORT_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
LEAST_PORT = 10_000
"""Below are those that have names."""
POLL_S = 0.05
"""Between two tries to connect to a peer that starts: nothing tells when it listens."""


class ServerError(Exception):
    """The server did not start, did not stop, or left something; the text holds its log."""


def free_port() -> int:
    """A port nobody has now, nor has before the server binds it, or does so again: if there are any, it is one of those
    that the kernel does not give to clients, and to listeners that ask for any."""
    first, last = map(int, PORT_RANGE.read_text().split())
    beside = [*range(LEAST_PORT, first), *range(last + 1, 1 << 16)]
    for port in [*random.SystemRandom().sample(beside, len(beside)), 0]:
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return int(probe.getsockname()[1])
    raise ServerError("there is no free port")


def words(name: str, handler: str, threads: int, policy: str) -> list[str]:
    """Of the command that starts one of `bench.subjects`."""
    return ["-m", "bench.subjects", name, "--handler", handler, "--threads", str(threads), "--policy", policy]


class Server:
    """`with Server("shared", handler="asyncio", workers=4) as server:` - every worker is ready inside."""

    orphans_s = 0.0
    """CPU of workers that were killed beside their parent: nobody waits for them, so `os.times` never counts them."""

    def __init__(
        self,
        name: str,
        *,
        handler: str,
        workers: int,
        policy: str = "least-connections",
        cpu: int | None = None,
        threads: int = 1,
        ballast_mb: int = 0,
    ) -> None:
        self.name = name
        self.port = free_port()
        self._command = [str(installed.python()), *words(name, handler, threads, policy)]
        self._command += ["--port", str(self.port), "--workers", str(workers)]
        if cpu is not None:
            self._command += ["--cpu", str(cpu)]
        self._environment = installed.environment() | {"BENCH_BALLAST_MB": str(ballast_mb)}
        self._process: subprocess.Popen[bytes] | None = None
        self._stop_signal = signal.SIGTERM
        self._told = False
        """To stop: a second SIGTERM, in the last instant of a process, would end it by that."""

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def workers(self) -> list[int]:
        return [pid for pid in procfs.session(self.pid) if pid != self.pid]

    def __enter__(self) -> Server:
        self._log = tempfile.TemporaryFile()
        self._launch()
        return self

    def terminate(self) -> None:
        """Tell it to stop gracefully, once."""
        assert self._process is not None
        if not self._told:
            self._told = True
            self._process.send_signal(self._stop_signal)

    def stopped_s(self, limit_s: float) -> float:
        """Tell it to stop gracefully: how long until its master and all its workers have exited. Raises ServerError."""
        begin_s = time.monotonic()
        took_s, leaving = 0.0, procfs.session(self.pid)
        self.terminate()
        while leaving:
            for pid in leaving:
                if not procfs.exits(pid, begin_s + limit_s - time.monotonic()):
                    raise ServerError(f"had not stopped after {limit_s:g} s")
            took_s = time.monotonic() - begin_s
            leaving = procfs.session(self.pid)  # who was forked meanwhile
        return took_s

    def reload(self) -> None:
        """Tell it to replace its workers; it may return before they are."""
        os.kill(self.pid, signal.SIGHUP)

    def restart(self) -> None:
        """As `systemctl restart` does it: the signal, and when it has ended, the same again. It serves after that."""
        assert self._process is not None
        self.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_LIMIT_S)
        self._end_all()
        self._told = False
        self._launch()

    def _launch(self) -> None:
        ready, ready_write = os.pipe()
        try:
            self._process = subprocess.Popen(
                [*self._command, "--ready-fd", str(ready_write)],
                cwd=installed.SITE,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
                pass_fds=[ready_write],
                start_new_session=True,
            )
            os.close(ready_write)
            readable, _, _ = select.select([ready], [], [], READY_LIMIT_S)
            if not readable or os.read(ready, 1) != b"\n":
                self._end_all()
                error = ServerError(f"{self.name} did not become ready; its log:\n{self.log()}")
                self._log.close()
                raise error
        finally:
            os.close(ready)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process is not None
        try:
            self.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(STOP_LIMIT_S)
            left = self._end_all()
            if kind is None and (left or self._process.returncode != 0):
                raise ServerError(
                    f"{self.name} ended with {self._process.returncode} after TERM and left {len(left)} "
                    f"processes; its log:\n{self.log()}"
                )
        finally:
            self._log.close()

    def log(self) -> str:
        # the server's descriptor is the same open file: reading at an offset leaves alone where it writes
        return os.pread(self._log.fileno(), LOG_LIMIT_BYTES, 0).decode(errors="replace").strip()

    def _end_all(self) -> list[int]:
        """Kills what is left of the server's session; returns what that was."""
        left = procfs.session(self.pid)
        Server.orphans_s += sum(procfs.cpu_ns_if_alive(pid) for pid in left if pid != self.pid) / 1e9
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if self._process is not None:
            self._process.wait()
        deadline_s = time.monotonic() + STOP_LIMIT_S
        while procfs.session(self.pid) and time.monotonic() < deadline_s:
            time.sleep(0.01)
        return left


class PeerServer(Server):
    """One of `bench.peers`, which says nothing when it is ready: so it is asked until all its workers have answered, or
    it has nothing more to do at the start. It starts on all cores, which is quicker. A restart, which is measured, has
    the one core from its beginning, and is over when somebody answers: under load nobody rests."""

    def __init__(
        self, name: str, *, workers: int, cpu: int | None = None, ballast_mb: int = 0, preload: bool = False
    ) -> None:
        super().__init__(name, handler="", workers=workers, ballast_mb=ballast_mb)
        self._peer = PEERS[name]
        self._stop_signal = self._peer.stop
        self._workers = workers
        self._cpu = cpu
        self._preload = preload

    def __enter__(self) -> PeerServer:
        self._folder = tempfile.TemporaryDirectory(prefix="bench-")
        self._log = tempfile.TemporaryFile()
        try:
            self._launch()
        except BaseException as error:
            self.__exit__(type(error), error, None)
            raise
        return self

    def _launch(self) -> None:
        folder = Path(self._folder.name)
        again = self._process is not None
        pinned = again and self._cpu is not None
        self._process = subprocess.Popen(
            [
                *(["taskset", "--cpu-list", str(self._cpu)] if pinned else []),
                *self._peer.words(self.port, self._workers, folder, preload=self._preload),
            ],
            cwd=installed.SITE,
            env=self._environment_there(),
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            start_new_session=True,
        )
        self._wait_for(1 if again else self._workers)
        if self._cpu is not None:
            procfs.pin(self.pid, self._cpu)

    def _environment_there(self) -> dict[str, str]:
        return self._environment | self._peer.environment(self.port, Path(self._folder.name))

    def reload(self) -> None:
        if isinstance(self._peer.reload, signal.Signals):
            os.kill(self.pid, self._peer.reload)
        elif self._peer.reload:
            command = self._peer.reload.split()
            subprocess.run(command, cwd=installed.SITE, env=self._environment_there(), check=True, capture_output=True)

    def _wait_for(self, workers: int) -> None:
        end_s = time.monotonic() + READY_LIMIT_S + READY_LIMIT_EACH_S * self._workers
        found: set[int] = set()
        while len(found) < workers and not (found and self._rests()):
            assert self._process is not None
            if time.monotonic() > end_s or self._process.poll() is not None:
                raise ServerError(f"{len(found)} workers of {self.name} answer; its log:\n{self.log()}")
            try:
                found.update(clients.at_once(self.port, ASKED_AT_ONCE))
            except OSError:  # it does not listen yet
                time.sleep(POLL_S)

    def _rests(self) -> bool:
        before = procfs.session_cpu_ns(self.pid)
        time.sleep(REST_S)
        return procfs.session_cpu_ns(self.pid) - before < REST_CPU_NS

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """At once: how it stops is asked by a question of its own."""
        self._end_all()
        self._log.close()
        self._folder.cleanup()
