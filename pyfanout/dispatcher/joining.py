"""How a worker that another program has forked joins a dispatcher.

The worker sends, through the join socket that it has inherited, a `Join` with the dispatcher's end of a fresh control
socket. The dispatcher sends back, on that, a `Welcome` with the pool's reading end, its own, and the scoreboard's file.
The join socket's end-of-file: the owner stops, or all have let go.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
from enum import Enum, auto
from typing import NamedTuple

from pyfanout.core import EndFds, WorkerEnds
from pyfanout.errors import WorkerError
from pyfanout.link import messages
from pyfanout.link.messages import DecodeError, Join, Welcome

ANSWER_S = 10.0
"""Seconds that a worker waits for room in the join socket, and for its welcome: longer than any pause of a dispatcher
that is not stuck."""

_PEER = struct.Struct("=3i")  # struct ucred of unix(7)


class Joined(NamedTuple):
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


# ---- the worker ----------------------------------------------------------------------------------------------------


def join(join_socket: socket.socket) -> Joined:
    """Raises WorkerError if the dispatcher is gone or does not answer, and OSError if there is no descriptor left."""
    control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with contextlib.ExitStack() as undo:
        undo.callback(control.close)
        control.settimeout(ANSWER_S)
        try:
            with theirs:
                messages.send(join_socket, Join(fds=(theirs.fileno(),)), wait=True)
            welcome = messages.receive(control, wait=True, most_fds=Welcome.CARRIES)
        except TimeoutError:
            raise WorkerError(f"the dispatcher does not answer within {ANSWER_S:g} s") from None
        except (BrokenPipeError, ConnectionResetError):
            raise WorkerError("the dispatcher is gone") from None
        except DecodeError as error:
            raise WorkerError(f"the dispatcher does not answer as one of this version does: {error}") from None
        if not isinstance(welcome, Welcome):
            for fd in welcome.fds if welcome else ():
                os.close(fd)
            raise WorkerError("the dispatcher stops, or has no seat left")
        ends = WorkerEnds.of(EndFds(*welcome.fds), welcome.seat)
        control.settimeout(None)
        undo.pop_all()
    return Joined(welcome.seat, welcome.generation, ends, control)


# ---- the dispatcher ------------------------------------------------------------------------------------------------


def answer(join_socket: socket.socket) -> socket.socket | NoRequest:
    """The next request to join: a worker's control socket, which is the caller's, non-blocking. Raises OSError if there
    is no descriptor for it."""
    try:
        request = messages.receive(join_socket, most_fds=Join.CARRIES)
    except (BlockingIOError, DecodeError):
        return NoRequest.NONE
    match request:
        case None:
            return NoRequest.STOP
        case Join(fds=(fd,)):
            try:
                control = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, fileno=fd)
            except OSError:  # it is none
                os.close(fd)
                raise
            control.setblocking(False)
            return control
    return NoRequest.NONE


def pid_of(control: socket.socket) -> int:
    """Of the process that made it, as the kernel says."""
    pid, _, _ = _PEER.unpack(control.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
    return int(pid)


def welcome(control: socket.socket, seat: int, generation: int, ends: EndFds) -> None:
    """`ends` as `Core.ends` gives them. Raises OSError if the worker has gone."""
    messages.send(control, Welcome(seat, generation, fds=ends))


def stop(join_socket: socket.socket) -> None:
    """The owner's, for all that have the join socket. No packet, for which there might be no memory."""
    with contextlib.suppress(OSError):  # the dispatcher is gone
        join_socket.shutdown(socket.SHUT_WR)
