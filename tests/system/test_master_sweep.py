"""The sweep of the master: each call of its Python, and of the core in it, that the system may refuse fails at its
1st, 2nd, 3rd ... occurrence, with each error of its man page, until a life meets no failure. Nothing crashes or is left
open, the service goes on, no worker dies but those that the life kills or tells to leave, and of those clients who come
all the time nobody is lost but in the hands of one that was killed.

Left out are errors that only a bug of ours could cause (EBADF, EFAULT, EINVAL, ...), `close`, which cannot fail for
what the master has, poll of one descriptor, which needs no memory, and what a worker does to its socket (see
test_hostile_worker). `make faults` goes through all occurrences; `make test` through some of each, by the seed.
"""

from __future__ import annotations

import errno
import os
import random
import subprocess
from collections.abc import Collection
from pathlib import Path

import pytest
from core.kit import compiler
from core.test_sweep import ERRORS
from master_script import run

TESTS = Path(__file__).parents[1]
SOME = 2
"""Occurrences of each call of Python's that the short sweep looks at; of the core's, 1."""

CALLS = {
    "fcntl.fcntl": ("ENOLCK", "ENOSYS", "EAGAIN"),
    "os.fchmod": ("EIO", "EROFS", "EPERM"),
    "os.fork": ("EAGAIN", "ENOMEM"),
    "os.fstat": ("ENOMEM",),
    "os.lstat": ("ENOMEM", "EACCES"),
    "os.memfd_create": ("EMFILE", "ENFILE", "ENOMEM"),
    "os.open": ("EMFILE", "ENFILE", "ENOMEM", "EACCES", "EIO"),
    "os.pidfd_open": ("EMFILE", "ENFILE", "ENOMEM", "ENODEV"),
    "os.pread": ("EIO", "ENOMEM"),
    "os.replace": ("ENOSPC", "EACCES", "EROFS", "EDQUOT", "EIO"),
    "os.unlink": ("EACCES", "EBUSY", "EIO", "ENOMEM", "EPERM", "EROFS"),
    "os.waitid": ("ECHILD",),
    "os.write": ("EPIPE", "EAGAIN", "ENOSPC", "EIO"),
    "pathlib.Path.read_text": ("EMFILE", "ENFILE", "ENOMEM", "EIO"),
    "signal.pidfd_send_signal": ("EPERM", "ESRCH"),
    "socket.socket.__init__": ("EMFILE", "ENFILE", "ENOBUFS", "ENOMEM", "EACCES"),
    "socket.socket.bind": ("EADDRINUSE", "EADDRNOTAVAIL", "EACCES"),
    "socket.socket.connect": ("EACCES", "ENOMEM"),
    "socket.socket.dup": ("EMFILE", "ENOMEM"),
    "socket.socket.getpeername": ("ENOBUFS",),
    "socket.socket.getsockname": ("ENOBUFS",),
    "socket.socket.getsockopt": ("ENOBUFS", "ENOMEM"),
    "socket.socket.listen": ("EADDRINUSE", "EACCES"),
    "socket.socket.recv": ("ENOMEM", "EAGAIN"),
    "socket.socket.send": ("ENOBUFS", "ENOMEM", "EAGAIN", "EPIPE", "ECONNRESET"),
    "socket.socket.setsockopt": ("ENOMEM", "ENOBUFS"),
    "socket.socketpair": ("EMFILE", "ENFILE", "ENOMEM", "ENOBUFS"),
    "tempfile.mkstemp": ("EMFILE", "ENFILE", "ENOMEM", "ENOSPC", "EACCES", "EROFS"),
}

DISPATCHERS_CALLS = {
    "socket.socket.getsockopt": ("ENOBUFS", "ENOMEM"),
    "socket.socket.recv": ("ENOMEM", "EAGAIN"),
    "socket.socket.recvmsg": ("ENOMEM", "EAGAIN"),
    "socket.socket.send": ("ENOBUFS", "ENOMEM", "EAGAIN", "EPIPE", "ECONNRESET"),
    "socket.socket.sendmsg": ("ENOBUFS", "ENOMEM", "EAGAIN", "ETOOMANYREFS", "EPIPE", "ECONNRESET"),
}

