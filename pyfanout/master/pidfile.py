"""The file that holds the master's process id.

Owns that one file: never another process's, and never after it was replaced. Called by `serve`, in the master
only.
"""

from __future__ import annotations

import errno
import os
import select
import tempfile
from contextlib import suppress

from pyfanout.errors import ConfigError


class PidFile:
    """The pid of this process, in the file `path` as seen from the folder that is now the current one."""

    def __init__(self, path: str) -> None:
        self.path = os.path.abspath(path)

    def create(self) -> None:
        """Write our pid, whole or not at all: to a temporary file, which is renamed.

        A file that a dead process left is replaced, and so is one with our own pid: in a container it was the
        same last time. Raises ConfigError if the file names another process that is alive, holds something
        else than a pid, or cannot be written.
        """
        try:
            owner = self._read()
            if owner is None or owner == os.getpid() or not _is_alive(owner):
                self._write()
                return
        except ValueError:
            raise self._error("it holds something else than a process id; choose another file") from None
        except OSError as error:
            raise self._error(f"cannot write it: {os.strerror(error.errno or 0)}") from error
        raise self._error(f"process {owner} is alive and has it; stop that one or choose another file")

    def remove(self) -> None:
        """Delete the file if it holds our pid. Raises nothing: the next start replaces it anyway."""
        with suppress(OSError, ValueError):
            if self._read() == os.getpid():
                os.unlink(self.path)

    def _read(self) -> int | None:
        """The pid in the file; None if there is no file or nothing in it. ValueError if it is not a pid."""
        try:
            with open(self.path, "rb") as file:
                text = file.read(32).strip()  # the longest pid has 7 digits
        except FileNotFoundError:
            return None
        if not text:
            return None
        if not text.isdigit() or int(text) == 0:
            raise ValueError("not a pid")
        return int(text)

    def _error(self, reason: str) -> ConfigError:
        return ConfigError(f"pidfile {self.path!r}: {reason}")

    def _write(self) -> None:
        folder, name = os.path.split(self.path)
        fd, temporary = tempfile.mkstemp(prefix=f".{name}.", dir=folder)
        try:
            try:
                os.write(fd, f"{os.getpid()}\n".encode())
                os.fchmod(fd, 0o644)  # others may read it, as with gunicorn; mkstemp says 0600
            finally:
                os.close(fd)
            os.replace(temporary, self.path)
        except BaseException:
            os.unlink(temporary)
            raise


def _is_alive(pid: int) -> bool:
    """A zombie is not, although `kill` finds it; nor is a number that is now that of a thread."""
    try:
        pidfd = os.pidfd_open(pid)
    except OverflowError:  # no pid is that big
        return False
    except OSError as error:
        return error.errno not in (errno.ESRCH, errno.EINVAL, errno.ENOENT)  # the last two: it is a thread
    try:
        ends = select.poll()
        ends.register(pidfd, select.POLLIN)
        return not ends.poll(0)
    finally:
        os.close(pidfd)
