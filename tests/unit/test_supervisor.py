"""supervisor: what a dead worker has said, and how long a stop may last. Its lives are in test_every_life."""

from __future__ import annotations

import socket
import threading
from types import SimpleNamespace
from typing import Any

from pyfanout.config import Config
from pyfanout.link.link import Link
from pyfanout.link.messages import Failed, Stage, send
from pyfanout.master.callbacks import Callbacks
from pyfanout.master.lifecycle import State, WorkerEvent, step
from pyfanout.master.readiness import Readiness
from pyfanout.master.roster import Slot, WorkerHandle
from pyfanout.master.supervisor import GRACE_NS, Supervisor


def test_last_words_come_to_an_end() -> None:
    """Although a child that the worker has left behind has its socket, and writes as fast as it can."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    theirs.settimeout(20)
    process: Any = SimpleNamespace(pid=1)
    worker_main: Any = None
    signals: Any = None
    stopped = threading.Event()
    send(theirs, Failed(Stage.START, "why", ""))

    def write() -> None:
        try:
            while True:
                theirs.send(b"O")
        except BrokenPipeError:
            stopped.set()

    with ours, theirs:
        writer = threading.Thread(target=write)
        writer.start()
        member = WorkerHandle(Slot(0), 1, 0, process, Link(ours), -1, None)
        Supervisor(Config(), [], worker_main, Callbacks(), signals, Readiness(None))._read_last_words(member)
        writer.join()
    assert member.failure == Failed(Stage.START, "why", "")
    assert stopped.is_set()


def test_a_stop_fits_into_thirty_seconds() -> None:
    """Which Kubernetes waits before it kills, with some time for the exit itself: drain, stop, kill."""
    ladder = [step(state, WorkerEvent.TIME_IS_UP).state for state in (State.DRAINING, State.STOPPING)]
    assert ladder == [State.STOPPING, State.KILLED]
    assert Config().drain_timeout + 2 * GRACE_NS / 1e9 <= 29
