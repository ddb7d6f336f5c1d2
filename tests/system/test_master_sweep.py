"""The sweep of the master's Python: each of its calls that may be refused fails at its 1st, 2nd, 3rd ... occurrence,
with each error of its man page, until a life meets no failure. Nothing crashes or is left open; the service goes on.
"""

from __future__ import annotations

import errno
import os
import textwrap
from pathlib import Path

import pytest
from programme import run

CALLS = {
    "os.fork": ("EAGAIN", "ENOMEM"),
    "os.pidfd_open": ("EMFILE", "ENFILE", "ENOMEM", "ENODEV"),
    "os.memfd_create": ("EMFILE", "ENFILE", "ENOMEM"),
    "socket.socketpair": ("EMFILE", "ENFILE", "ENOMEM", "ENOBUFS"),
}

LIFE = (
    """
    class Refusal:
        """
    + '"""'
    + """Stands in for a call, here only: the workers have it as it was."""
    + '"""'
    + """

        def __init__(self, name, error, after):
            module, self.name = name.split(".")
            self.module = sys.modules[module]
            self.real = getattr(self.module, self.name)
            self.error, self.after, self.met, self.pid = error, after, 0, os.getpid()

        def __enter__(self):
            setattr(self.module, self.name, self)
            return self

        def __exit__(self, *_):
            setattr(self.module, self.name, self.real)

        def __call__(self, *arguments, **options):
            if os.getpid() == self.pid:
                self.met += 1
                if self.met == self.after + 1:
                    raise OSError(self.error, os.strerror(self.error))
            return self.real(*arguments, **options)

    def told(request):
        try:
            request()
        except pyfanout.WorkerError:  # it could not, now
            pass

    def live():
        with pyfanout.Master("app:handler", workers=2, min_uptime=0.01, **options) as master:
            until_ready(master)
            ask(master)
            os.kill(master.workers[0].pid, signal.SIGKILL)
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

    def held():
        return sorted(os.readlink(path) for path in map("/proc/self/fd/{}".format, os.listdir("/proc/self/fd"))
                      if os.path.islink(path))

    release()
    live()
    known = len(held())
    after = 0
    while True:
        with Refusal(CALL, ERROR, after) as refusal:
            try:
                live()
            except (OSError, pyfanout.FanoutError) as error:  # before there was a service
                assert after < BIRTH, (after, error)
        try:
            print("left", os.waitpid(-1, os.WNOHANG))
        except ChildProcessError:
            pass
        assert len(held()) == known, (after, held())
        if refusal.met <= after:
            break
        after += 1
    print("met", after)
"""
)


ALL = os.environ.get("FAULTS") == "all"
"""`make faults`; else one error of each call."""


@pytest.mark.parametrize(
    ("call", "error"), [(call, error) for call, errors in CALLS.items() for error in (errors if ALL else errors[:1])]
)
def test_each_occurrence_may_fail(tmp_path: Path, call: str, error: str) -> None:
    said = run(tmp_path, f"CALL, ERROR, BIRTH = {call!r}, {getattr(errno, error)}, 6\n" + textwrap.dedent(LIFE))
    assert "left" not in said
