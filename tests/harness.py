"""Start, stop, kill and look at a server under test, which is always a real process of its own; and its clients.

A server's log goes to a file, so nothing here needs a thread. All its processes share a session, whose number is the
master's pid: whoever is left over is found by it, and killed by pid.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import fork_server

T = TypeVar("T")

TESTS = Path(__file__).resolve().parent
DEADLINE_S = 15.0
"""Before a test says that something does not happen: far more than it takes on a busy machine of two cores."""

POLL_S = 0.004
"""Between two looks at a condition that nothing announces."""

RETURN_S = 0.2
"""For a handler to return after its client has seen the end."""

HIGH_FD = 40
"""Descriptors that a server inherits have numbers from here on: low ones are for LISTEN_FDS."""

NOBODY = 20_000 + int.from_bytes(os.urandom(4)) % 40_000
"""A user that owns nothing; another one for each process that runs tests. The kernel counts processes, and descriptors
in flight, by user, and some tests see to it that a user has too many: those that run beside them shall not."""

SUSPECT = re.compile(
    r" (ERROR|CRITICAL) |^ *(Traceback|Exception) |Warning\b|Fatal Python error|AddressSanitizer|assert"
)
IN_HANDS = re.compile(r"with (\d+) connections? in progress")
LISTENING = re.compile(r"listening on (.*) with (\d+) workers?, ([\w-]+)$", re.MULTILINE)


def wait_until(
    condition: Callable[[], T],
    what: str,
    *,
    deadline_s: float = DEADLINE_S,
    log: Callable[[], str] | None = None,
) -> T:
    """The first true result of `condition`. AssertionError, with the log, if there is none before the deadline."""
    end = time.monotonic() + deadline_s
    while True:
        result = condition()
        if result:
            return result
        if time.monotonic() >= end:
            text = f"\n--- log:\n{log()}" if log else ""
            raise AssertionError(f"not within {deadline_s:g} s: {what} (last: {result!r}){text}")
        time.sleep(POLL_S)


# ---- looking at processes ------------------------------------------------------------------------------------------


def _read(path: str) -> str:
    """A file of /proc; empty if the process is gone."""
    try:
        with open(path, errors="replace") as file:
            return file.read()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def state_of(pid: int) -> str:
    """The kernel's letter: S sleeps, R runs, T is stopped, Z is a zombie; empty: there is no such process."""
    return (_stat(pid) or [""])[0]


def _stat(pid: int) -> list[str]:
    """The fields of /proc/pid/stat from the third (state) on; empty if it is gone."""
    return _read(f"/proc/{pid}/stat").rpartition(")")[2].split()


def is_over(pid: int) -> bool:
    """Dead; perhaps not reaped."""
    return state_of(pid) in ("", "Z", "X")


def children_of(pid: int) -> list[int]:
    """Zombies too, in the order of their birth."""
    found: list[int] = []
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for task in os.listdir(f"/proc/{pid}/task"):
            found += map(int, _read(f"/proc/{pid}/task/{task}/children").split())
    return sorted(found)


def session_of(leader: int) -> list[int]:
    """The living processes of a session. A dead one is its parent's affair, and its parent may be init."""
    found = []
    for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
        with contextlib.suppress(ProcessLookupError):
            if os.getsid(pid) == leader and not is_over(pid):
                found.append(pid)
    return found


def is_asleep(pid: int) -> bool:
    """All its threads wait for something: what it had to do is done. Each is looked at twice, and has not run between
    the two looks: else one that waits for a lock is seen asleep, then the one that had the lock."""
    threads = _sleepers(pid)
    return bool(threads) and threads == _sleepers(pid)


def _sleepers(pid: int) -> dict[str, str]:
    """How often each thread has gone to sleep; empty if one of them runs."""
    found = {}
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for task in os.listdir(f"/proc/{pid}/task"):
            fields = dict(line.split(":", 1) for line in _read(f"/proc/{pid}/task/{task}/status").splitlines())
            if fields.get("State", "").strip()[:1] != "S":
                return {}
            found[task] = fields["voluntary_ctxt_switches"]
    return found


def _task_stat(pid: int, task: str) -> list[str]:
    return _read(f"/proc/{pid}/task/{task}/stat").rpartition(")")[2].split()


