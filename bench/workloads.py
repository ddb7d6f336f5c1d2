"""The handlers that every subject runs: the same functions whoever accepts the connection.

The path of the request says what to do: `/fast` answers at once, `/work` after 1 ms of sleep, `/slow` after
100 ms, `/wait/US` after so many microseconds, `/hold` (asyncio) at once and then keeps the connection until the client
closes it, `/keep` at once and then the next request on the same connection. The answer is this worker's pid.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Awaitable, Callable
from typing import Any

WORK_S = 0.001
SLOW_S = 0.100
REQUEST_LIMIT_BYTES = 4096

BlockingHandler = Callable[[socket.socket, Any], None]
StreamsHandler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
Handler = BlockingHandler | StreamsHandler

# Every worker makes its answer once, at its first connection: the pid is the worker's, not the master's.
_answers: dict[int, bytes] = {}


def answer() -> bytes:
    """This process's answer, HTTP/1.0 so that wrk and ab understand it and the close ends it."""
    pid = os.getpid()
    made = _answers.get(pid)
    if made is None:
        body = b"%d\n" % pid
        made = b"HTTP/1.0 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s" % (len(body), body)
        _answers[pid] = made
    return made


def waits_s(request: bytes) -> float:
    """How long the request, "GET /path ...", wants its answer to take."""
    if request.startswith(b"GET /work "):
        return WORK_S
    if request.startswith(b"GET /slow "):
        return SLOW_S
    if request.startswith(b"GET /wait/"):
        return int(request[10 : request.index(b" ", 10)]) / 1e6
    return 0


def blocking(conn: socket.socket, _addr: Any) -> None:
    """Answers one request, or as many as come on `/keep`; the serving loop closes the connection."""
    request = _request(conn)
    while request.startswith(b"GET /keep "):
        conn.sendall(answer())
        request = _request(conn)
    if wait_s := waits_s(request):
        time.sleep(wait_s)
    if request:
        conn.sendall(answer())


def _request(conn: socket.socket) -> bytes:
    """A whole one; empty if the client has left before."""
    request = conn.recv(REQUEST_LIMIT_BYTES)
    while request and not request.endswith(b"\r\n\r\n"):
        more = conn.recv(REQUEST_LIMIT_BYTES)
        if not more:
            return b""
        request += more
    return request


async def streams(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answers one request over asyncio streams and closes, or holds when asked to."""
    try:
        request = await reader.readuntil(b"\r\n\r\n")
        while request.startswith(b"GET /keep "):
            writer.write(answer())
            await writer.drain()
            request = await reader.readuntil(b"\r\n\r\n")
        if wait_s := waits_s(request):
            await asyncio.sleep(wait_s)
        writer.write(answer())
        await writer.drain()
        if request.startswith(b"GET /hold "):
            await reader.read()
    except (asyncio.IncompleteReadError, ConnectionError):
        pass  # the client has left: the load generator counts that on its side
    finally:
        writer.close()


def ballast() -> list[tuple[int, str]]:
    """As many small objects as an application of BENCH_BALLAST_MB has; 150 bytes each."""
    return [(i, str(i)) for i in range(int(os.environ.get("BENCH_BALLAST_MB", "0")) * 1_000_000 // 150)]


BALLAST = ballast()
HANDLERS: dict[str, Handler] = {"blocking": blocking, "asyncio": streams}
