"""Rivals (a) and (b): workers that accept for themselves, each from a SO_REUSEPORT listener of its own, so that the
kernel spreads connections by a hash, or all from one that was opened before the fork.

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
from typing import Any, cast

from bench.workloads import BlockingHandler, Handler, StreamsHandler

PATIENCE_S = 10.0
"""For what a worker has begun when it is told to leave."""


def listen(address: tuple[str, int], backlog: int, *, reuse_port: bool = False) -> socket.socket:
    """A listener; TCP_NODELAY on it is inherited by what it accepts."""
    listener = socket.create_server(address, backlog=backlog, reuse_port=reuse_port)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def serve(handler: Handler, address: tuple[str, int], workers: int, backlog: int, *, reuse_port: bool) -> None:
    """Forks the workers, and replaces those that die, until TERM."""
    shared = None if reuse_port else listen(address, backlog)
    awaited = {signal.SIGTERM, signal.SIGINT, signal.SIGCHLD}
    signal.pthread_sigmask(signal.SIG_BLOCK, awaited)
    gc.collect()
    gc.freeze()

    def work() -> None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, awaited)
        listener = shared or listen(address, backlog, reuse_port=True)
        if inspect.iscoroutinefunction(handler):
            asyncio.run(_serve_asyncio(cast(StreamsHandler, handler), listener, backlog))
        else:
            _serve_blocking(cast(BlockingHandler, handler), listener)

    pids = {fork(work) for _ in range(workers)}
    while signal.sigwait(awaited) == signal.SIGCHLD:
        gone = {pid for pid in pids if os.waitpid(pid, os.WNOHANG)[0]}
        pids = pids - gone | {fork(work) for _ in gone}
    for pid in pids:
        os.kill(pid, signal.SIGTERM)
    for pid in pids:
        os.waitpid(pid, 0)


def fork(work: Callable[[], None]) -> int:
    """The pid of a worker with `work` as its whole life: it never comes back into the master's stack."""
    if pid := os.fork():
        return pid
    try:
        work()
        os._exit(0)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(1)


def _serve_blocking(handler: BlockingHandler, listener: socket.socket) -> None:
    """Until SIGTERM; what it has begun is finished."""
    busy = leaving = False

    def leave(*_: object) -> None:
        nonlocal leaving
        leaving = True
        if not busy:
            raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, leave)
    with contextlib.suppress(KeyboardInterrupt):
        while not leaving:
            conn, addr = listener.accept()
            busy = True
            with conn, contextlib.suppress(ConnectionError):  # the client has left, which is counted on its side
                handler(conn, addr)
            busy = False


async def _serve_asyncio(handler: StreamsHandler, listener: socket.socket, backlog: int) -> None:
    """The same."""
    leave = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, leave.set)
    listener.setblocking(False)
    server = await asyncio.start_server(cast(Any, handler), sock=listener, backlog=backlog)
    await leave.wait()
    server.close()
    if begun := asyncio.all_tasks() - {asyncio.current_task()}:
        await asyncio.wait(begun, timeout=PATIENCE_S)
