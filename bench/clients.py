"""The few connections that the bench makes itself, to know which worker answers, or to hold them. The load is load.c's.

`python -m bench.clients PORT COUNT` holds so many until its stdin ends; it fails if one was closed meanwhile.
"""

from __future__ import annotations

import contextlib
import select
import selectors
import socket
import sys
import time
from collections.abc import Iterator
from subprocess import PIPE, Popen

from bench.installed import ROOT

LIMIT_S = 20.0
REQUEST = b"GET /hold HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
"""After which the connection may stay open."""
SOURCES = 64
"""Addresses of clients, each with its own ports: the thousands of connections before are not yet forgotten."""
OK = (b"HTTP/1.0 200", b"HTTP/1.1 200")
PROBE_S = 0.0005
"""Between two connections that look whether the server answers again."""
TICK_S = 0.0002
"""Between two looks for an answer, and after a refusal: more often, and it would need a core of its own."""


@contextlib.contextmanager
def held(port: int, count: int, limit_s: float = LIMIT_S, closed: select.poll | None = None) -> Iterator[list[int]]:
    """So many connections, one after the other, that stay open: the pid that each was answered. Raises OSError if one
    is refused, reset or silent, or answers something else. Those that are `closed` meanwhile can be asked for."""
    with contextlib.ExitStack() as stack:
        found = []
        for conn in _asking(stack, port, count, limit_s):
            found.append(_answer(conn))
            if closed:
                closed.register(conn, select.POLLIN)
        yield found


@contextlib.contextmanager
def held_by_others(port: int, count: int, processes: int) -> Iterator[None]:
    """`held`, in so many processes at once, so that `count` may be more than the descriptors that one may have. Raises
    OSError, in the end, if one was closed meanwhile."""
    command = [sys.executable, "-m", "bench.clients", f"{port}", f"{count // processes}"]
    with contextlib.ExitStack() as stack:
        holders = [stack.enter_context(Popen(command, cwd=ROOT, stdin=PIPE, stdout=PIPE)) for _ in range(processes)]
        if not all(holder.stdout.readline() for holder in holders):  # type: ignore[union-attr] # it is a pipe
            raise OSError(f"{count:,} connections could not be held")
        yield
        for holder in holders:
            holder.communicate()
        if any(holder.returncode for holder in holders):
            raise OSError("some of those that were held were closed meanwhile")


def at_once(port: int, count: int, limit_s: float = LIMIT_S) -> set[int]:
    """Which workers answer so many that are all there before the first is answered: one after the other, it may always
    be the same. Raises as `held`."""
    found = set()
    with contextlib.ExitStack() as stack:
        for conn in [*_asking(stack, port, count, limit_s)]:
            found.add(_answer(conn))
            conn.close()  # gunicorn lingers until then
    return found


def _asking(stack: contextlib.ExitStack, port: int, count: int, limit_s: float) -> Iterator[socket.socket]:
    for i in range(count):
        source = (f"127.65.0.{1 + i % SOURCES}", 0)
        conn = stack.enter_context(socket.create_connection(("127.0.0.1", port), limit_s, source))
        conn.sendall(REQUEST)
        yield conn


def _answer(conn: socket.socket) -> int:
    """The pid of the worker that has it."""
    answer = b""
    while not (answer.endswith(b"\n") and answer.partition(b"\r\n\r\n")[2]):
        more = conn.recv(4096)
        if not more:
            raise ConnectionResetError(f"closed after {answer!r}")
        answer += more
    if not answer.startswith(OK):
        raise OSError(f"not an answer: {answer!r}")
    return int(answer.partition(b"\r\n\r\n")[2])


def first_answer_s(port: int, limit_s: float) -> float:
    """From now to the first answer to any client, with a new client every PROBE_S, and after a refusal: those that a
    server has lost do not count. Raises TimeoutError."""
    begin_s = next_s = time.monotonic()
    with contextlib.ExitStack() as stack, selectors.DefaultSelector() as selector:
        while (now_s := time.monotonic()) < begin_s + limit_s:
            if now_s >= next_s:
                conn = socket.socket()
                conn.setblocking(False)
                conn.connect_ex(("127.0.0.1", port))
                try:
                    conn.send(REQUEST)
                except OSError:  # refused, which loopback says at once
                    conn.close()
                else:
                    selector.register(stack.enter_context(conn), selectors.EVENT_READ)
                    next_s = now_s + PROBE_S
            time.sleep(TICK_S)  # an epoll sleeps whole milliseconds
            for key, _ in selector.select(0):
                with contextlib.suppress(OSError):
                    if key.fileobj.recv(4096).startswith(OK):  # type: ignore[union-attr]
                        return time.monotonic() - begin_s
                selector.unregister(key.fileobj)
                next_s = now_s
    raise TimeoutError(f"no answer within {limit_s:g} s")


if __name__ == "__main__":
    closed = select.poll()
    with held(int(sys.argv[1]), int(sys.argv[2]), closed=closed):
        print("held", flush=True)
        sys.stdin.read()
        sys.exit(bool(closed.poll(0)))
