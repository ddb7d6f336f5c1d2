"""Readiness: the descriptor on which a program is told that every worker is ready.

Owns a copy of it, for the program may close its own at any time, and the number is another file's then.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import select
import socket
import stat

from pyfanout.descriptors import file_of
from pyfanout.errors import ConfigError

log = logging.getLogger("pyfanout.master")


class Readiness:
    """`close` it in any case."""

    def __init__(self, given: int | None) -> None:
        """`given`: the program's descriptor; None: it does not want to be told. Raises ConfigError."""
        self._given = given
        self._copy = -1
        self._file: tuple[int, int] | None = None
        if given is None:
            return
        try:
            if fcntl.fcntl(given, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
                raise ConfigError(f"ready_fd: {given} is not open for writing")
            self._copy = fcntl.fcntl(given, fcntl.F_DUPFD_CLOEXEC, 3)  # those below are the standard streams'
            self._file = file_of(given)
        except OSError as error:
            self.close()
            if error.errno == errno.EBADF:
                raise _closed(given) from None
            raise ConfigError(f"ready_fd: {given} cannot be duplicated: {error.strerror}") from error

    def refuse_listener(self) -> None:
        """Call it when all listeners are open. Raises ConfigError."""
        if self._copy >= 0 and stat.S_ISSOCK(os.fstat(self._copy).st_mode):
            sock = socket.socket(fileno=self._copy)
            try:
                if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                    raise ConfigError(f"ready_fd: {self._given} is a listening socket; give it a descriptor of its own")
            finally:
                sock.detach()

    def tell(self) -> None:
        """Write the newline, once. The master waits for no reader."""
        if self._copy < 0:
            return
        try:
            room = select.poll()
            room.register(self._copy, select.POLLOUT)
            if room.poll(0):
                os.write(self._copy, b"\n")
            else:
                log.warning("ready_fd %d is full: no newline is written; pyfanout serves all the same", self._given)
        except OSError as error:
            log.warning(
                "ready_fd %d: %s; no newline is written; pyfanout serves all the same", self._given, error.strerror
            )
        self.close()

    def forget(self) -> None:
        """In a worker: it must not keep the reader from seeing the end. The program's own descriptor is closed, too,
        if it still is the same file."""
        self.close()
        if self._given is not None and self._given > 2 and self._file and self._file == file_of(self._given):
            os.close(self._given)

    def close(self) -> None:
        """May be called again."""
        fd, self._copy = self._copy, -1
        if fd >= 0:
            os.close(fd)


def check_inherited(given: int) -> None:
    """For a process that is all ours: a descriptor that is not inherited by programs is none that this one was given,
    but one of our own. Raises ConfigError."""
    with contextlib.suppress(OSError):
        if not os.get_inheritable(given):
            raise _closed(given)


def _closed(given: int) -> ConfigError:
    return ConfigError(f"ready_fd: {given} is not an open descriptor")
