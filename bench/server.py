"""One server under test, as the suite sees it: started, ready, measured, stopped, and nothing left behind."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from bench import procfs
from bench.peers import PEERS

ROOT = Path(__file__).parents[1]
READY_LIMIT_S = 20.0
STOP_LIMIT_S = 20.0
LOG_LIMIT_BYTES = 1 << 20
ANSWER_LIMIT_S = 20.0
REQUEST = b"GET /hold HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
"""After which the connection may stay open."""
ASKED_AT_ONCE = 16
"""Connections in which all workers of a peer should be found; if not, so many again."""
POLL_S = 0.05
"""Between two tries to connect to a peer that starts: nothing tells when it listens."""


class ServerError(Exception):
    """The server did not start, did not stop, or left something; the text holds its log."""


def free_port() -> int:
    """A port nobody has now. The load generator binds other addresses, so it cannot take it meanwhile."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _environment() -> dict[str, str]:
    """Ours, but with compiled modules kept, as where a package is installed: else each start compiles them."""
    environment = dict(os.environ)
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    environment["PYTHONPYCACHEPREFIX"] = str(ROOT / "bench" / "results" / "pycache")
    return environment


class Server:
    """`with Server("shared", handler="asyncio", workers=4) as server:` - every worker is ready inside."""

    def __init__(
        self,
        name: str,
        *,
        handler: str,
        workers: int,
        policy: str = "round-robin",
        cpu: int | None = None,
        threads: int = 1,
        ballast_mb: int = 0,
    ) -> None:
        self.name = name
        self.port = free_port()
        self._command = [sys.executable, "-m", "bench.subjects", name, "--handler", handler, "--threads", str(threads)]
        self._command += ["--port", str(self.port), "--workers", str(workers), "--policy", policy]
        if cpu is not None:
            self._command += ["--cpu", str(cpu)]
        self._environment = _environment() | {"BENCH_BALLAST_MB": str(ballast_mb)}
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def workers(self) -> list[int]:
        return [pid for pid in procfs.session(self.pid) if pid != self.pid]

    def __enter__(self) -> Server:
        ready, ready_write = os.pipe()
        self._log = tempfile.TemporaryFile()
        try:
            self._process = subprocess.Popen(
                [*self._command, "--ready-fd", str(ready_write)],
                cwd=ROOT,
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
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process is not None
        try:
            self._process.send_signal(signal.SIGTERM)
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
    """One of `bench.peers`, which says nothing when it is ready: so it is asked until all its workers have answered."""

    def __init__(self, name: str, *, workers: int, cpu: int | None = None, ballast_mb: int = 0) -> None:
        super().__init__(name, handler="", workers=workers, ballast_mb=ballast_mb)
        self._peer = PEERS[name]
        self._workers = workers
        self._cpu = cpu

    def __enter__(self) -> PeerServer:
        self._folder = tempfile.TemporaryDirectory(prefix="bench-")
        folder = Path(self._folder.name)
        cpus = [] if self._cpu is None else ["taskset", "--cpu-list", str(self._cpu)]
        self._log = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            [*cpus, *self._peer.words(self.port, self._workers, folder)],
            cwd=ROOT,
            env=self._environment | self._peer.environment(self.port, folder),
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            start_new_session=True,
        )
        try:
            self._wait_for_workers()
        except BaseException as error:
            self.__exit__(type(error), error, None)
            raise
        return self

    def _wait_for_workers(self) -> None:
        end_s = time.monotonic() + READY_LIMIT_S
        found: set[int] = set()
        while len(found) < self._workers:
            assert self._process is not None
            if time.monotonic() > end_s or self._process.poll() is not None:
                raise ServerError(f"{len(found)} workers of {self.name} answer; its log:\n{self.log()}")
            try:
                found.update(_at_once(self.port, ASKED_AT_ONCE))
            except OSError:  # it does not listen yet
                time.sleep(POLL_S)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """At once: how it stops is asked by a question of its own."""
        self._end_all()
        self._log.close()
        self._folder.cleanup()


@contextlib.contextmanager
def held(port: int, count: int) -> Iterator[list[int]]:
    """So many connections, one after the other, that stay open: the pid that each was answered. Raises OSError if one
    is refused, reset or silent, and ServerError if that is no answer."""
    answers = []
    with contextlib.ExitStack() as stack:
        for _ in range(count):
            conn = stack.enter_context(socket.create_connection(("127.0.0.1", port), ANSWER_LIMIT_S))
            conn.sendall(REQUEST)
            answers.append(_answer(conn))
        yield answers


def _at_once(port: int, count: int) -> set[int]:
    """Who answers so many that are all there before the first is answered: one after the other, it may be always the
    same. Raises as `held`."""
    with contextlib.ExitStack() as stack:
        address = ("127.0.0.1", port)
        conns = [stack.enter_context(socket.create_connection(address, ANSWER_LIMIT_S)) for _ in range(count)]
        for conn in conns:
            conn.sendall(REQUEST)
        found = set()
        for conn in conns:
            found.add(_answer(conn))
            conn.close()  # gunicorn lingers until then
        return found


def _answer(conn: socket.socket) -> int:
    """The pid of whom has it."""
    answer = b""
    while not (answer.endswith(b"\n") and answer.partition(b"\r\n\r\n")[2]):
        more = conn.recv(4096)
        if not more:
            raise ConnectionResetError(f"closed after {answer!r}")
        answer += more
    if not answer.startswith((b"HTTP/1.0 200", b"HTTP/1.1 200")):
        raise ServerError(f"not an answer: {answer!r}")
    return int(answer.partition(b"\r\n\r\n")[2])