def freeze(pid: int) -> None:
    """SIGSTOP, and wait until every thread has stopped: one that runs may do something more."""
    os.kill(pid, signal.SIGSTOP)

    def stopped() -> bool:
        return all(_task_stat(pid, task)[0] == "T" for task in os.listdir(f"/proc/{pid}/task"))

    wait_until(stopped, f"{pid} has stopped")


def fds_of(pid: int) -> dict[int, str]:
    """What each descriptor is: `socket:[123]`, `pipe:[123]`, `anon_inode:[eventpoll]`, a path."""
    found = {}
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for name in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(FileNotFoundError):
                found[int(name)] = os.readlink(f"/proc/{pid}/fd/{name}")
    return found


def unix_socket_types() -> dict[str, str]:
    """By `socket:[inode]`: stream or seqpacket, with `-listening`; from /proc/net/unix."""
    kinds = {"0001": "stream", "0005": "seqpacket", "0002": "dgram"}
    found = {}
    for line in _read("/proc/net/unix").splitlines()[1:]:
        fields = line.split()
        listening = "-listening" if int(fields[3], 16) & 0x10000 else ""
        found[f"socket:[{fields[6]}]"] = kinds[fields[4]] + listening
    return found


def kind_of_fd(link: str, unix_types: Mapping[str, str]) -> str:
    """`stream`, `seqpacket` (UNIX), `inet`, `epoll`, or the link itself."""
    if link == "anon_inode:[eventpoll]":
        return "epoll"
    if link.startswith("socket:"):
        return unix_types.get(link, "inet")
    return link


@dataclass(frozen=True)
class Effort:
    """What all threads of a process have used since its birth."""

    cpu_ticks: int
    voluntary_switches: int

    @classmethod
    def of(cls, pid: int) -> Effort:
        fields = _stat(pid)
        switches = 0
        for task in os.listdir(f"/proc/{pid}/task"):
            match = re.search(r"^voluntary_ctxt_switches:\s*(\d+)", _read(f"/proc/{pid}/task/{task}/status"), re.M)
            switches += int(match[1]) if match else 0
        return cls(int(fields[11]) + int(fields[12]), switches)


def kill(pid: int, signum: int = signal.SIGKILL) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signum)


@dataclass(frozen=True)
class Census:
    """Descriptors, children and threads of this process."""

    fds: frozenset[tuple[int, str]]
    children: frozenset[int]
    threads: frozenset[int]

    @classmethod
    def take(cls) -> Census:
        fds = fds_of(os.getpid())
        # The listing itself needs a descriptor, which is gone again.
        own = {
            (fd, link) for fd, link in fds.items() if not (re.fullmatch(r"/proc/\d+/fd", link) or fork_server.owns(fd))
        }
        threads = frozenset(map(int, os.listdir("/proc/self/task")))
        return cls(frozenset(own), frozenset(children_of(os.getpid())) - fork_server.pids(), threads)

    def left_since(self, before: Census) -> list[str]:
        """What is here now and was not then: one line each."""
        lines = [f"descriptor {fd} is left open: {link}" for fd, link in sorted(self.fds - before.fds)]
        lines += [f"child {pid} is left, state {state_of(pid)}" for pid in sorted(self.children - before.children)]
        lines += [f"thread {tid} is left" for tid in sorted(self.threads - before.threads)]
        return lines


# ---- the server ----------------------------------------------------------------------------------------------------


