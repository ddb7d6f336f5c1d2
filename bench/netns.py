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


@contextlib.contextmanager
def namespace(sysctls: Mapping[str, str]) -> Iterator[None]:
    """This thread, and the processes that it starts, have a loopback of their own, with these `sysctls`
    ("net.ipv4.name": value), if there are any. Needs root; raises OSError, also for a sysctl that this kernel does not
    have."""
    if not sysctls:
        yield
        return
    with open("/proc/self/ns/net") as before:
        _call("unshare", CLONE_NEWNET)
        try:
            subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
            for name, value in sysctls.items():
                Path("/proc/sys", *name.split(".")).write_text(value)
            yield
        finally:
            _call("setns", before.fileno(), CLONE_NEWNET)


def _call(name: str, *numbers: int) -> None:
    if getattr(_libc, name)(*numbers):
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
