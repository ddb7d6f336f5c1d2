"""An application whose workers do evil to what they share with their master, when a client says which."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import mmap
import os
import random
import socket
import struct
import time
from collections.abc import Callable, Iterator
from typing import Any

from pyfanout._core import ffi

import pyfanout
from pyfanout.link import messages
from pyfanout.link.messages import Failed, HasRoom, Pong, Ready, Retiring, Short, Stage, WantsSuccessor
from pyfanout.worker.serving import inside
from pyfanout.worker.worker import WorkerProcess

# The socket module has no names for them.
SO_ATTACH_FILTER, SO_TIMESTAMP, SO_PEEK_OFF, SO_PASSPIDFD, SO_PASSRIGHTS = 26, 29, 42, 76, 83
DROP_ALL = ctypes.create_string_buffer((6).to_bytes(8, "little"))
"""A filter for sockets: BPF_RET | BPF_K, 0."""
TIMES = 200
WHILE_S = 0.0001
"""Between two of them: so that the master looks meanwhile."""


def handler(conn: socket.socket, _addr: Any) -> None:
    line = conn.recv(99).decode()
    conn.sendall(b"%d\n" % os.getpid())
    conn.close()
    _do(line)


async def coroutine(reader: Any, writer: Any) -> None:
    line = (await reader.read(99)).decode()
    writer.write(b"%d\n" % os.getpid())
    await writer.drain()
    writer.close()
    await writer.wait_closed()
    _do(line)


def _do(line: str) -> None:
    worker = pyfanout.current_worker()
    evil, _, seed = line.partition(" ")
    if evil in EVILS and worker is not None:
        EVILS[evil](inside(worker), random.Random(int(seed)))


def score(worker: WorkerProcess, rng: random.Random) -> None:
    """Random bytes all over its page."""
    page = ffi.buffer(ffi.cast("char *", worker.ends.score), mmap.PAGESIZE)
    for _ in range(TIMES):
        begin = rng.randrange(mmap.PAGESIZE)
        end = rng.randrange(begin, mmap.PAGESIZE) + 1
        page[begin:end] = rng.choice([rng.randbytes(end - begin), b"\0" * (end - begin), b"\xff" * (end - begin)])
        time.sleep(WHILE_S)


def words(worker: WorkerProcess, rng: random.Random) -> None:
    """What a worker may say at any time, except that it leaves, fails or is short, which the master believes."""
    for _ in range(TIMES):
        number = rng.randrange(2**32)
        ready = Ready(False, 0), Ready(True, 1), Ready(True, 64)
        _say(worker, rng.choice([*ready, Pong(number, 0), HasRoom(), Short(False)]))
        time.sleep(WHILE_S)


def farewells(worker: WorkerProcess, rng: random.Random) -> None:
    """That it leaves, and serves on."""
    for _ in range(TIMES):
        _say(worker, rng.choice([Retiring(), WantsSuccessor(), Failed(rng.choice(list(Stage)), "no", "reason")]))


def flood(worker: WorkerProcess, _rng: random.Random) -> None:
    """As much as its socket takes, for a while."""
    end = time.monotonic() + 0.2
    while time.monotonic() < end:
        _say(worker, HasRoom())


def noise(worker: WorkerProcess, rng: random.Random) -> None:
    """Bytes that are no message."""
    for _ in range(TIMES):
        with contextlib.suppress(OSError):
            worker.link.sock.send(rng.randbytes(rng.randrange(1, 300)), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)


def hang_up(worker: WorkerProcess, _rng: random.Random) -> None:
    """Its end of the control socket is closed, and it goes on."""
    worker.link.sock.shutdown(socket.SHUT_RDWR)


def deafness(worker: WorkerProcess, _rng: random.Random) -> None:
    """Its channel is shut down, for all who share it."""
    with _channels(worker) as channels:
        for channel in channels:
            channel.shutdown(socket.SHUT_RDWR)


def stuffing(worker: WorkerProcess, rng: random.Random) -> None:
    """Bytes and descriptors into the wrong end of its channel, and options that all who share it have to live with."""
    with _channels(worker) as channels:
        for channel in channels:
            _stuff(channel, rng)


def _stuff(channel: socket.socket, rng: random.Random) -> None:
    with contextlib.suppress(OSError):
        for _ in range(TIMES):
            channel.send(rng.randbytes(200), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
    with contextlib.suppress(OSError):
        for _ in range(TIMES):
            socket.send_fds(channel, [b"x"], [channel.fileno()] * 200, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
    filtered = struct.pack("@HP", 1, ctypes.addressof(DROP_ALL))
    options: list[tuple[int, Any]] = [(SO_PEEK_OFF, 1 << 30), (socket.SO_PASSCRED, 1), (SO_TIMESTAMP, 1)]
    options += [(SO_PASSPIDFD, 1), (SO_PASSRIGHTS, 0), (SO_ATTACH_FILTER, filtered)]
    for option, value in options:
        with contextlib.suppress(OSError):  # SO_PASSPIDFD came with Linux 6.5, SO_PASSRIGHTS with 6.16
            channel.setsockopt(socket.SOL_SOCKET, option, value)
    channel.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    channel.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    channel.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, b"\0" * 8 + (1000).to_bytes(8, "little"))
    flags = fcntl.fcntl(channel, fcntl.F_GETFL)
    fcntl.fcntl(channel, fcntl.F_SETFL, flags ^ os.O_NONBLOCK)


def theft(worker: WorkerProcess, _rng: random.Random) -> None:
    """Connections are taken from the channel and dropped; a line of the log for each."""
    end = time.monotonic() + 0.2
    with _channels(worker) as channels:
        while time.monotonic() < end:
            for channel in channels:
                _rob(channel)


def _rob(channel: socket.socket) -> None:
    with contextlib.suppress(BlockingIOError):
        _, ancillary, _, _ = channel.recvmsg(4096, 256, socket.MSG_DONTWAIT)
        for _, _, payload in ancillary:
            print("stolen", flush=True)
            os.close(int.from_bytes(payload[:4], "little"))


@contextlib.contextmanager
def _channels(worker: WorkerProcess) -> Iterator[list[socket.socket]]:
    """Those that it has kept (the number of another may be a client's by now); its own descriptors are left open."""
    with contextlib.ExitStack() as stack:
        found = []
        for fd in {worker.ends.pool_fd, worker.ends.seat_fd}:
            with contextlib.suppress(OSError):
                channel = stack.enter_context(socket.socket(fileno=os.dup(fd)))
                if channel.family == socket.AF_UNIX:
                    found.append(channel)
        yield found


def _say(worker: WorkerProcess, message: messages.Message) -> None:
    with contextlib.suppress(OSError):
        messages.send(worker.link.sock, message)


EVILS: dict[str, Callable[[WorkerProcess, random.Random], None]] = {
    each.__name__: each for each in (score, words, farewells, flood, noise, hang_up, deafness, stuffing, theft)
}