class Server:
    """One server under test. `start` returns when all its workers are ready, unless told otherwise."""

    ends_by = signal.SIGINT
    """What `close` sends."""
    fresh = False
    """It is not a fork of a process that has its imports."""

    def __init__(self, folder: Path, name: str = "server") -> None:
        self.log_path = folder / f"{name}.log"
        self.out_path = folder / f"{name}.out"
        self.expected: list[str] = []
        self._process: subprocess.Popen[bytes] | fork_server.Child | None = None
        self.ready_reader = -1
        self._told_exit = False
        """The test knows its exit code; else the guard looks at it."""

    # -- birth --

    def start(
        self,
        app: str | None = None,
        *options: str,
        script: Mapping[str, Any] | None = None,
        bind: str | Sequence[str] | None = "127.0.0.1:0",
        environ: Mapping[str, str] | None = None,
        pass_fds: Sequence[int] = (),
        listen_fds: Sequence[int] = (),
        cwd: Path = TESTS,
        wait: bool = True,
        **config: object,
    ) -> Server:
        """`pyfanout run app`, or, if there is a `script`, a process that calls `serve()`: see `apps.main`.

        `config` are options by their names in `serve`. `listen_fds` are passed the way systemd does.
        """
        reader, writer = os.pipe()
        self.ready_reader = reader
        kept = [fcntl.fcntl(writer, fcntl.F_DUPFD_CLOEXEC, HIGH_FD)]
        os.close(writer)
        config = {"ready_fd": kept[0], "log_level": "debug", **config}
        binds = [] if bind is None else [bind] if isinstance(bind, str) else list(bind)
        python = [sys.executable, "-W", "default"]
        if script is None:
            words = [app or "apps:act"]
            for each in binds:
                words += ["--bind", each]
            for name, value in config.items():
                flag = "--" + name.replace("_", "-")
                words += [flag] if value is True else [flag, str(value)]
            command = [*python, "-m", "pyfanout", "run", *words, *options]
        else:
            arguments = {"handler": app or "act", "config": {"bind": binds or None, **config}, **script}
            command = [*python, "-c", "import apps; apps.main()", json.dumps(arguments)]
        if listen_fds:
            command = [*python, "-c", _LIKE_SYSTEMD, ",".join(map(str, listen_fds)), *command]
        try:
            self._launch(command, cwd, environ, [*kept, *pass_fds, *listen_fds])
        finally:
            os.close(kept[0])
        if wait:
            self.wait_ready()
        return self

    def _launch(
        self, command: Sequence[str], cwd: Path, environ: Mapping[str, str] | None, pass_fds: Sequence[int] = ()
    ) -> None:
        whole = {**_clean_environ(), **(environ or {})}
        with self.log_path.open("ab") as log, self.out_path.open("ab") as out, open(os.devnull, "rb") as nothing:
            fds = {0: nothing.fileno(), 1: out.fileno(), 2: log.fileno(), **{fd: fd for fd in pass_fds}}
            forked = None if self.fresh else fork_server.launch(command, cwd, whole, fds)
            self._process = forked or subprocess.Popen(
                command,
                stdin=nothing,
                stdout=out,
                stderr=log,
                cwd=cwd,
                env=whole,
                pass_fds=pass_fds,
                start_new_session=True,
            )

    def wait_ready(self, deadline_s: float = DEADLINE_S) -> None:
        """The newline on ready_fd; and until the master has closed its copy of that."""
        with selectors.DefaultSelector() as selector:
            selector.register(self.ready_reader, selectors.EVENT_READ)
            # With nobody left who could write, it reads end-of-file.
            told = selector.select(deadline_s) and os.read(self.ready_reader, 1)
        if told != b"\n":
            ended = f"ended with {self._process.poll()}" if self._process else "was not started"
            raise AssertionError(f"the server is not ready: it {ended}\n--- log:\n{self.log}")
        pipe = f"pipe:[{os.fstat(self.ready_reader).st_ino}]"
        self.wait_until(
            lambda: self._process is None or list(fds_of(self._process.pid).values()).count(pipe) <= 1,
            "it closes its copy",
        )

    # -- what can be seen --

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def log(self) -> str:
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    @property
    def out(self) -> str:
        return self.out_path.read_text(errors="replace")

    @property
    def in_hands(self) -> int:
        """How many connections were in the hands of workers that died, or stopped at once, by the log: no more may be
        lost."""
        return sum(map(int, IN_HANDS.findall(self.log)))

    @property
    def addresses(self) -> list[str]:
        """Where it says it listens, with the real ports."""
        match = self.wait_until(lambda: LISTENING.search(self.log), "a line 'listening on ...'")
        return match[1].split(", ")

    @property
    def address(self) -> str:
        return self.addresses[0]

    @property
    def workers(self) -> list[int]:
        """Pids of the living, in the order of their birth."""
        return [pid for pid in children_of(self.pid) if not is_over(pid)]

    @property
    def zombies(self) -> list[int]:
        return [pid for pid in children_of(self.pid) if state_of(pid) == "Z"]

    def wait_until(self, condition: Callable[[], T], what: str, deadline_s: float = DEADLINE_S) -> T:
        return wait_until(condition, what, deadline_s=deadline_s, log=lambda: self.log)

    def wait_log(self, pattern: str, count: int = 1, deadline_s: float = DEADLINE_S) -> list[str]:
        """At least `count` lines that match; they are returned."""
        regex = re.compile(pattern)

        def found() -> list[str]:
            lines = [line for line in self.log.splitlines() if regex.search(line)]
            return lines if len(lines) >= count else []

        return self.wait_until(found, f"{count} log lines with {pattern!r}", deadline_s)

    def wait_workers(self, count: int, gone: Iterable[int] = ()) -> list[int]:
        """Until `count` live and those in `gone` do not, not even as zombies."""

        def right() -> list[int]:
            workers = self.workers
            done = len(workers) == count and not self.zombies and not set(gone) & set(workers)
            return workers if done else []

        return self.wait_until(right, f"{count} workers, none of {list(gone)}")

    def wait_replaced(self) -> None:
        """Until the workers that the last reload has replaced have exited: an old one that is told to leave may take
        another connection until it has heard, and the master has its descriptors until it has been told of its end."""
        self.wait_until(
            lambda: "the last worker that was replaced has exited" in self.log.rpartition("reloaded: ")[2],
            "the old workers exit",
        )

    def wait_ready_workers(self, count: int) -> None:
        """Until `count` workers have become READY since the start."""
        self.wait_log(r"BOOTING->READY", count)

    def wait_all_serve(self, pids: Iterable[int]) -> None:
        """Ask until each of these workers has answered, and nobody else: one that is ready has its turn when it waits
        for a connection, which on a busy machine is later."""
        missing, right = set(pids), set(pids)

        def all_have() -> bool:
            pid = ask(self.address)["pid"]
            assert pid in right, f"{pid} has answered, which is none of {right}"
            missing.discard(pid)
            return not missing

        self.wait_until(all_have, f"all of {right} answer")

    def favour(self) -> None:
        """Give master and workers a core before all other processes, where that is allowed: on a busy machine a worker
        that has none for 2 ms when it is its turn is passed over, as it should be."""
        for pid in (self.pid, *self.workers):
            for task in os.listdir(f"/proc/{pid}/task"):
                with contextlib.suppress(PermissionError, ProcessLookupError):  # a thread has ended meanwhile
                    os.sched_setscheduler(int(task), os.SCHED_RR, os.sched_param(1))

    def wait_idle(self) -> None:
        """Until all workers sleep: a client sees the end of its connection before the worker is back in its queue."""
        self.wait_until(lambda: all(map(is_asleep, self.workers)), "all workers sleep")

    def wait_idle_master(self) -> None:
        """Until it has passed on what it can: it sleeps."""
        self.wait_until(lambda: is_asleep(self.pid), "the master sleeps")

    # -- what the test does to it --

    def expect(self, *patterns: str) -> None:
        """Lines that the guard shall let pass although they tell of an error."""
        self.expected += patterns

    def send(self, signum: int) -> None:
        assert self._process is not None
        self._process.send_signal(signum)

    def wait_exit(self, deadline_s: float = DEADLINE_S) -> int:
        """The exit code; negative: the signal that killed it."""
        assert self._process is not None
        process = self._process
        self.wait_until(lambda: process.poll() is not None, "the server ends", deadline_s)
        self._told_exit = True
        return process.returncode

    def stop(self, signum: int = signal.SIGTERM, deadline_s: float = DEADLINE_S) -> int:
        self.send(signum)
        return self.wait_exit(deadline_s)

    def wait_nobody(self, deadline_s: float = DEADLINE_S) -> None:
        """Until no process of its session is left."""
        self.wait_until(lambda: not session_of(self.pid), "all processes are gone", deadline_s)

    # -- the end --

    def close(self) -> list[str]:
        """End it if it still runs. What was wrong with it: it did not end by itself, or its log tells of an error."""
        problems = []
        if self.ready_reader >= 0:
            os.close(self.ready_reader)
            self.ready_reader = -1
        if self._process is not None:
            if self._process.poll() is None:
                self._let_handlers_return()
                self._process.send_signal(self.ends_by)
                self._process.send_signal(signal.SIGCONT)
                try:
                    self._process.wait(8)
                except subprocess.TimeoutExpired:
                    problems.append(f"the server did not end within 8 s of {self.ends_by.name}")
                    self._process.kill()
                    self._process.wait()
            if not self._told_exit and not problems and self._process.returncode != 0:
                problems.append(f"the server ended with {self._process.returncode}, which no test has asked for")
            left = session_of(self.pid)
            if left:
                problems.append(f"processes are left behind: {left}")
                for pid in left:
                    kill(pid)
                wait_until(lambda: not session_of(self.pid), "killed processes are gone")
            self._process = None
        return problems + self.suspicious()

    def _let_handlers_return(self) -> None:
        """Their clients have all they asked for already; one that a fast stop cuts short then may say so in the log.
        Not for long: some do not rest, or shall not."""
        end = time.monotonic() + RETURN_S
        while time.monotonic() < end and not all(map(is_asleep, self.workers)):
            time.sleep(POLL_S)

    def suspicious(self) -> list[str]:
        """Log lines that tell of an error which no test expected; the first few."""
        lines = [
            f"unexpected in the log: {line}"
            for line in self.log.splitlines()
            if SUSPECT.search(line) and not any(re.search(pattern, line) for pattern in self.expected)
        ]
        return lines[:10]


