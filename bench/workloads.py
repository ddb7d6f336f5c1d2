"""The handlers that every subject runs: the same functions whoever accepts the connection.

The path of the request says what to do: `/fast` answers at once, `/work` after 1 ms of sleep, `/slow` after
100 ms, `/wait/US` after so many microseconds, `/hold` (asyncio) at once and then keeps the connection until the client
closes it, `/keep` at once and then the next request on the same connection. The answer is this worker's pid.
"""

from __future__ import annotations

import asyncio
import functools
import os
import socket
import time
from collections.abc import Awaitable, Callable
from typing import Any

WORK_S = 0.001
WAITS_S = {b"/work": WORK_S, b"/slow": 0.100}
REQUEST_LIMIT_BYTES = 4096

BlockingHandler = Callable[[socket.socket, Any], None]
StreamsHandler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
Handler = BlockingHandler | StreamsHandler


@functools.cache
def _answer_of(pid: int) -> bytes:
    body = b"%d\n" % pid
    return b"HTTP/1.0 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s" % (len(body), body)


def answer() -> bytes:
    """HTTP/1.0 so that wrk and ab understand it and the close ends it. Every worker makes its own once, at its first
    connection: the pid is the worker's, not the master's."""
    return _answer_of(os.getpid())


def waits_s(path: bytes) -> float:
    """How long a request wants its answer to take."""
    return int(path[6:]) / 1e6 if path.startswith(b"/wait/") else WAITS_S.get(path, 0)


def blocking(conn: socket.socket, _addr: Any) -> None:
    """Answers one request, or as many as come on `/keep`; the serving loop closes the connection."""
    while request := _request(conn):
        path = request.split(b" ", 2)[1]
        if wait_s := waits_s(path):
            time.sleep(wait_s)
        conn.sendall(answer())
        if path != b"/keep":
            return


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
    """The same over asyncio streams; holds when asked to."""
    try:
        path = b"/keep"
        while path == b"/keep":
            path = (await reader.readuntil(b"\r\n\r\n")).split(b" ", 2)[1]
            if wait_s := waits_s(path):
                await asyncio.sleep(wait_s)
            writer.write(answer())
            await writer.drain()
        if path == b"/hold":
            await reader.read()
    except (asyncio.IncompleteReadError, ConnectionError):
        pass  # the client has left: the load generator counts that on its side
    finally:
        writer.close()


BALLAST = [(i, str(i)) for i in range(int(os.environ.get("BENCH_BALLAST_MB", "0")) * 1_000_000 // 150)]
"""As many small objects as an application of that size has; 150 bytes each."""
HANDLERS: dict[str, Handler] = {"blocking": blocking, "asyncio": streams}
