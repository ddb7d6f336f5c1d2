"""Which connections only wait for their client's next request: a draining worker may close them.

No handler says so: it waits for bytes in the same way in the middle of a request and between two. What tells is which
side sent last, and how long ago: in ticks of the kernel's clock, so that a request which began in the same tick as the
answer before it, and then pauses for IDLE_S, does not count as idle. Of asyncio's streams it is known, besides, that
the handler waits for bytes at all.
"""

from __future__ import annotations

import contextlib
import fcntl
import math
import socket
import struct
import termios
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio

IDLE_S = 1.0
"""Seconds without a byte, after an answer. A client that has its next request ready sends it sooner, and one that only
keeps the connection has learned to find it closed (RFC 9112, 9.3.1)."""

LOOK_S = 0.25
"""Seconds between two looks while a worker drains."""

_TCP_INFO = struct.Struct("=24xI16xI4xI72xQ8xI8xI")
"""linux/tcp.h: tcpi_unacked, tcpi_last_data_sent, tcpi_last_data_recv, tcpi_bytes_received, tcpi_notsent_bytes,
tcpi_data_segs_out."""
_TCP_BYTES = struct.Struct("=120xQQ")  # tcpi_bytes_acked, tcpi_bytes_received
_INT = struct.Struct("@i")


_answering: set[int] = set()
"""Descriptors, see `answering`."""


class IdleWatch:
    """Asked again and again about the connections of one worker."""

    def __init__(self) -> None:
        self._waiting: dict[asyncio.StreamReader, tuple[object, float]] = {}
        """What each reader waits for, and since when it has been seen to."""

    def is_idle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, now_s: float) -> bool:
        """Whether nothing has moved for IDLE_S, and it is the client's turn. Never true on its first look."""
        waiter = getattr(reader, "_waiter", None)
        if waiter is None or getattr(reader, "_buffer", True) or writer.transport.get_write_buffer_size():
            self._waiting.pop(reader, None)
            return False
        seen, since_s = self._waiting.get(reader, (None, now_s))
        if seen is not waiter:
            self._waiting[reader] = waiter, now_s
            return False
        return now_s - since_s >= IDLE_S and _we_spoke_last(writer)


def is_silent(fd: int) -> bool:
    """Whether nothing came or went for IDLE_S on a TCP connection, whichever side sent last. True for any other
    connection whose peer has read all that was sent: the kernel has no times for it."""
    try:
        with Borrowed(fd) as sock:
            return min(_silences_ms(sock)) >= IDLE_S * 1000
    except (OSError, ValueError):  # no socket any more
        return True


def is_at_rest(fd: int, preamble_bytes: int = 0) -> bool:
    """The same, but false if the client sent last: it may have paused during an upload. `preamble_bytes` of the
    received bytes were PROXY header and TLS handshake."""
    if is_answered(fd) or has_unread(fd):
        return False
    try:
        with Borrowed(fd) as sock:
            sent_ms_ago, received_ms_ago = _silences_ms(sock, preamble_bytes)
    except (OSError, ValueError):
        return True
    return IDLE_S * 1000 <= sent_ms_ago <= received_ms_ago


def has_unread(fd: int) -> bool:
    """Whether bytes of the client wait to be read. They may be old: a request waits in the listener's queue, too."""
    return waits(fd, termios.FIONREAD)


def waits(fd: int, where: int) -> bool:
    """Whether bytes wait to be read, on this side (FIONREAD) or, of a UNIX connection, on the client's (TIOCOUTQ)."""
    try:
        (count,) = _INT.unpack(fcntl.ioctl(fd, where, bytes(_INT.size)))
    except (OSError, ValueError):  # it is closed
        return False
    return bool(count)


def is_answered(fd: int) -> bool:
    """See `answering`."""
    return fd in _answering


@contextlib.contextmanager
def answering(conn: socket.socket) -> Iterator[None]:
    """While a server that can tell answers a request on this connection. Its client may have been told to continue (100
    Continue), and not have sent yet: then it is silent, and the worker sent last, in the middle of a request."""
    fd = conn.fileno()
    _answering.add(fd)
    try:
        yield
    finally:
        _answering.discard(fd)