_LIKE_SYSTEMD = """
import os, sys
fds, command = [int(fd) for fd in sys.argv[1].split(",")], sys.argv[2:]
for number, fd in enumerate(fds):
    os.dup2(fd, 3 + number)
    os.close(fd)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(fds)))
os.execv(command[0], command)
"""


def high_fd(sock: socket.socket) -> int:
    """A duplicate of its descriptor that is out of the way of LISTEN_FDS. The caller closes it."""
    return fcntl.fcntl(sock.fileno(), fcntl.F_DUPFD_CLOEXEC, HIGH_FD)


def _clean_environ() -> dict[str, str]:
    """Ours, without what would change a server's options."""
    mine = ("WEB_CONCURRENCY", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")
    whole = fork_server.python_environment()
    return {name: value for name, value in whole.items() if not name.startswith("PYFANOUT_") and name not in mine}


_clients: weakref.WeakSet[socket.socket] = weakref.WeakSet()


def close_clients() -> None:
    """Those that a failed test did not come to close: its failure shall be seen, not they."""
    close_all(list(_clients))


# ---- clients -------------------------------------------------------------------------------------------------------


def _family_and_name(address: str) -> tuple[int, Any]:
    if address.startswith("unix:"):
        name = address.removeprefix("unix:")
        return socket.AF_UNIX, "\0" + name[1:] if name.startswith("@") else name
    host, _, port = address.rpartition(":")
    if host.startswith("["):
        return socket.AF_INET6, (host[1:-1].replace("::", "::1") if host == "[::]" else host[1:-1], int(port))
    return socket.AF_INET, ("127.0.0.1" if host == "0.0.0.0" else host, int(port))


def connect(
    address: str, line: str | None = None, *, source: str | None = None, timeout: float = 20.0
) -> socket.socket:
    """A connection to a server's printed address. `line` is sent at once. `source` is the client's own address."""
    family, name = _family_and_name(address)
    sock = socket.socket(family, socket.SOCK_STREAM)
    _clients.add(sock)
    try:
        sock.settimeout(timeout)
        if source is not None:
            sock.bind((source, 0) if family != socket.AF_UNIX else source)
        sock.connect(name)
        if line is not None:
            sock.sendall(line.encode() + b"\n")
    except BaseException:
        sock.close()
        raise
    return sock


def read_all(sock: socket.socket) -> bytes:
    """Until end-of-file; then it is closed."""
    with sock:
        return b"".join(iter(lambda: sock.recv(65536), b""))


def read_line(sock: socket.socket) -> bytes:
    """One byte at a time: what follows the line stays in the socket."""
    line = b""
    while not line.endswith(b"\n"):
        byte = sock.recv(1)
        if not byte:
            break
        line += byte
    return line


def ask(address: str, line: str = "whoami", *, source: str | None = None, timeout: float = 20.0) -> Any:
    """Connect, send a line, read until end-of-file. The decoded JSON, or None if the connection ends with nothing."""
    answer = read_all(connect(address, line, source=source, timeout=timeout))
    return json.loads(answer) if answer else None


def ask_plain(port: int) -> bytes:
    """What a handler of an example says to a client that has sent something."""
    with socket.create_connection(("127.0.0.1", port), 20) as client:
        client.sendall(b"x")
        return read_all(client)


def hold(address: str, timeout: float = 20.0) -> socket.socket:
    """Keep one handler busy until `release`, or until the returned connection is closed. The client speaks last, by the
    kernel's clock, too: if its worker drains it is in the middle of a request, and does not pass for idle after a
    second. (A UNIX client of a coroutine does all the same.)"""
    sock = connect(address, "hold", timeout=timeout)
    try:
        assert read_line(sock) == b"held\n"
        if sock.family != socket.AF_UNIX:
            wait_until(lambda: _ms_since_data(sock) > 0, "the kernel's clock has ticked since")
        sock.sendall(b"+")
    except BaseException:
        sock.close()
        raise
    return sock


def _ms_since_data(sock: socket.socket) -> int:
    """Since something came, in steps of the kernel's clock tick; linux/tcp.h: tcpi_last_data_recv."""
    return int.from_bytes(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 56)[52:], sys.byteorder)


