"""Which users may connect to a socket file: its mode, its owner, its group.

Owns no descriptor and no file. `endpoints` calls `begin` before it binds and `finish` after that; the socket does not
listen before both are done, so that no client gets in by what the file was for a moment.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from collections.abc import Iterator
from dataclasses import dataclass

from pyfanout.errors import ConfigError

HELD = "/proc/self/fd"
"""Has a name for each descriptor."""


class AccessError(Exception):
    """What cannot be had, and why: the end of a line about an address."""


@dataclass(frozen=True, slots=True)
class Access:
    """Of all socket files that this server makes."""

    mode: int | None = None
    """Permission bits; None: what the umask leaves."""
    owner: str | None = None
    """As it was given, for errors."""
    uid: int = -1
    gid: int = -1
    """-1: the one of this process."""

    @classmethod
    def of(cls, mode: int | None, owner: str | None) -> Access:
        """`owner` is `user`, `user:group` or `:group`, by name or number. Raises ConfigError if there is none of that
        name."""
        user, _, group = (owner or "").partition(":")
        return cls(mode, owner, _uid_of(user) if user else -1, _gid_of(group) if group else -1)

    def begin(self, sock: socket.socket) -> None:
        """The file that bind will make has the mode of the socket, less the umask (`unix_bind` in the kernel's
        af_unix.c). The group is another one at first, if an owner is asked for."""
        if self.mode is not None:
            os.fchmod(sock.fileno(), self.mode if self.owner is None else self.mode & stat.S_IRWXU)

    def finish(self, path: str) -> None:
        """Raises AccessError if that is refused."""
        if self.mode is None and self.owner is None:
            return
        doing = "it cannot be opened"
        try:
            # By a descriptor: a user who may write to the folder could put a link to another file in the place of ours.
            with _held(path) as file:
                if self.owner is not None:
                    doing = f"its owner cannot be {self.owner!r} (unix_owner)"
                    os.chown(file, self.uid, self.gid)
                if self.mode is not None:
                    doing = f"its mode cannot be {self.mode:o} (unix_mode)"
                    os.chmod(file, self.mode)
        except OSError as error:
            advice = ""
            if isinstance(error, PermissionError):
                advice = "; only root may give files away"
            elif not os.path.exists(HELD):
                advice = "; it needs /proc"
            raise AccessError(f"{doing}: {error.strerror}{advice}") from error


@contextlib.contextmanager
def _held(path: str) -> Iterator[str]:
    """A name for the socket file that is at `path` now. `fchown` and `fchmod` take no descriptor of one."""
    fd = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if not stat.S_ISSOCK(os.fstat(fd).st_mode):
            raise FileNotFoundError(errno.ENOENT, "another file has taken its place")
        yield f"{HELD}/{fd}"
    finally:
        os.close(fd)


def _uid_of(user: str) -> int:
    import pwd  # noqa: PLC0415 - most servers have no such option

    try:
        return int(user) if _is_id(user) else pwd.getpwnam(user).pw_uid
    except (KeyError, ValueError):
        raise ConfigError(f"unix_owner: this machine has no user {user!r}") from None


def _gid_of(group: str) -> int:
    import grp  # noqa: PLC0415 - most servers have no such option

    try:
        return int(group) if _is_id(group) else grp.getgrnam(group).gr_gid
    except (KeyError, ValueError):
        raise ConfigError(f"unix_owner: this machine has no group {group!r}") from None


def _is_id(name: str) -> bool:
    return name.isascii() and name.isdecimal() and int(name) < 2**32 - 1
