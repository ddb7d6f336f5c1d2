"""Rival (c): a dispatcher in Python, as people write it by hand: accept, and `socket.send_fds` to the next worker.

A worker is one loop: `recv_fds` and the handler, or a reader of asyncio that makes streams of what it receives.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import os
import signal
import socket
import traceback
from typing import Any, NoReturn, cast

from bench.rivals import prefork
from bench.workloads import BlockingHandler, Handler, StreamsHandler


def serve(
    handler: Handler,
    *,
    host: str,
    port: int,
    workers: int,
    backlog: int,
    ready_fd: int,
) -> None:
    listener = prefork.listen(host, port, backlog, reuse_port=False)
    channels, pids = [], []
    for _ in range(workers):
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        pid = os.fork()
        if pid == 0:
            listener.close()
            os.close(ready_fd)
            ours.close()
            _work(handler, theirs)
        theirs.close()
        channels.append(ours)
        pids.append(pid)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(_stop(pids)))
    os.write(ready_fd, b"\n")
    os.close(ready_fd)
    turn = 0
    while True:
        conn, _ = listener.accept()
        socket.send_fds(channels[turn], [b"c"], [conn.fileno()])
        conn.close()
        turn = (turn + 1) % workers


def _stop(pids: list[int]) -> int:
    for pid in pids:
        os.kill(pid, signal.SIGTERM)
    for pid in pids:
        os.waitpid(pid, 0)
    return 0


def _work(handler: Handler, channel: socket.socket) -> NoReturn:
    try:
        if inspect.iscoroutinefunction(handler):
            asyncio.run(_serve_asyncio(cast(StreamsHandler, handler), channel))
        else:
            while True:
                _serve_one(cast(BlockingHandler, handler), channel)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(1)


def _serve_one(handler: BlockingHandler, channel: socket.socket) -> None:
    _, fds, _, _ = socket.recv_fds(channel, 1, 1)
    with socket.socket(fileno=fds[0]) as conn, contextlib.suppress(ConnectionError):  # the client has left
        handler(conn, None)


async def _serve_asyncio(handler: StreamsHandler, channel: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    tasks: set[asyncio.Task[Any]] = set()
    channel.setblocking(False)

    async def serve_one(conn: socket.socket) -> None:
        await handler(*await asyncio.open_connection(sock=conn))

    def arrived() -> None:
        _, fds, _, _ = socket.recv_fds(channel, 1, 1)
        task = loop.create_task(serve_one(socket.socket(fileno=fds[0])))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    loop.add_reader(channel, arrived)
    await asyncio.Event().wait()