def release(sock: socket.socket) -> bytes:
    sock.sendall(b".")
    return read_all(sock)


def crowd(address: str, count: int, line: str = "whoami") -> list[socket.socket]:
    """Many clients, connected and with their request sent, whether or not somebody accepts."""
    socks: list[socket.socket] = []
    try:
        for _ in range(count):
            socks.append(connect(address, line))
    except BaseException:
        close_all(socks)
        raise
    return socks


def close_all(socks: Iterable[socket.socket]) -> None:
    for sock in socks:
        sock.close()


def collect(socks: Sequence[socket.socket], deadline_s: float = 20.0) -> list[bytes | None]:
    """What each client gets until end-of-file; None: a reset. All are closed. AssertionError if one hangs."""
    answers: dict[socket.socket, bytes] = {}
    ended: dict[socket.socket, bytes | None] = {}
    end = time.monotonic() + deadline_s
    with selectors.DefaultSelector() as selector:
        for sock in socks:
            sock.setblocking(False)
            selector.register(sock, selectors.EVENT_READ)
            answers[sock] = b""
        while len(ended) < len(socks) and (left := end - time.monotonic()) > 0:
            for key, _ in selector.select(left):
                sock = key.fileobj
                assert isinstance(sock, socket.socket)
                try:
                    data = sock.recv(65536)
                except ConnectionResetError:
                    ended[sock] = None
                else:
                    answers[sock] += data
                    if data:
                        continue
                    ended[sock] = answers[sock]
                selector.unregister(sock)
    close_all(socks)
    assert len(ended) == len(socks), f"{len(socks) - len(ended)} of {len(socks)} clients hang after {deadline_s:g} s"
    return [ended[sock] for sock in socks]


