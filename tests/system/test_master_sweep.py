"""The sweep of the master's Python: each of its calls that the system may refuse fails at its 1st, 2nd, 3rd ...
occurrence, with each error of its man page, until a life meets no failure. Nothing crashes or is left open, the service
goes on, and of those clients who come all the time nobody is lost but with a worker that the life kills.

Left out are errors that only a bug of ours could cause (EBADF, EFAULT, EINVAL, ...), `close`, which cannot fail for
what the master has, and what a worker does to its socket (see test_hostile_worker). `make faults` goes through all
occurrences; `make test` through some of each, by the seed.
"""

from __future__ import annotations

import errno
import os
import random
from pathlib import Path

import pytest
from programme import run

TESTS = Path(__file__).parents[1]
SOME = 3
"""Occurrences of each call that the short sweep looks at, besides the first."""

CALLS = {
    "os.fork": ("EAGAIN", "ENOMEM"),
    "os.pidfd_open": ("EMFILE", "ENFILE", "ENOMEM", "ENODEV"),
    "os.memfd_create": ("EMFILE", "ENFILE", "ENOMEM"),
    "os.pread": ("EIO", "ENOMEM"),
    "os.replace": ("ENOSPC", "EACCES", "EROFS", "EDQUOT", "EIO"),
    "os.waitid": ("ECHILD",),
    "os.write": ("EPIPE", "EAGAIN", "ENOSPC", "EIO"),
    "signal.pidfd_send_signal": ("EPERM", "ESRCH"),
    "socket.socketpair": ("EMFILE", "ENFILE", "ENOMEM", "ENOBUFS"),
    "socket.socket.bind": ("EADDRINUSE", "EADDRNOTAVAIL", "EACCES"),
    "socket.socket.listen": ("EADDRINUSE", "EACCES"),
    "socket.socket.recv": ("ENOMEM", "EAGAIN"),
    "socket.socket.send": ("ENOBUFS", "ENOMEM", "EAGAIN", "EPIPE", "ECONNRESET"),
    "socket.socket.setsockopt": ("ENOMEM", "ENOBUFS"),
    "tempfile.mkstemp": ("EMFILE", "ENFILE", "ENOMEM", "ENOSPC", "EACCES", "EROFS"),
}

SWEEP = """
import contextlib, itertools, random, tempfile
from refusal import Refusal

def held():
    return sorted(os.readlink(path) for path in map("/proc/self/fd/{}".format, os.listdir("/proc/self/fd"))
                  if os.path.islink(path))

def nobody_is_left():
    try:
        raise AssertionError(("left", os.waitpid(-1, os.WNOHANG)))
    except ChildProcessError:
        return True

def sweep(call, error, occurrences):
    for after in occurrences:
        served.clear()
        with Refusal(call, error, after) as refusal:
            refusals.append(refusal)
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
        assert not os.path.exists("pid"), after
        if refusal.met <= after:
            return after
    return -1

served, refusals = [], []
release()
live()
known = len(held())
with Refusal(CALL, 0, 1 << 30) as counter:
    refusals.append(counter)
    live()
assert counter.met, "a life never calls it"
chosen = sorted({0, *random.Random(SEED).sample(range(counter.met), min(SOME, counter.met))})
met = sweep(CALL, ERROR, itertools.count() if ALL else chosen)
print(f"{met if ALL else chosen} of about {counter.met} occurrences")
"""

