"""Socket files: which ones this process has made, and which ones a dead server has left."""

from __future__ import annotations

import errno
import os
import socket
import stat
from dataclasses import dataclass

from pyfanout.errors import ConfigError
from pyfanout.master.addresses import bind_error


@dataclass(frozen=True, slots=True)
class SocketFile:
    """A socket file that this process made, known by its inode and not by its name alone."""

    path: str  # absolute, its folder without links: the application may change folders, and a deploy links
    device: int
    inode: int
    pid: int

    @classmethod
    def made_at(cls, path: str) -> SocketFile:
        status = os.lstat(path)
        folder, name = os.path.split(path)
        return cls(os.path.join(os.path.realpath(folder), name), status.st_dev, status.st_ino, os.getpid())

    def remove(self) -> None:
        """Delete the file, unless we are a fork of its maker, or another file is in its place by now."""
        if os.getpid() != self.pid:
            return
        try:
            status = os.lstat(self.path)
            if (status.st_dev, status.st_ino) == (self.device, self.inode):
                os.unlink(self.path)
        except OSError:  # gone, or no longer ours to delete; a stale file is replaced at the next start
            return


def remove_stale(text: str, path: str) -> None:
    """Delete the socket file that a dead server left at `path`. ConfigError if it is alive, or no socket."""
    try:
        before = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(before.st_mode):
        raise bind_error(text, "a file is there that is not a socket; remove it or choose another path")
    # A datagram socket asks which process has this file without a connection that a living server would have to accept:
    # the answer for a stream socket is EPROTOTYPE, for none ECONNREFUSED (unix_find_bsd in af_unix.c).
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            now = os.lstat(path)
            if os.path.samestat(before, now) and stat.S_ISSOCK(now.st_mode):  # it was not replaced in the meantime
                os.unlink(path)
            return
        except PermissionError:
            raise bind_error(text, "a socket of another user is there; remove it or choose another path") from None
        except OSError as error:
            if error.errno != errno.EPROTOTYPE:
                raise
    raise in_use(text)


def in_use(text: str) -> ConfigError:
    return bind_error(text, "another process listens there; stop it or choose another path")
