"""Which file a descriptor names, and which descriptors a forked process has inherited and does not need: as long as it
has them, the other end of none finds that its owner has closed it, or is dead."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterable

from pyfanout.limits import OpenFiles

MOST = 1 << 20
"""The kernel's own limit (fs.nr_open), unless that was raised: there is no looking further without /proc."""

DEPTH = 2
"""A handler of a log has a stream, or a queue that has a pipe."""


def file_of(fd: int) -> tuple[int, int] | None:
    """Device and inode; None: it is closed. A number may name another file by now."""
    with contextlib.suppress(OSError):
        status = os.fstat(fd)
        return status.st_dev, status.st_ino
    return None


def close_all_but(kept: Iterable[int]) -> None:
    """Close all but these, and 0, 1 and 2, with close_range(2); one by one if the kernel, or a sandbox, refuses that
    (`os.closerange` does both). The objects that have them are not touched: they are the parent's."""
    try:
        end = max(map(int, os.listdir("/proc/self/fd"))) + 1
    except OSError:
        end = min(OpenFiles().soft, MOST)
    low = 3
    for fd in sorted({*kept, end}):
        os.closerange(low, fd)
        low = max(low, fd + 1)


def of_objects(things: Iterable[object], depth: int = DEPTH) -> set[int]:
    """Those of these objects, and of what they hold as attributes."""
    found: set[int] = set()
    for each in things:
        with contextlib.suppress(Exception):  # of any class: closed, or without a descriptor
            found.add(int(each.fileno()))  # type: ignore[attr-defined]  # else AttributeError
        if depth:
            found |= of_objects(list(getattr(each, "__dict__", {}).values()), depth - 1)
    return found


def of_libraries() -> set[int]:
    """Sockets of syslog(3) and of systemd's journal, whose libraries would go on with a number that they remember, and
    that may be another socket's by then. Nothing at their other end depends on whether they are open."""
    with contextlib.suppress(OSError):  # no /proc
        return {fd for fd in map(int, os.listdir("/proc/self/fd")) if _is_for_sending(fd)}
    return set()


def _is_for_sending(fd: int) -> bool:
    """A datagram socket of UNIX that has no name, and is not one of a pair."""
    try:
        # As if it were non-blocking: else `socket.setdefaulttimeout` would make it so, for its owner, too.
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK, 0, fd)
        try:
            kind = tuple(sock.getsockopt(socket.SOL_SOCKET, each) for each in (socket.SO_DOMAIN, socket.SO_TYPE))
            return kind == (socket.AF_UNIX, socket.SOCK_DGRAM) and not sock.getsockname() and _peer_of(sock) != ""
        finally:
            sock.detach()
    except OSError:  # it is no socket
        return False


def _peer_of(sock: socket.socket) -> str | None:
    """The peer's name, empty if it has none; None: there is no peer."""
    try:
        return str(sock.getpeername())
    except OSError:
        return None
