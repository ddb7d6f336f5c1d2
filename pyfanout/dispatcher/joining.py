"""How a worker that another program has forked joins a dispatcher: the packets, and the descriptors that go with them.

The worker sends, through the join socket that it has inherited, `J` with the dispatcher's end of a fresh control
socket. The dispatcher sends back, on that, a `Welcome` with the pool's reading end, its own, and the scoreboard's file.
The join socket's end-of-file: the owner stops, or all have let go.
"""

from __future__ import annotations

import array
import contextlib
import errno
import os
import select
import socket
import struct
from enum import Enum, auto
from typing import NamedTuple

from pyfanout.core import EndFds, WorkerEnds
from pyfanout.errors import WorkerError

ANSWER_S = 10.0
"""Seconds that a worker waits for room in the join socket, and for its welcome: longer than any pause of a dispatcher
that is not stuck."""

_WELCOME = struct.Struct("=IQ")
_PEER = struct.Struct("=3i")  # struct ucred of unix(7)


class Welcome(NamedTuple):
    """What a process needs to be a worker."""

    seat: int
    """Its number in the core."""
    generation: int
    """Counts the workers of this seat, from 1."""
    ends: WorkerEnds
    control: socket.socket


class NoRequest(Enum):
    """What `answer` finds instead of a request to join."""

    NONE = auto()
    STOP = auto()
    """The owner wants to stop, or is gone."""


def make_join_socket() -> tuple[socket.socket, socket.socket]:
    """The owner's side, which the workers inherit, and the dispatcher's."""
    outside, inside = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    outside.settimeout(ANSWER_S)  # before a worker inherits it: O_NONBLOCK is the same for all, the timeout is not
    return outside, inside


def is_left(join_socket: socket.socket) -> bool:
    """Whether there is no dispatcher behind it any more."""
    poll = select.poll()
    poll.register(join_socket, 0)
    return bool(poll.poll(0))


def _receive(sock: socket.socket, size: int, most: int, flags: int = 0) -> tuple[bytes, list[int]]:
    """A packet of at most `size` bytes and `most` descriptors, which no program that is executed inherits. As
    `socket.recv_fds`, which ignores its flags (Python 3.11)."""
    fds = array.array("i")
    space = socket.CMSG_LEN(most * fds.itemsize)
    packet, ancillary, _, _ = sock.recvmsg(size, space, flags | socket.MSG_CMSG_CLOEXEC)
    for level, kind, payload in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(payload[: len(payload) // fds.itemsize * fds.itemsize])
    return packet, fds.tolist()


# ---- the worker ----------------------------------------------------------------------------------------------------


def join(join_socket: socket.socket) -> Welcome:
    """Raises WorkerError if the dispatcher is gone or does not answer, and OSError if there is no descriptor left."""
    control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with contextlib.ExitStack() as undo:
        undo.callback(control.close)
        control.settimeout(ANSWER_S)
        try:
            with theirs:
                socket.send_fds(join_socket, [b"J"], [theirs.fileno()], socket.MSG_NOSIGNAL)
            packet, fds = _receive(control, _WELCOME.size, len(EndFds._fields))
        except TimeoutError:
            raise WorkerError(f"the dispatcher does not answer within {ANSWER_S:g} s") from None
        except (BrokenPipeError, ConnectionResetError):
            raise WorkerError("the dispatcher is gone") from None
        if len(fds) < len(EndFds._fields):  # the end of file, or no room for them
            for fd in fds:
                os.close(fd)
            if packet:
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            raise WorkerError("the dispatcher stops, or has no seat left")
        seat, generation = _WELCOME.unpack(packet)
        ends = WorkerEnds.of(EndFds(*fds), seat)
        control.settimeout(None)
        undo.pop_all()
    return Welcome(seat, generation, ends, control)


# ---- the dispatcher ------------------------------------------------------------------------------------------------


def answer(join_socket: socket.socket) -> socket.socket | NoRequest:
    """The next request to join: a worker's control socket, which is the caller's, non-blocking. Raises OSError if there
    is no descriptor for it."""
    try:
        packet, fds = _receive(join_socket, 1, 1, socket.MSG_DONTWAIT)
    except BlockingIOError:
        return NoRequest.NONE
    if packet == b"J":
        if not fds:  # the kernel has closed what did not fit into our table, and the worker sees the end
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        try:
            control = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, fileno=fds[0])
        except OSError:  # it is none
            os.close(fds[0])
            raise
        control.setblocking(False)
        return control
    for fd in fds:
        os.close(fd)
    return NoRequest.NONE if packet else NoRequest.STOP


def pid_of(control: socket.socket) -> int:
    """Of the process that made it, as the kernel says."""
    pid, _, _ = _PEER.unpack(control.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
    return int(pid)


def welcome(control: socket.socket, seat: int, generation: int, ends: EndFds) -> None:
    """`ends` as `Core.ends` gives them. Raises OSError if the worker has gone."""
    socket.send_fds(control, [_WELCOME.pack(seat, generation)], ends, socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT)


def stop(join_socket: socket.socket) -> None:
    """The owner's, for all that have the join socket. No packet, for which there might be no memory."""
    with contextlib.suppress(OSError):  # the dispatcher is gone
        join_socket.shutdown(socket.SHUT_WR)
