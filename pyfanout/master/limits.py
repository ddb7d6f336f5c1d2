"""Limits of this process, as far as dispatching needs them raised."""

from __future__ import annotations

import resource


def most_in_flight() -> int:
    """Raises the soft RLIMIT_NOFILE to the hard one: a server needs many, and a select() that needs few is not here.

    Returns how many connections may be in channels: the kernel bounds the descriptors in flight per user by the same
    limit (unix(7), ETOOMANYREFS).
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard // 4
