"""Locks on files and folders, which the kernel takes back when their process ends, however that comes.

On a file: of the open file (F_OFD_SETLK, fcntl(2)), for a lock of the process would be gone when any code in it closes
the file. For writing: one for reading, or flock(2), may be had by any user who may read the file, and would keep a
server from its start. A folder can only be locked by flock(2), so nothing depends on that.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
import time
from collections.abc import Iterator

_FLOCK = struct.Struct("hhqqi4x")
"""struct flock: its kind, from where, start, length (0: to the end), and a pid, which is 0."""

FOLDER_S = 2.0
"""How long to wait for a folder: another start has it for milliseconds."""

POLL_S = 0.002


def take(fd: int) -> bool:
    """Lock a file until `fd` and its copies are closed. False: another process has locked it.

    True without a lock if `fd` cannot be written to, or if users who can only read the file have locked it. Raises
    OSError if its file system has no locks, or this kernel none of this kind.
    """
    while True:
        try:
            fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _whole_file(fcntl.F_WRLCK))
            return True
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES, errno.EBADF):
                raise
            writable = error.errno != errno.EBADF
        kind: int = _FLOCK.unpack(fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _whole_file(fcntl.F_WRLCK)))[0]
        if kind != fcntl.F_UNLCK or not writable:
            return kind != fcntl.F_WRLCK


def _whole_file(kind: int) -> bytes:
    return _FLOCK.pack(kind, os.SEEK_SET, 0, 0, 0)


@contextlib.contextmanager
def folder_of(path: str) -> Iterator[None]:
    """Lock the folder of `path` for a moment, in which a start looks at a file and replaces it. Without a lock, if it
    cannot be had within FOLDER_S, or not at all: the worst is that two starts at the same instant meet."""
    try:
        fd = os.open(os.path.dirname(os.path.abspath(path)), os.O_RDONLY | os.O_DIRECTORY)
    except OSError:  # it may be written to, but not read
        yield
        return
    try:
        end_s = time.monotonic() + FOLDER_S
        while not _take_folder(fd) and time.monotonic() < end_s:
            time.sleep(POLL_S)
        yield
    finally:
        os.close(fd)


def _take_folder(fd: int) -> bool:
    """Whether there is nothing to wait for."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno != errno.EWOULDBLOCK
    return True