OWNERS_CALLS = {
    "os.fork": ("EAGAIN", "ENOMEM"),
    "os.pidfd_open": ("EMFILE", "ENFILE", "ENOMEM", "ENODEV"),
    "os.waitid": ("ECHILD",),
    "socket.socketpair": ("EMFILE", "ENFILE", "ENOMEM", "ENOBUFS"),
}
"""Of the program that has a dispatcher. What opens the sockets is the master's, too."""

CORES_CALLS = (
    "accept4 calloc epoll_create1 epoll_ctl epoll_wait fcntl getsockopt ioctl mmap poll recvmsg sendmmsg setsockopt"
    " socketpair timerfd_create"
)
DISPATCHERS_CORES_CALLS = (
    "accept4 epoll_ctl epoll_wait ftruncate ioctl memfd_create poll sendmmsg setsockopt socketpair"
)
BROKEN = {"EPIPE", "ECONNRESET", "ENOTCONN", "ECONNREFUSED"}
"""Errors for which the readers of a channel leave. A master replaces them; those who join the dispatcher of this life
have nobody who does."""

SWEEP = """
import contextlib, itertools, random, tempfile
from fault_injection import CoreRefusal, Refusal

def held():
    return sorted(os.readlink(path) for path in map("/proc/self/fd/{}".format, os.listdir("/proc/self/fd"))
                  if os.path.islink(path))

def nobody_is_left():
    try:
        raise AssertionError(("left", os.waitpid(-1, os.WNOHANG)))
    except ChildProcessError:
        return True

def ours(path):
    try:
        return path.read_text() == f"{os.getpid()}\\n"
    except FileNotFoundError:
        return False

def refused(error, after):
    refusals.append(CoreRefusal(FAULTS, CALL, error, after) if FAULTS else Refusal(CALL, error, after))
    return refusals[-1]

def sweep(occurrences):
    for after in occurrences:
        served.clear()
        with refused(ERROR, after) as refusal:
            try:
                live()
            except (OSError, pyfanout.FanoutError) as failure:
                if served:
                    raise AssertionError(f"occurrence {after + 1} ends a server") from failure
            except AssertionError as failure:
                failure.add_note(f"occurrence {after + 1}")
                raise
        assert nobody_is_left()
        assert len(held()) == known, (after, held())
        assert not ours(Path("pid")) or CALL in ("os.fstat", "os.lstat", "os.pread", "os.unlink"), after
        if refusal.met <= after:
            return after
    return -1

served, refusals = [], []
release(PROGRAMME)
with refused(0, 1 << 30) as counter:
    live()
known = len(held())
assert counter.met, "a life never calls it"
chosen = sorted(random.Random(SEED).sample(range(counter.met), min(SOME, counter.met)))
met = sweep(itertools.count() if ALL else chosen)
print(f"{met if ALL else chosen} of about {counter.met} occurrences")
"""

