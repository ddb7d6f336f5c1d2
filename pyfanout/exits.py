"""The end of a forked process: its exit code, and what runs at its end, as at the end of an interpreter.

A child cannot return into its parent's frames, so no interpreter ends it: `os._exit` does, after these steps. As in
multiprocessing's own children (Lib/multiprocessing/popen_fork.py, 3.13), what was registered before the fork is the
parent's affair, but for the hooks of the standard library, which are about whatever process they run in.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import sys
import threading
import traceback
import weakref
from _thread import start_new_thread  # by name, as `sleep`: gevent puts in others
from collections.abc import Callable
from time import sleep
from typing import Any, NoReturn

from pyfanout import sigmask

log = logging.getLogger("pyfanout.worker")

SOFTWARE = 70
"""EX_SOFTWARE of sysexits.h: a bug of ours."""

_HOOKS = (("logging", "shutdown"), ("multiprocessing.util", "_exit_function"))
"""Of modules that register them when they are imported: in a child, if they were before the fork, never again."""

_OF_THE_PARENT = (
    ("multiprocessing.process", "_children"),
    ("multiprocessing.util", "_finalizer_registry"),
    ("concurrent.futures.thread", "_threads_queues"),
    ("concurrent.futures.process", "_threads_wakeups"),
)
"""What such hooks would end: children, pools and finalizers that the parent has."""


def code_of(entry: Callable[[], int]) -> int:
    """The exit code of a process that does this and no more. What is raised is printed, as the interpreter does."""
    try:
        return entry()
    except SystemExit as stop:
        if stop.code is None:
            return 0
        if isinstance(stop.code, int):
            return stop.code & 0xFF
        print(stop.code, file=sys.stderr)
        return 1
    except BaseException:
        traceback.print_exc()
        return SOFTWARE


def forget() -> None:
    """In a child, first of all: from now on what is registered is its own, and `run` will run it."""
    atexit._clear()
    for finalizer in list(weakref.finalize._registry):  # type: ignore[attr-defined]
        finalizer.atexit = False  # it may still be called: who does that wants it
    if weakref.finalize._registered_with_atexit:  # type: ignore[attr-defined]  # once for all finalizers
        atexit.register(weakref.finalize._exitfunc)  # type: ignore[attr-defined]
    for module, name in _OF_THE_PARENT:
        if (found := _in(module, name)) is not None:
            found.clear()
    for module, name in _HOOKS:
        if (hook := _in(module, name)) is not None:
            atexit.register(hook)


def run(code: int, *, at_once: bool, timeout_s: float) -> None:
    """Wait for threads that are no daemons, and for the jobs of pools; then call what was registered. `at_once`: wait
    for nobody, and end processes that would have to be waited for. After `timeout_s` the process ends all the same,
    with `code`."""
    start_new_thread(_end_after, (timeout_s, code))
    if at_once:
        _end_children()
    else:
        try:
            threading._shutdown()  # type: ignore[attr-defined]
        except BaseException:
            traceback.print_exc()
    atexit._run_exitfuncs()


def leave(code: int) -> NoReturn:
    """Now, and leave no process of multiprocessing's behind, which nobody would end."""
    _end_children()
    os._exit(code)


def _end_after(timeout_s: float, code: int) -> None:
    sigmask.block_all()  # they are the main thread's
    sleep(timeout_s)
    log.error("pid=%d: its threads or exit functions have not ended after %g s; it exits now", os.getpid(), timeout_s)
    leave(code)


def _end_children() -> None:
    """SIGTERM to those that multiprocessing has started."""
    for child in (_in("multiprocessing", "active_children") or list)():
        with contextlib.suppress(OSError, ValueError, AssertionError):  # it is over; it was never ours
            child.terminate()


def _in(module: str, name: str) -> Any:
    """None if that is not imported, or has no such thing in this version of Python."""
    return getattr(sys.modules.get(module), name, None)
