"""Locks on files, which the kernel takes back when their process ends, however that comes.

Of the open file (F_OFD_SETLK, fcntl(2)): a lock of the process would be gone when any code in it closes the file. For
writing: one for reading, or flock(2), may be had by any user who may read the file, and would keep a server from its
start.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct

_FLOCK = struct.Struct("hhqqi4x")
"""struct flock: its kind, from where, start, length (0: to the end), and a pid, which is 0."""


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
