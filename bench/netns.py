"""A network namespace with sysctls of its own, for what the rest of the machine must not notice."""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)
OURS = Path("/proc/self/ns/net")


@contextlib.contextmanager
def namespace(sysctls: Mapping[str, str]) -> Iterator[None]:
    """This thread, and the processes that it starts, have a loopback of their own, with these `sysctls`
    ("net.ipv4.name": value), if there are any. Needs root; raises OSError, also for a sysctl that this kernel does not
    have."""
    if not sysctls:
        yield
        return
    before = os.open(OURS, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _check(_libc.unshare(CLONE_NEWNET), "unshare")
        try:
            subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
            for name, value in sysctls.items():
                Path("/proc/sys", *name.split(".")).write_text(value)
            yield
        finally:
            _check(_libc.setns(before, CLONE_NEWNET), "setns")
    finally:
        os.close(before)


def _check(result: int, call: str) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, f"{call}: {os.strerror(number)}")