MASTER = """
import threading

class Crowd(threading.Thread):
    # clients, one after the other, while all that happens
    def __init__(self, address):
        super().__init__()
        host, port = address.rsplit(":", 1)
        self.address = host, int(port)
        self.over, self.answered, self.lost = False, 0, []

    def run(self):
        while not self.over:
            answer = b""
            try:
                with socket.socket() as client:
                    client.settimeout(20)
                    client.connect(self.address)
                    client.sendall(b"x")
                    while more := client.recv(99):
                        answer += more
                    self.answered += int(answer) > 0
            except (OSError, ValueError) as error:
                self.lost.append((repr(error), answer))
            time.sleep(0.002)

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.over = True
        while self.is_alive():
            self.master.step(0.01)
        self.join()

def told(request):
    try:
        request()
    except pyfanout.WorkerError:  # it could not, now
        pass

options |= {"workers": 2, "min_uptime": 0.01, "drain_timeout": 1, "pidfile": "pid"}

def live():
    ready, ready_write = os.pipe()
    try:
        with pyfanout.Master("app:handler", ready_fd=ready_write, **options) as master:
            until_ready(master)
            ask(master)
            served.append(True)
            with Crowd(master.addresses[0]) as crowd:
                crowd.master = master
                os.kill(master.workers[0].pid, signal.SIGSEGV)
                before = {worker.pid for worker in master.workers}
                until(master, lambda: {worker.pid for worker in master.workers} != before, "somebody new")
                until_ready(master)
                release()
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
                until(master, lambda: crowd.answered >= 20, "answers")
            assert len(crowd.lost) <= 1, crowd.lost
            os.kill(os.getpid(), signal.SIGTERM)
            until_over(master)
    finally:
        os.close(ready)
        with contextlib.suppress(OSError):
            os.close(ready_write)
"""

DISPATCHER = """
from pyfanout.master.guests import Guests
from pyfanout.worker.worker import serve as serve_in

serving = Guests.run

def armed(guests):
    if refusals:
        refusals[-1].arm()  # in the dispatcher's process
    return serving(guests)

Guests.run = armed

def handler(conn, addr):
    conn.recv(99)
    conn.sendall(b"%d" % os.getpid())

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
                code = serve_in(worker, lambda: handler)
            finally:
                os._exit(code)
        os.close(writing)
        joined = os.read(reading, 1)
        os.close(reading)
        if joined:
            soon(lambda: ask(dispatcher) == pid, "it serves")
            return pid
        os.waitpid(pid, 0)
    raise AssertionError("cannot join")

def live():
    with pyfanout.Dispatcher(drain_timeout=5, **options) as dispatcher:
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

DISPATCHERS_CALLS = {
    "socket.socket.recv": ("ENOMEM", "EAGAIN"),
    "socket.socket.recvmsg": ("ENOMEM", "EAGAIN"),
    "socket.socket.send": ("ENOBUFS", "ENOMEM", "EAGAIN", "EPIPE", "ECONNRESET"),
    "socket.socket.sendmsg": ("ENOBUFS", "ENOMEM", "EAGAIN", "ETOOMANYREFS", "EPIPE", "ECONNRESET"),
    "socket.socket.getsockopt": ("ENOBUFS", "ENOMEM"),
}

ALL = os.environ.get("FAULTS") == "all"
"""`make faults`; else one error of each call."""


def cases(calls: dict[str, tuple[str, ...]]) -> pytest.MarkDecorator:
    found = [(call, error) for call, errors in calls.items() for error in (errors if ALL else errors[:1])]
    return pytest.mark.parametrize(("call", "error"), found)


def sweep(folder: Path, life: str, call: str, error: str, seed: int) -> None:
    given = f"CALL, ERROR, SEED = {call!r}, {getattr(errno, error)}, {seed}\nALL, SOME = {ALL}, {SOME}\n"
    print(run(folder, f"sys.path.append({str(TESTS)!r})\n" + given + life + SWEEP))


@cases(CALLS)
def test_each_occurrence_may_fail(tmp_path: Path, rng: random.Random, call: str, error: str) -> None:
    sweep(tmp_path, MASTER, call, error, rng.getrandbits(32))


@cases(DISPATCHERS_CALLS)
def test_so_may_those_of_a_dispatcher(tmp_path: Path, rng: random.Random, call: str, error: str) -> None:
    sweep(tmp_path, DISPATCHER, call, error, rng.getrandbits(32))
