"""The sweep of the master's Python: each of its calls that the system may refuse fails at its 1st, 2nd, 3rd ...
occurrence, with each error of its man page, until a life meets no failure. Nothing crashes or is left open; the service
goes on.

Left out are errors that only a bug of ours could cause (EBADF, EFAULT, EINVAL, ...), `close`, which cannot fail for
what the master has, and what a worker does to its socket (see test_hostile_worker). `make faults` goes through all
occurrences; `make test` through some of each, by the seed.
"""

from __future__ import annotations

import errno
import os
import random
import textwrap
from pathlib import Path

import pytest
from programme import run

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

LIFE = """
import contextlib, errno, itertools, random, tempfile

class Refusal:
    '''A call fails once, in this process: the workers have it as it was, and the clients' sockets are no UNIX ones.'''

    def __init__(self, name, error, after):
        *where, self.name = name.split(".")
        self.owner = sys.modules[where[0]]
        for each in where[1:]:
            self.owner = getattr(self.owner, each)
        self.real, pid = getattr(self.owner, self.name), os.getpid()
        self.own = self.name in vars(self.owner)
        self.met = 0

        def stand_in(*arguments, **options):
            client = self.name in ("recv", "send") and arguments[0].family != socket.AF_UNIX
            if os.getpid() == pid and not client:
                self.met += 1
                if self.met == after + 1:
                    if error == errno.ECHILD:  # somebody else has taken it
                        self.real(*arguments, **options)
                    raise OSError(error, os.strerror(error))
            return self.real(*arguments, **options)

        self.stand_in = stand_in

    def __enter__(self):
        setattr(self.owner, self.name, self.stand_in)
        return self

    def __exit__(self, *_):
        if self.own:
            setattr(self.owner, self.name, self.real)
        else:
            delattr(self.owner, self.name)

def told(request):
    try:
        request()
    except pyfanout.WorkerError:  # it could not, now
        pass

def live():
    '''What it has begun to serve.'''
    ready, ready_write = os.pipe()
    try:
        with pyfanout.Master("app:handler", ready_fd=ready_write, **options) as master:
            until_ready(master)
            ask(master)
            served.append(True)
            os.kill(master.workers[0].pid, signal.SIGSEGV)
            before = {worker.pid for worker in master.workers}
            until(master, lambda: {worker.pid for worker in master.workers} != before, "somebody new")
            until_ready(master)
            ask(master)
            release()
            for _ in range(3):  # one may be refused, and then the old ones stay
                before = {worker.pid for worker in master.workers}
                told(master.reload)
                until_ready(master)
                if not before & {worker.pid for worker in master.workers}:
                    break
            else:
                raise AssertionError("never reloaded")
            ask(master)
            told(lambda: master.scale(3))
            until(master, lambda: len(master.workers) == 3 and set(states(master)) == {"READY"}, "three")
            assert {ask(master) for _ in range(12)} == {worker.pid for worker in master.workers}
            os.kill(os.getpid(), signal.SIGTERM)
            until_over(master)
    finally:
        os.close(ready)
        with contextlib.suppress(OSError):
            os.close(ready_write)

def held():
    return sorted(os.readlink(path) for path in map("/proc/self/fd/{}".format, os.listdir("/proc/self/fd"))
                  if os.path.islink(path))

def sweep(call, error, occurrences):
    for after in occurrences:
        served.clear()
        with Refusal(call, error, after) as refusal:
            try:
                live()
            except (OSError, pyfanout.FanoutError) as failure:
                if served:
                    raise AssertionError(f"occurrence {after + 1} ends a server") from failure
        try:
            raise AssertionError(("left", after, os.waitpid(-1, os.WNOHANG)))
        except ChildProcessError:
            pass
        assert len(held()) == known, (after, held())
        assert not os.path.exists("pid"), after
        if refusal.met <= after:
            return after
    return -1

served = []
options |= {"workers": 2, "min_uptime": 0.01, "drain_timeout": 1, "pidfile": "pid"}
release()
live()
known = len(held())
with Refusal(CALL, 0, 1 << 30) as counter:
    live()
assert counter.met, "a life never calls it"
chosen = sorted({0, *random.Random(SEED).sample(range(counter.met), min(SOME, counter.met))})
met = sweep(CALL, ERROR, itertools.count() if ALL else chosen)
print(f"{met if ALL else chosen} of about {counter.met} occurrences")
"""

ALL = os.environ.get("FAULTS") == "all"
"""`make faults`; else one error of each call."""


@pytest.mark.parametrize(
    ("call", "error"), [(call, error) for call, errors in CALLS.items() for error in (errors if ALL else errors[:1])]
)
def test_each_occurrence_may_fail(tmp_path: Path, rng: random.Random, call: str, error: str) -> None:
    given = f"CALL, ERROR, SEED = {call!r}, {getattr(errno, error)}, {rng.getrandbits(32)}\nALL, SOME = {ALL}, {SOME}\n"
    print(run(tmp_path, given + textwrap.dedent(LIFE)))
