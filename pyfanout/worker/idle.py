"""Which connections only wait for their client's next request: those a draining worker may close. asyncio streams.

Nobody says so: a handler waits for bytes alike in the middle of a request and between two. What tells is who spoke
last.
"""

from __future__ import annotations

import asyncio
import socket
import struct

IDLE_S = 1.0
"""Seconds without a byte, after an answer. A client that has its next request ready sends it sooner, and one that only
keeps the connection has learned to find it closed (RFC 9112, 9.3.1)."""

LOOK_S = 0.25
"""Seconds between two looks while a worker drains."""

_TCP_INFO = struct.Struct("=44xI4xI")  # linux/tcp.h: tcpi_last_data_sent, ..._recv


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


def _we_spoke_last(writer: asyncio.StreamWriter) -> bool:
    """Or nobody ever spoke. The kernel knows; of a UNIX socket it does not, and then the silence must do."""
    sock = writer.get_extra_info("socket")
    if sock is None or sock.family == socket.AF_UNIX:
        return True
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size)
    except OSError:
        return True
    sent_ms_ago, received_ms_ago = _TCP_INFO.unpack(info)
    return bool(sent_ms_ago <= received_ms_ago)
