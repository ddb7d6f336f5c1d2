"""A child that a coroutine forked. It has a copy of its worker's loop, which it may go on with."""

from __future__ import annotations

import asyncio
import os
import selectors
import sys
import weakref
from _thread import get_ident  # by name: gevent puts in another
from typing import Any

from pyfanout.worker.child import leave

LEAVES_RUNNING = sys.version_info >= (3, 14)
"""A task can be left only while its loop is the running one of its thread."""

_forking: dict[int, weakref.ref[asyncio.Task[Any]] | None] = {}
"""The tasks that were running at the last fork, by thread. In 3.14 a child cannot ask for its own. They stay here: a
function that forgot them after the fork would run before os.fork counts threads (see `background.COUNTS_LATE`)."""


def leave_loop(loop: Any) -> None:
    """The child may go on with the task that has forked it, and exits when that task is over. All other callbacks of
    the loop are its parent's, and are cancelled."""
    selector = getattr(loop, "_selector", None)
    if selector is not None:  # asyncio's own, which knows what was in its set
        loop._selector = selectors.DefaultSelector()
        selector.close()
        for handle in (*loop._ready, *loop._scheduled):
            handle.cancel()
    forking = _forking.get(get_ident())
    task = forking() if forking is not None else None
    if task is not None and task.get_loop() is loop:
        task.add_done_callback(leave)
        if LEAVES_RUNNING:
            _go_on_with(loop, task)


def _go_on_with(loop: Any, task: asyncio.Task[Any]) -> None:
    """asyncio has no running loop in a child, so that the child can run one of its own. But then the task cannot be
    left at the end of this step, and none could be entered later. The loop says that to its exception handler, in the
    last moment to let it run again."""
    asyncio._set_running_loop(loop)
    if asyncio.current_task(loop) is task:  # 3.14.0, where no other loop could be run (cpython#139894)
        asyncio.tasks._leave_task(loop, task)
    asyncio._set_running_loop(None)
    before = loop.get_exception_handler()

    def resume(loop: Any, context: dict[str, Any]) -> None:
        if "handle" in context:  # the step is over
            loop.set_exception_handler(before)
            asyncio._set_running_loop(loop)
        elif before is None:
            loop.default_exception_handler(context)
        else:
            before(loop, context)

    loop.set_exception_handler(resume)


def _before_fork() -> None:
    loop = asyncio._get_running_loop()
    task = asyncio.current_task(loop) if loop is not None else None
    _forking[get_ident()] = weakref.ref(task) if task is not None else None


os.register_at_fork(before=_before_fork)