@contextlib.contextmanager
def asking(ask: Callable[[list[Any]], object], clients: int, *, until_refused: bool = False) -> Iterator[list[Any]]:
    """Clients that call `ask` one time after the other, with the list that this yields, of the answers so far.
    AssertionError at the end if one of them raised. `until_refused`: each leaves, and must, when it is refused."""
    answers: list[Any] = []
    errors: list[BaseException] = []
    over = threading.Event()

    def ask_on() -> None:
        try:
            while not over.is_set():
                ask(answers)
        except BaseException as error:
            if not (until_refused and isinstance(error, ConnectionRefusedError)):
                errors.append(error)

    threads = [threading.Thread(target=ask_on) for _ in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield answers
        if until_refused:
            wait_until(lambda: not any(thread.is_alive() for thread in threads), "all are refused")
    finally:
        over.set()
        for thread in threads:
            thread.join()
    assert not errors, errors


@contextlib.contextmanager
def load(address: str, clients: int = 4, line: str = "identity") -> Iterator[list[bytes]]:
    """Clients that ask one after the other, all the time. Yields the answers so far; AssertionError at the end if one
    of them was not whole, or a client was refused or reset."""

    def ask(answers: list[bytes]) -> None:
        with connect(address, line) as client:
            answers.append(read_all(client))

    with asking(ask, clients) as answers:
        yield answers
    assert all(answer.endswith(b"\n") for answer in answers), "a client got less than its answer"


def who(answers: Iterable[bytes | None]) -> list[Any]:
    """The decoded JSON of each, None where there was none."""
    return [json.loads(answer) if answer else None for answer in answers]
