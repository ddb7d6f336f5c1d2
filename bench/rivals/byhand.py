"""Rival (c): a dispatcher in Python, as people write it by hand: accept, and pass the connection to the next worker, by
`socket.send_fds` or by `multiprocessing.reduction`.

A worker is one loop: receive and the handler, or a reader of asyncio that makes streams of what it receives.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import inspect
import itertools
import os
import signal
import socket
from collections.abc import Callable
from functools import partial
from multiprocessing import Pipe, reduction
from typing import Any, cast

from bench.rivals import prefork
from bench.workloads import BlockingHandler, Handler, StreamsHandler


def _send_fds(channel: socket.socket, fd: int, _pid: int) -> None:
    socket.send_fds(channel, [b"c"], [fd])


def _recv_fds(channel: socket.socket) -> int:
    _, fds, _, _ = socket.recv_fds(channel, 1, 1)
    if not fds:
        raise EOFError
    return fds[0]


WAYS: dict[str, tuple[Callable[[], Any], Callable[[Any, int, int], None], Callable[[Any], int]]] = {
    "send_fds": (partial(socket.socketpair, type=socket.SOCK_SEQPACKET), _send_fds, _recv_fds),
    "reduction": (Pipe, reduction.send_handle, reduction.recv_handle),
}
"""How descriptors pass: it makes two ends, the master's and the worker's; sends one to the process of a pid; receives
one, or raises EOFError."""


def serve(handler: Handler, address: tuple[str, int], workers: int, backlog: int, *, passing: str) -> None:
    """Until SIGTERM: then each worker serves what it was passed, and finds the end."""
    pair, send, receive = WAYS[passing]
    listener = prefork.listen(address, backlog)
    gc.collect()
    gc.freeze()
    channels: list[Any] = []
    pids: list[int] = []
    for _ in range(workers):
        ours, theirs = pair()
        channels.append(ours)
        pids.append(prefork.fork(partial(_work, handler, partial(receive, theirs), theirs, [listener, *channels])))
        theirs.close()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with contextlib.suppress(KeyboardInterrupt):
        for channel, pid in itertools.cycle(zip(channels, pids, strict=True)):
            conn, _ = listener.accept()
            send(channel, conn.fileno(), pid)
            conn.close()
    for each in (listener, *channels):
        each.close()
    for pid in pids:
        os.waitpid(pid, 0)


def _work(handler: Handler, receive: Callable[[], int], channel: Any, inherited: list[Any]) -> None:
    for each in inherited:
        each.close()
    if inspect.iscoroutinefunction(handler):
        asyncio.run(_serve_asyncio(cast(StreamsHandler, handler), receive, channel))
        return
    with contextlib.suppress(EOFError):
        while True:
            # what a client does that has left is counted on its side
            with socket.socket(fileno=receive()) as conn, contextlib.suppress(ConnectionError):
                cast(BlockingHandler, handler)(conn, None)


async def _serve_asyncio(handler: StreamsHandler, receive: Callable[[], int], channel: Any) -> None:
    loop = asyncio.get_running_loop()
    tasks: set[asyncio.Task[Any]] = set()
    ended = asyncio.Event()

    async def serve_one(conn: socket.socket) -> None:
        await handler(*await asyncio.open_connection(sock=conn))

    def arrived() -> None:
        try:
            conn = socket.socket(fileno=receive())
        except EOFError:
            loop.remove_reader(channel)
            ended.set()
            return
        task = loop.create_task(serve_one(conn))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    loop.add_reader(channel, arrived)
    await ended.wait()
    if tasks:
        await asyncio.wait(tasks, timeout=prefork.PATIENCE_S)
