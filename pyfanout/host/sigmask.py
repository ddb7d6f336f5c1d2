"""The signal mask of a thread: block all but faults, put back. For the moments in which no handler may run.

Not `signal.pthread_sigmask`: it makes an enum member of each of 62 numbers. That is 0.2 ms of the 4 from a worker's
death to its replacement's first answer (2026-11-22, the machine of bench/README.md).
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable

_FAULTS = {signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL}
"""Faults of the thread itself. While they are blocked the kernel kills the process without a handler, and faulthandler
could not write the stacks."""
_ALL = signal.valid_signals() - _FAULTS
_change: Callable[[int, Iterable[int]], set[int]] = getattr(
    signal.pthread_sigmask, "__wrapped__", signal.pthread_sigmask
)


def block_all() -> Iterable[int]:
    """All but those by which a thread faults. Returns what was blocked before."""
    return _change(signal.SIG_BLOCK, _ALL)


def restore(mask: Iterable[int]) -> None:
    _change(signal.SIG_SETMASK, mask)
