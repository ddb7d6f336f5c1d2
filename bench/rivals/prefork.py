"""What both rivals share: listen, fork workers, say when they are ready, serve, stop on TERM.

The serving loops are the plain ones: `accept` in a loop, or `asyncio.start_server(sock=...)`.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import inspect
import os
import signal
import socket
import traceback
from collections.abc import Callable
from functools import partial
from typing import Any, NoReturn, cast

from bench.workloads import BlockingHandler, Handler, StreamsHandler

PATIENCE_S = 10.0
"""For what a worker has begun when it is told to leave."""


def listen(host: str, port: int, backlog: int, *, reuse_port: bool) -> socket.socket:
    """A listener; TCP_NODELAY on it is inherited by what it accepts."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if reuse_port:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    listener.bind((host, port))
    listener.listen(backlog)
    return listener


class _Leave(Exception):
    """The worker was told to, and is idle."""


def serve_blocking(handler: BlockingHandler, listener: socket.socket, ready: Callable[[], None]) -> None:
    """Until SIGTERM; what it has begun is finished."""
    busy = leaving = False

    def leave(*_: object) -> None:
        nonlocal leaving
        leaving = True
        if not busy:
            raise _Leave

    signal.signal(signal.SIGTERM, leave)
    ready()
    with contextlib.suppress(_Leave):
        while not leaving:
            conn, addr = listener.accept()
            busy = True
            try:
                handler(conn, addr)
            except ConnectionError:
                pass  # the client has left: the load generator counts that on its side
            finally:
                conn.close()
            busy = False


async def serve_asyncio(
    handler: StreamsHandler, listener: socket.socket, backlog: int, ready: Callable[[], None]
) -> None:
    """The same."""
    leave = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, leave.set)
    listener.setblocking(False)
    server = await asyncio.start_server(cast(Any, handler), sock=listener, backlog=backlog)
    ready()
    await leave.wait()
    server.close()
    if begun := asyncio.all_tasks() - {asyncio.current_task()}:
        await asyncio.wait(begun, timeout=PATIENCE_S)


def run(
    handler: Handler,
    workers: int,
    backlog: int,
    ready_fd: int,
    listener_of: Callable[[int], socket.socket],
) -> None:
    """Forks the workers, writes a newline to `ready_fd` when all serve, and replaces those that die, until TERM.

    `listener_of(i)` is called in worker i: the rival decides whether that is its own or a common listener.
    """
    ready_read, ready_write = os.pipe()
    stop = {signal.SIGTERM, signal.SIGINT}
    awaited = stop | {signal.SIGCHLD}
    signal.pthread_sigmask(signal.SIG_BLOCK, awaited)
    gc.collect()
    gc.freeze()
    pids: dict[int, int] = {}

    def fork(i: int, ready: Callable[[], None]) -> None:
        pid = os.fork()
        if pid == 0:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, awaited)
            _work(handler, partial(listener_of, i), backlog, ready)
        pids[pid] = i

    for i in range(workers):
        fork(i, partial(_close_after, ready_write, b"."))
    os.close(ready_write)
    seen = 0
    while seen < workers:
        got = os.read(ready_read, workers)
        if not got:
            break  # a worker died before it served; its traceback is on stderr
        seen += len(got)
    if seen == workers:
        _close_after(ready_fd, b"\n")
        while signal.sigwait(awaited) == signal.SIGCHLD:
            for pid in [pid for pid in pids if os.waitpid(pid, os.WNOHANG)[0]]:
                fork(pids.pop(pid), lambda: None)
    for pid in pids:
        os.kill(pid, signal.SIGTERM)
    for pid in pids:
        os.waitpid(pid, 0)


def _work(
    handler: Handler,
    listener_of: Callable[[], socket.socket],
    backlog: int,
    ready: Callable[[], None],
) -> NoReturn:
    """A worker's whole life; it must never come back into the master's stack."""
    code = 1
    try:
        if inspect.iscoroutinefunction(handler):
            asyncio.run(serve_asyncio(cast(StreamsHandler, handler), listener_of(), backlog, ready))
        else:
            serve_blocking(cast(BlockingHandler, handler), listener_of(), ready)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _close_after(fd: int, data: bytes) -> None:
    os.write(fd, data)
    os.close(fd)
