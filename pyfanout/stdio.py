"""The standard streams around a fork: what one process has buffered shall not come out of two."""

from __future__ import annotations

import contextlib
import sys


def flush() -> None:
    """As far as they take it. Closed ones are None (`>&-`), a disk may be full, a pipe's reader gone: whose business
    that is finds it out when it prints."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
