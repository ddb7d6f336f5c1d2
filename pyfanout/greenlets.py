"""Which modules of the standard library gevent or eventlet has replaced in this process, and the words for servers that
cannot run there: their threads would be greenlets, none of which runs while our code waits in the kernel.

Never imports either: an application that has patched has imported it.
"""

from __future__ import annotations

import sys
from typing import Any, NamedTuple

from pyfanout.errors import LoadError

THREADS = ("threading", "_thread")
"""One may be patched without the other."""
WAITING = ("socket", "select")
ALL = (*WAITING, *THREADS)


class Patch(NamedTuple):
    patcher: str
    """gevent or eventlet."""
    module: str


def patch_of(*modules: str) -> Patch | None:
    """The first of these modules that was patched; None: none was."""
    gevent: Any = sys.modules.get("gevent.monkey")
    eventlet: Any = sys.modules.get("eventlet.patcher")
    for module in modules:
        if gevent is not None and gevent.is_module_patched(module):
            return Patch("gevent", module)
        if eventlet is not None and eventlet.is_monkey_patched("thread" if module in THREADS else module):
            return Patch("eventlet", module)
    return None


def refuse(server: str, modules: tuple[str, ...], instead: str) -> None:
    """For a server that needs these modules as they were. `instead`: what to do with gevent. Raises LoadError, one
    line."""
    if patch := patch_of(*modules):
        hint = instead if patch.patcher == "gevent" else f"remove the monkey_patch of {patch.patcher}"
        raise LoadError(f"{patch.patcher} has patched {patch.module} in the worker, which {server} needs: {hint}")
