"""The end of a forked process: its exit code, and the functions that run at its end, as at the end of an interpreter.

A child cannot return into its parent's frames, so no interpreter ends it: `os._exit` does, after these steps. As in
multiprocessing's own children (Lib/multiprocessing/popen_fork.py, 3.13), functions that were registered before the fork
run in the parent only, except the hooks of the standard library, which act on the process that they run in.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import sys
import threading
import weakref
from collections.abc import Callable
from typing import Any, NoReturn

log = logging.getLogger("pyfanout.worker")

SOFTWARE = 70
"""EX_SOFTWARE of sysexits.h: a bug of pyfanout's own."""

_HOOKS = (("logging", "shutdown"), ("multiprocessing.util", "_exit_function"))
"""Hooks that their modules register when they are imported: after a fork that follows the import, the child must
register them again."""

_OF_THE_PARENT = (
    ("multiprocessing.process", "_children"),
    ("multiprocessing.util", "_finalizer_registry"),
    ("concurrent.futures.thread", "_threads_queues"),
    ("concurrent.futures.process", "_threads_wakeups"),
)
"""Where such hooks find what they end: children, pools and finalizers of the parent."""


_enders: list[Callable[[], object]] = []


def also_end(end: Callable[[], object]) -> None:
    """`end` ends other children. It is called where multiprocessing's are ended, perhaps more than once, and in any
    thread."""
    _enders.append(end)


def code_of(entry: Callable[[], int]) -> int:
    """The exit code of a process that calls `entry` and does no more. An exception is logged."""
    try:
        return entry()
    except BaseException as error:
        return code_after(error)


def code_after(error: BaseException) -> int:
    """The exit code of a process that `error` ends."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:  # trio's nurseries make one each
        error = error.exceptions[0]
    if not isinstance(error, SystemExit):
        log.error("pid=%d: an exception ends this process", os.getpid(), exc_info=error)
        return SOFTWARE
    if error.code is None:
        return 0
    if isinstance(error.code, int):
        return error.code & 0xFF
    print(error.code, file=sys.stderr)
    return 1


def forget() -> None:
    """In a child, first of all: functions that are registered from now on are its own, and `run` will run them."""
    atexit._clear()
    for finalizer in list(weakref.finalize._registry):  # type: ignore[attr-defined]
        finalizer.atexit = False  # it may still be called explicitly
    if weakref.finalize._registered_with_atexit:  # type: ignore[attr-defined]  # once for all finalizers
        atexit.register(weakref.finalize._exitfunc)  # type: ignore[attr-defined]
    _enders.clear()
    for module, name in _OF_THE_PARENT:
        if (found := _in(module, name)) is not None:
            found.clear()
    for module, name in _HOOKS:
        if (hook := _in(module, name)) is not None:
            atexit.register(hook)


def run(*, at_once: bool) -> None:
    """Wait for non-daemon threads and for the jobs of pools; then call the registered functions. `at_once`: do not
    wait, and end processes that would have to be waited for."""
    if at_once:
        _end_children()
    else:
        try:
            threading._shutdown()  # type: ignore[attr-defined]
        except BaseException:
            log.exception("pid=%d: an exception ended the wait for its threads; it exits without them", os.getpid())
    atexit._run_exitfuncs()


def leave(code: int) -> NoReturn:
    """Exit now, and leave no process of multiprocessing or of a forking server behind, which no other would end."""
    _end_children()
    os._exit(code)


def _end_children() -> None:
    """SIGTERM to the children that multiprocessing has started; then those of `also_end`."""
    for child in (_in("multiprocessing", "active_children") or list)():
        with contextlib.suppress(OSError, ValueError, AssertionError):  # it is over; it was never ours
            child.terminate()
    for end in _enders:
        end()


def _in(module: str, name: str) -> Any:
    """None if the module is not imported, or has no such name in this version of Python."""
    return getattr(sys.modules.get(module), name, None)