MASTER = """
import threading

PROGRAMME = '''
import asyncio, os, time

def handler(conn, addr):
    conn.recv(99)
    time.sleep(0.01)  # somebody is in its hands nearly all the time
    conn.sendall(b"%d" % os.getpid())

async def coroutine(reader, writer):
    await reader.read(99)
    await asyncio.sleep(0.01)
    writer.write(b"%d" % os.getpid())
    writer.close()
'''

class Client(threading.Thread):
    # one connection after the other, while all that happens
    def __init__(self, address):
        super().__init__()
        self.address, self.over, self.answered, self.lost, self.sock = address, False, 0, [], None

    def connect(self):
        family, _, path = self.address.partition(":")
        if family == "unix":
            client = socket.socket(socket.AF_UNIX)
            client.connect(path)
            return client
        return socket.create_connection((family, int(path)))

    def run(self):
        while not self.over:
            answer = b""
            try:
                with self.connect() as client:
                    self.sock = client
                    client.settimeout(20)
                    client.sendall(b"x")
                    while more := client.recv(99):
                        answer += more
                    self.answered += int(answer) > 0
            except (OSError, ValueError) as error:
                self.lost.append((repr(error), answer))
            time.sleep(0.002)

clients = []
OUTSTAYED = CALL == "signal.pidfd_send_signal"
# Clients hold the old workers for longer than they have to drain: else the master would send no signal.

def forget():
    # In a worker that is forked: its copy of a client's socket would keep that open, and an old worker waiting.
    for client in clients:
        if client.sock is not None and not OUTSTAYED:
            client.sock.close()

os.register_at_fork(after_in_child=forget)

@contextlib.contextmanager
def crowd(master):
    clients[:] = [Client(address) for address in 2 * master.addresses]
    for client in clients:
        client.start()
    try:
        yield
    finally:
        for client in clients:
            client.over = True
        while any(client.is_alive() for client in clients):
            master.step(0.01)
        for client in clients:
            client.join()

def told(request):
    try:
        request()
    except pyfanout.WorkerError:  # it could not, now
        pass

def all_answer(master):
    asked = time.monotonic()
    until(master, lambda: all(worker.last_pong is not None and worker.last_pong < time.monotonic() - asked
                              for worker in master.workers), "pongs")

def judge(killed, exits, lost):
    # who died of what, and with how many in its hands
    for notice in exits:
        pid, lost_with_it, detail = notice.worker.pid, notice.worker.in_flight, notice.detail
        if pid == killed and detail.startswith("was killed by SIGSEGV"):
            continue
        if CALL == "os.waitid" and detail == "ended, but its exit status was reaped elsewhere":
            continue
        # By the signal itself: one that boots, and is not wanted any more.
        assert detail.startswith("exited with code 0") or detail == "was killed by SIGTERM", (pid, detail)
        # One that cannot be told to leave is told to stop, later.
        assert not lost_with_it or CALL == "signal.pidfd_send_signal", (pid, detail, lost_with_it)
    in_hands = [(notice.worker.in_flight, notice.worker.pid, notice.detail) for notice in exits]
    assert len(lost) <= sum(count for count, *_ in in_hands), (lost, in_hands)

options |= {
    "workers": 2, "min_uptime": 0.01, "pidfile": "pid", "ping_interval": 0.1, "ping_timeout": 2,
    "drain_timeout": 0.5 if OUTSTAYED else 10,
}

def live():
    Path("pid").write_text("4194304")  # no process has that
    if not os.path.exists("sock"):
        with socket.socket(socket.AF_UNIX) as stale:
            stale.bind("sock")
    ready, ready_write = os.pipe()
    given, exits, lost, killed = socket.socket(), [], [], None
    try:
        given.bind(("127.0.0.1", 0))
        options["bind"] = ["127.0.0.1:0", "unix:sock", given]
        app = "app:coroutine" if FAULTS else "app:handler"
        with pyfanout.Master(app, ready_fd=ready_write, **options) as master:
            master.on("exit", exits.append)
            if FAULTS:
                master.fileno()
            until_ready(master)
            ask(master)
            served.append(True)
            with crowd(master):
                until(master, lambda: all(client.answered for client in clients), "answers")
                before, killed = {worker.pid for worker in master.workers}, master.workers[0].pid
                os.kill(killed, signal.SIGSEGV)
                until(master, lambda: {worker.pid for worker in master.workers} != before, "somebody new")
                until_ready(master)
                release(PROGRAMME)
                for _ in range(3):  # one may be refused, and then the old ones stay
                    before = {worker.pid for worker in master.workers}
                    told(master.reload)
                    until_ready(master)
                    if not before & {worker.pid for worker in master.workers}:
                        break
                else:
                    raise AssertionError("never reloaded")
                told(lambda: master.scale(3))
                until(master, lambda: len(master.workers) == 3 and set(states(master)) == {"READY"}, "three")
                all_answer(master)
            os.kill(os.getpid(), signal.SIGTERM)
            until_over(master)
        judge(killed, exits, [each for client in clients for each in client.lost])
    finally:
        given.close()
        os.close(ready)
        with contextlib.suppress(OSError):
            os.close(ready_write)
"""

