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
from pathlib import Path
from types import TracebackType

from bench import procfs

ROOT = Path(__file__).parents[1]
READY_LIMIT_S = 20.0
STOP_LIMIT_S = 20.0
LOG_LIMIT_BYTES = 1 << 20


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
    ) -> None:
        self.name = name
        self.port = free_port()
        self._command = [sys.executable, "-m", "bench.subjects", name, "--handler", handler]
        self._command += ["--port", str(self.port), "--workers", str(workers), "--policy", policy]
        if cpu is not None:
            self._command += ["--cpu", str(cpu)]
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
                env=_environment(),
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
