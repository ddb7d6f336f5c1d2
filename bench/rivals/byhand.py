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
from functools import partial
from multiprocessing import Pipe, reduction
from multiprocessing.connection import Connection
from typing import Any, cast

from bench.rivals import prefork
from bench.workloads import BlockingHandler, Handler, StreamsHandler


class FdsOfSocket:
    """Descriptors pass by `socket.send_fds`."""

    def __init__(self) -> None:
        self.ours, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def send(self, fd: int, _pid: int) -> None:
        socket.send_fds(self.ours, [b"c"], [fd])

    def receive(self) -> int:
        _, fds, _, _ = socket.recv_fds(self.theirs, 1, 1)
        if not fds:
            raise EOFError
        return fds[0]


class Reduction:
    """Descriptors pass by `multiprocessing.reduction`, over a pipe of multiprocessing."""

    def __init__(self) -> None:
        self.ours: Connection
        self.theirs: Connection
        self.ours, self.theirs = Pipe()

    def send(self, fd: int, pid: int) -> None:
        reduction.send_handle(self.ours, fd, pid)

    def receive(self) -> int:
        return cast(int, reduction.recv_handle(self.theirs))


Channel = FdsOfSocket | Reduction
CHANNELS: dict[str, type[Channel]] = {"send_fds": FdsOfSocket, "reduction": Reduction}


class _Leave(Exception):
    """The dispatcher was told to."""


def _leave(*_: object) -> None:
    raise _Leave


def serve(handler: Handler, address: tuple[str, int], workers: int, backlog: int, *, passing: str) -> None:
    """Until SIGTERM: then each worker serves what it was passed, and finds the end."""
    listener = prefork.listen(address, backlog)
    gc.collect()
    gc.freeze()
    channels: list[Channel] = []
    pids: list[int] = []
    for _ in range(workers):
        channels.append(CHANNELS[passing]())
        pids.append(prefork.fork(partial(_work, handler, listener, channels)))
        channels[-1].theirs.close()
    signal.signal(signal.SIGTERM, _leave)
    with contextlib.suppress(_Leave):
        for channel, pid in itertools.cycle(zip(channels, pids, strict=True)):
            conn, _ = listener.accept()
            channel.send(conn.fileno(), pid)
            conn.close()
    listener.close()
    for each in channels:
        each.ours.close()
    for pid in pids:
        os.waitpid(pid, 0)


def _work(handler: Handler, listener: socket.socket, channels: list[Channel]) -> None:
    """The last channel is this worker's."""
    listener.close()
    for each in channels:
        each.ours.close()
    if inspect.iscoroutinefunction(handler):
        asyncio.run(_serve_asyncio(cast(StreamsHandler, handler), channels[-1]))
        return
    with contextlib.suppress(EOFError):
        while True:
            _serve_one(cast(BlockingHandler, handler), channels[-1])


def _serve_one(handler: BlockingHandler, channel: Channel) -> None:
    with socket.socket(fileno=channel.receive()) as conn, contextlib.suppress(ConnectionError):  # the client has left
        handler(conn, None)


async def _serve_asyncio(handler: StreamsHandler, channel: Channel) -> None:
    loop = asyncio.get_running_loop()
    tasks: set[asyncio.Task[Any]] = set()
    ended = asyncio.Event()

    async def serve_one(conn: socket.socket) -> None:
        await handler(*await asyncio.open_connection(sock=conn))

    def arrived() -> None:
        try:
            conn = socket.socket(fileno=channel.receive())
        except EOFError:
            loop.remove_reader(channel.theirs.fileno())
            ended.set()
            return
        task = loop.create_task(serve_one(conn))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    loop.add_reader(channel.theirs.fileno(), arrived)
    await ended.wait()
    if tasks:
        await asyncio.wait(tasks, timeout=prefork.PATIENCE_S)
