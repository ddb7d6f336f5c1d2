"""The standard streams and their descriptors, 0, 1 and 2: around a fork, and when they are closed."""

from __future__ import annotations

import contextlib
import errno
import os
import sys

from pyfanout.errors import CoreError


def flush() -> None:
    """As far as they take it: what one process has buffered shall not come out of two. Closed ones are None (`>&-`), a
    disk may be full, a pipe's reader gone: whose business that is finds it out when it prints."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            with contextlib.suppress(OSError, ValueError):
                stream.flush()


def show(text: str) -> None:
    """Print what a command was asked for. A reader that has read enough, as `head` has, is no failure. Raises
    CoreError if it cannot be written."""
    try:
        print(text, end="", flush=True)
    except OSError as error:
        # What is buffered would fail again at exit, with a traceback.
        with contextlib.suppress(OSError), open(os.devnull, "wb") as nothing:
            os.dup2(nothing.fileno(), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            raise CoreError(error.errno or 0, f"print on stdout: {error.strerror}") from None


def occupy() -> None:
    """Open /dev/null where one of the descriptors is closed: else the next socket has its number, and what a library
    or a child writes to its stderr reaches a client. Children inherit it."""
    for fd in range(3):
        if _is_closed(fd):
            _occupy(fd)


def _is_closed(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError as error:
        return error.errno == errno.EBADF
    return False


def _occupy(fd: int) -> None:
    # A folder is good enough where there are no devices: it can be neither read nor written.
    for path, mode in ((os.devnull, os.O_RDWR), ("/", os.O_RDONLY)):
        with contextlib.suppress(OSError):
            found = os.open(path, mode)  # the lowest free number
            if found == fd:
                os.set_inheritable(fd, True)
            else:  # another thread was faster
                os.close(found)
            return
