"""The file that holds the master's process id.

Owns that one file: never another process's, and never after it was replaced. Called by `Master`, in the master only.

The number in a file does not tell whether its master is alive: the kernel gives it to another process, or a thread, and
in containers all masters have the same. A lock on the file tells, which the master holds as long as it lives.
"""

from __future__ import annotations

import errno
import logging
import os
import select
import stat
import tempfile
from contextlib import suppress

from pyfanout.errors import ConfigError
from pyfanout.master import filelock

log = logging.getLogger("pyfanout.master")

_NO_LINKS = (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.EMLINK)

_KINDS = {
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


class PidFile:
    """The pid of this process, in the file `path` as seen from the folder that is now the current one."""

    def __init__(self, path: str) -> None:
        folder, name = os.path.split(path)
        self.path = os.path.join(os.path.realpath(folder), name)  # a deploy may switch a link on the way to it
        self._fd = -1
        """Our file, locked; -1: we have none."""

    def create(self) -> None:
        """Write our pid, whole or not at all: to a temporary file, which is given its name when it is complete.

        A file whose master is dead is replaced. Raises ConfigError if the master is alive, if the file holds something
        else than a pid or is no regular one, and if it cannot be written.
        """
        try:
            while not self._put():
                pass
        except OSError as error:
            raise self._error(f"cannot write it: {os.strerror(error.errno or 0)}") from error

    def remove(self) -> None:
        """Delete the file if it is ours. Raises nothing: the next start replaces it anyway."""
        if self._fd >= 0:
            with suppress(OSError, ValueError):
                if self._is_at_path(self._fd) and _pid_in(self._fd) == os.getpid():
                    os.unlink(self.path)
            self._let_go()

    def _put(self) -> bool:
        """False: meanwhile another start has changed what is there."""
        fd = self._open()
        if fd is None:
            return self._write(replace=False)
        try:
            self._claim(fd)  # until the end of this: of two starts one replaces it
            return self._is_at_path(fd) and self._write(replace=True)
        finally:
            os.close(fd)

    def _open(self) -> int | None:
        """The file that is there; None: there is none. A device or a FIFO is not opened, which could have effects."""
        try:
            self._check_kind(os.lstat(self.path))
            try:
                fd = os.open(self.path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
            except PermissionError:  # another user's: the folder decides whether we may replace it
                fd = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except FileNotFoundError:
            return None
        try:
            self._check_kind(os.fstat(fd))
        except BaseException:
            os.close(fd)
            raise
        return fd

    def _check_kind(self, status: os.stat_result) -> None:
        if not stat.S_ISREG(status.st_mode):
            kind = _KINDS.get(stat.S_IFMT(status.st_mode), "a special file")
            raise self._error(f"it is {kind}, and is left alone; choose the path of a regular file")

    def _claim(self, fd: int) -> None:
        """Raises ConfigError if a master that is alive has this file, and if it is no pidfile."""
        try:
            owner = _pid_in(fd)
        except ValueError:
            raise self._error("it holds something else than a process id; choose another file") from None
        try:
            free = filelock.take(fd)
        except OSError as error:
            log.warning(
                "pidfile %r: its file system has no locks (%s); it is in use if the process that it names is alive",
                self.path,
                error.strerror,
            )
            free = owner is None or owner == os.getpid() or not _is_alive(owner)
        if not free:
            who = "a process" if owner is None else f"process {owner}"
            raise self._error(f"{who} is alive and has it; stop that one or choose another file")

    def _write(self, *, replace: bool) -> bool:
        """False: a file is there now, and shall not be replaced."""
        folder, name = os.path.split(self.path)
        fd, temporary = tempfile.mkstemp(prefix=f".{name}.", dir=folder)
        try:
            os.write(fd, f"{os.getpid()}\n".encode())
            with suppress(OSError):  # no locks here
                filelock.take(fd)
            with suppress(OSError):  # a file system without modes, a sandbox
                os.fchmod(fd, 0o644)  # others may read it, as with gunicorn; mkstemp says 0600
            if replace:
                os.replace(temporary, self.path)
                written = True
            else:
                written = self._link(temporary)
        except BaseException:
            os.close(fd)
            with suppress(FileNotFoundError):
                os.unlink(temporary)
            raise
        if written:
            self._fd = fd
            _written.add(self)
        else:
            os.close(fd)
        return written

    def _link(self, temporary: str) -> bool:
        """Give the file its name if no other has it. Without links an empty one comes first, then replaced."""
        try:
            os.link(temporary, self.path)
            return True
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            with suppress(FileExistsError):
                os.close(os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
            return False
        finally:
            os.unlink(temporary)

    def _is_at_path(self, fd: int) -> bool:
        """Whether the path still names this file, whose inode is no other's while it is open."""
        try:
            return os.path.samestat(os.fstat(fd), os.lstat(self.path))
        except FileNotFoundError:
            return False

    def _let_go(self) -> None:
        fd, self._fd = self._fd, -1
        _written.discard(self)
        os.close(fd)

    def _error(self, reason: str) -> ConfigError:
        return ConfigError(f"pidfile {self.path!r}: {reason}")


_written: set[PidFile] = set()


def _let_go_of_all() -> None:
    """In a child, which has copies of the descriptors: the locks shall end with their master."""
    for each in list(_written):
        each._let_go()


os.register_at_fork(after_in_child=_let_go_of_all)


def _pid_in(fd: int) -> int | None:
    """None: nothing is in it. ValueError if it is not a pid."""
    text = os.pread(fd, 32, 0).strip()  # the longest pid has 7 digits
    if not text:
        return None
    if not text.isdigit() or int(text) == 0:
        raise ValueError("not a pid")
    return int(text)


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
