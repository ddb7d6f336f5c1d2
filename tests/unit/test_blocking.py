"""The threads of a blocking worker, and the signals of its control thread to them."""

from __future__ import annotations

import signal
import threading
from typing import Any

import pytest

from pyfanout.worker import blocking

GAP_S = 0.5
"""For a thread to end in, between the look at it and the signal to it, if it can."""


def test_no_signal_to_a_thread_that_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """pthread_kill of a thread that has ended is undefined: 5 to 10 of 114 workers with 64 threads died of it in
    reloads."""
    looked, told_alive = threading.Event(), []

    class Gap:
        """Its thread ends, if it can, when it has just been seen to sleep."""

        @property
        def sleeps(self) -> bool:
            looked.set()
            thread.join(GAP_S)
            return True

    class Draining:
        draining = True

    server: Any = blocking.Server.__new__(blocking.Server)
    receiver: Any = Gap()
    server._idents, server._threads, server._worker = {}, 64, Draining()
    server._signalling, server._leaving = threading.Lock(), threading.Lock()
    server._leaving.acquire()
    server._take_each = lambda _receiver: looked.wait()
    monkeypatch.setattr(signal, "pthread_kill", lambda _ident, _signum: told_alive.append(thread.is_alive()))
    thread = threading.Thread(target=server._take_all, args=(receiver,))
    thread.start()
    while not server._idents:
        pass
    server._wake_sleepers()
    thread.join()
    assert told_alive
    assert all(told_alive)


def test_a_thread_that_fails_ends_its_worker() -> None:
    """It left the others behind: when all had failed the worker was idle for ever, and the master had no reason to
    replace it."""
    drains = []

    class Worker:
        def drain(self) -> None:
            drains.append(True)

    def fail(_receiver: Any) -> None:
        raise OSError("not foreseen")

    server: Any = blocking.Server.__new__(blocking.Server)
    server._idents, server._worker, server._exit = {}, Worker(), None
    server._signalling, server._leaving = threading.Lock(), threading.Lock()
    server._leaving.acquire()
    server._take_each = fail
    thread = threading.Thread(target=server._take_all, args=(object(),))
    thread.start()
    thread.join()
    assert drains
    assert str(server._exit) == "not foreseen"
    assert not server._leaving.locked()