def end_if_idle(conn: socket.socket) -> None:
    """If a connection is silent, and the worker sent last, its reader reads the end. It can still be written to. Of
    what a server has made of one it is not known how many bytes were its preamble."""
    if is_answered(conn.fileno()) or has_unread(conn.fileno()):
        return
    with contextlib.suppress(OSError):  # closed meanwhile
        sent_ms_ago, received_ms_ago = _silences_ms(conn, getattr(conn, "preamble_bytes", 0))
        if IDLE_S * 1000 <= sent_ms_ago <= received_ms_ago < math.inf:
            socket.socket.shutdown(conn, socket.SHUT_RD)  # of an ssl.SSLSocket, too, which would forget its keys


def bytes_moved(conn: socket.socket) -> tuple[int, int]:
    """A value that differs when bytes of a connection have moved: how many its client has acknowledged, and how many of
    the client's have been read. Bytes that came and were not read do not count: a client may send to a handler that
    does not read.

    For a UNIX socket it is how often something was sent or received; as long as the peer, which will be a proxy, has
    not read all, the connection counts as moving. (0, 0) when it is closed."""
    if conn.fileno() < 0:
        return 0, 0
    try:
        if conn.family == socket.AF_UNIX:
            return getattr(conn, "moves", 0), time.monotonic_ns() if waits(conn.fileno(), termios.TIOCOUTQ) else 0
        info = conn.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_BYTES.size)
        (unread,) = _INT.unpack(fcntl.ioctl(conn, termios.FIONREAD, bytes(_INT.size)))
        acknowledged, received = _TCP_BYTES.unpack(info)
    except (OSError, ValueError, struct.error):  # closed; an old kernel
        return 0, 0
    return acknowledged, received - unread


def bytes_read(fd: int) -> int:
    """How many bytes of the client's have been read; 0 if it is no TCP connection."""
    try:
        with Borrowed(fd) as sock:
            return bytes_moved(sock)[1]
    except OSError:
        return 0


def end_input(fd: int) -> None:
    """A reader of this connection reads what has come so far, then the end. It can still be written to."""
    with contextlib.suppress(OSError), Borrowed(fd) as sock:
        sock.shutdown(socket.SHUT_RD)


class Borrowed(socket.socket):
    """A descriptor that another object owns, and that is not closed here."""

    def __init__(self, fd: int, family: int = socket.AF_INET) -> None:
        # As if it were non-blocking: else `socket.setdefaulttimeout` would make it so, for its owner, too.
        super().__init__(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK, fileno=fd)

    def __exit__(self, *_: object) -> None:
        self.detach()


def _we_spoke_last(writer: asyncio.StreamWriter) -> bool:
    """Whether the worker sent last, or neither side ever sent. Of a UNIX socket the kernel does not know; then the
    silence is enough."""
    sock = writer.get_extra_info("socket")
    if sock is None or sock.family == socket.AF_UNIX:
        return True
    sent_ms_ago, received_ms_ago = _silences_ms(sock, getattr(getattr(sock, "_sock", None), "preamble_bytes", 0))
    return sent_ms_ago <= received_ms_ago


def _silences_ms(sock: socket.socket, preamble_bytes: int = 0) -> tuple[float, float]:
    """Milliseconds since something was sent, and since something came; infinite if it is no TCP connection.

    The kernel counts both from the connection's beginning, and in steps of its clock tick. So a request that is as old
    as the connection, of a client that never had an answer, would seem to be answered: if nothing was ever sent, the
    first is infinite. If nothing came but those `preamble_bytes`, the client has sent no request: then it counts as if
    the worker had sent when they came.

    As long as the client has not taken all that was sent, the worker is sending: a download may pause."""
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size)
    except OSError:
        return 0.0 if waits(sock.fileno(), termios.TIOCOUTQ) else math.inf, math.inf
    unacknowledged, sent_ms_ago, received_ms_ago, came, unsent, went = _TCP_INFO.unpack(info)
    if unacknowledged or unsent:
        sent_ms_ago = 0
    if came <= preamble_bytes:
        return min(sent_ms_ago, received_ms_ago), received_ms_ago
    return math.inf if not went else sent_ms_ago, received_ms_ago