DISPATCHER = """
from pyfanout.dispatcher.joined import JoinedWorkers
from pyfanout.worker.main import serve as serve_in
from pyfanout.worker.serving import inside

PROGRAMME = APP
serving = JoinedWorkers.run

def armed(joined):
    refusals[-1].arm()  # in the dispatcher's process
    try:
        return serving(joined)
    finally:
        refusals[-1].over()

if not OWNER:
    JoinedWorkers.run = armed

async def handler(reader, writer):
    await reader.read(99)
    writer.write(b"%d" % os.getpid())
    writer.close()

def ask(dispatcher):
    host, port = dispatcher.addresses[0].rsplit(":", 1)
    with socket.create_connection((host, int(port)), 20) as client:
        client.sendall(b"x")
        return int(client.recv(99))

def soon(condition, what):
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.005)

def ended(pid):
    return os.waitpid(pid, os.WNOHANG)[0] == pid

def fork(dispatcher):
    # a worker that serves; one that cannot join is forked again
    for _ in range(3):
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(reading)
            code = 1
            try:
                worker = dispatcher.join()
                os.write(writing, b"!")
                code = serve_in(inside(worker), lambda: handler)
            finally:
                os._exit(code)
        os.close(writing)
        joined = os.read(reading, 1)
        os.close(reading)
        if joined:
            soon(lambda: ask(dispatcher) == pid, "it serves")
            return pid
        os.waitpid(pid, 0)
        if not dispatcher.alive:
            raise pyfanout.WorkerError("it has ended")
    raise AssertionError("cannot join")

def live():
    with pyfanout.Dispatcher(drain_timeout=5, ping_interval=0.05, ping_timeout=2, **options) as dispatcher:
        workers = [fork(dispatcher) for _ in range(2)]
        served.append(True)
        os.kill(workers[0], signal.SIGKILL)
        soon(lambda: ended(workers[0]), "killed")
        workers[0] = fork(dispatcher)
        os.kill(workers[1], signal.SIGTERM)
        soon(lambda: ended(workers[1]), "drained")
        workers[1] = fork(dispatcher)
        soon(lambda: {ask(dispatcher) for _ in range(4)} == set(workers), "both serve")
        assert dispatcher.alive
    for pid in workers:
        soon(lambda: ended(pid), "stopped")
"""

ALL = os.environ.get("FAULTS") == "all"
"""`make faults`; else one error of each call."""


def cases(calls: dict[str, tuple[str, ...]]) -> pytest.MarkDecorator:
    found = [(call, error) for call, errors in calls.items() for error in (errors if ALL else errors[:1])]
    return pytest.mark.parametrize(("call", "error"), found)


def of_the_core(calls: str, but: Collection[str] = ()) -> pytest.MarkDecorator:
    errors = {call: [errno.errorcode[each] for each in ERRORS[call]] for call in calls.split()}
    return cases({call: tuple(each for each in names if each not in but) for call, names in errors.items()})


@pytest.fixture(scope="session")
def faults(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tests/core/faults.c, compiled."""
    library = tmp_path_factory.mktemp("faults") / "faults.so"
    flags = ["-std=gnu11", "-O1", "-fPIC", "-shared"]
    subprocess.run([*compiler(), *flags, "-o", str(library), str(TESTS / "core" / "faults.c"), "-ldl"], check=True)
    return library


def sweep(
    folder: Path,
    life: str,
    call: str,
    error: str,
    rng: random.Random,
    *,
    owner: bool = False,
    faults: Path | None = None,
) -> None:
    given = f"""
import contextlib
sys.path.append({str(TESTS)!r})
CALL, ERROR, SEED, OWNER = {call!r}, {getattr(errno, error)}, {rng.getrandbits(32)}, {owner}
ALL, SOME, FAULTS = {ALL}, {1 if faults else SOME}, {faults and str(faults)!r}
"""
    print(run(folder, given + life + SWEEP, patience_s=3600 if ALL else 60))


@cases(CALLS)
def test_each_occurrence_may_fail(tmp_path: Path, rng: random.Random, call: str, error: str) -> None:
    sweep(tmp_path, MASTER, call, error, rng)


@cases(DISPATCHERS_CALLS)
def test_so_may_those_of_a_dispatcher(tmp_path: Path, rng: random.Random, call: str, error: str) -> None:
    sweep(tmp_path, DISPATCHER, call, error, rng)


@cases(OWNERS_CALLS)
def test_so_may_those_of_who_has_one(tmp_path: Path, rng: random.Random, call: str, error: str) -> None:
    sweep(tmp_path, DISPATCHER, call, error, rng, owner=True)


@of_the_core(CORES_CALLS)
def test_so_may_those_of_the_core(tmp_path: Path, rng: random.Random, faults: Path, call: str, error: str) -> None:
    sweep(tmp_path, MASTER, call, error, rng, faults=faults)


@of_the_core(DISPATCHERS_CORES_CALLS, but=BROKEN)
def test_so_may_those_of_a_dispatchers_core(
    tmp_path: Path, rng: random.Random, faults: Path, call: str, error: str
) -> None:
    sweep(tmp_path, DISPATCHER, call, error, rng, faults=faults)
