"""Listener: the `socket.socket` that any server can accept from. Connections come out of the worker's channel.

Its descriptor is an epoll set, which is readable when there is something for `accept`: a connection in the channel, or
a word of the master, which `accept` answers on the way. So a pong proves that the server's accept loop comes round. And
a server that keeps the descriptor after the end finds it silent: what an epoll set watches can be taken out of it,
whereas a loop that has registered the channel itself would be told of its end for ever (epoll(7), Q6: the master has
the channel open, too).
"""

from __future__ import annotations

import _socket
import contextlib
import errno
import os
import socket

# By name: gevent takes it out of its module. Its greenlets are one thread, with one lock.
from _thread import RLock
from collections.abc import Callable
from select import EPOLLET, EPOLLIN, EPOLLOUT, POLLIN, poll
from typing import TYPE_CHECKING, Any

from pyfanout.core import BATCH, OUT_OF_MEMORY, Receiver
from pyfanout.link.messages import MOST_CONNECTIONS
from pyfanout.worker.channel_watch import ChannelWatch
from pyfanout.worker.connection import Address, Connection, Counting
from pyfanout.worker.epoll import epoll
from pyfanout.worker.live import LiveConnections
from pyfanout.worker.receipt import Receipt

if TYPE_CHECKING:
    from pyfanout.worker.host import Host


__all__ = ["EPOLLET", "EPOLLIN", "Listener", "epoll"]

UNHEARD = 16
"""A server that finds a connection each time it is woken hears the master at least each so many times: a look costs
1 us."""


class Accepted(Connection):
    """A connection that its server may forget to close: when no object refers to it any more, it is closed, and its
    receipt with it."""

    __slots__ = ()

    def setblocking(self, flag: bool) -> None:
        """Most servers say what is so already."""
        if self.gettimeout() != (None if flag else 0.0):
            super().setblocking(flag)

    def setsockopt(self, level: int, *option: Any) -> None:
        """A server on TCP sets options of TCP also on a client of a UNIX socket beside it: these are ignored."""
        try:
            super().setsockopt(level, *option)
        except OSError:
            if level != socket.IPPROTO_TCP or self.family != socket.AF_UNIX:
                raise

    def __del__(self) -> None:
        if getattr(self, "_report", None) is not None:
            self._end()
        super().__del__()  # type: ignore[misc]  # of C


class CountingAccepted(Counting, Accepted):
    __slots__ = ("_moves",)


Accepted.counting = CountingAccepted


class Bare:
    """A connection as uvloop wants it: a file object that is closed after its descriptor, which libuv has closed."""

    __slots__ = ("_fd", "_receipt", "family")
    type = int(socket.SOCK_STREAM)

    def __init__(self, fd: int, family: int, receipt: Receipt) -> None:
        self._fd = fd
        self.family = family
        self._receipt = receipt

    def fileno(self) -> int:
        return self._fd

    def close(self) -> None:
        self._receipt.close()

    def lose(self) -> None:
        """The loop has failed before it had all of it."""
        self.close()
        with contextlib.suppress(OSError):  # but had closed the descriptor
            os.close(self._fd)

    __del__ = close


class Listener(socket.socket):
    """Accepts what the master passes to this worker. Made by `ServingWorker.listener`.

    To a server it is a bound, listening, non-blocking socket with the public address: `accept` raises BlockingIOError
    when there is nothing now, and always after the worker was told to drain. `bind`, `listen` and `setsockopt` do
    nothing, since the master has done all that. What `accept` returns reports its own end when it is closed or
    detached, so that the policy and a drain know of it.
    """

    __slots__ = (
        "_accepting",
        "_arrivals",
        "_blocking",
        "_channel",
        "_control_fd",
        "_count",
        "_epoll",
        "_greedy",
        "_receiver",
        "_timeout_s",
        "_took",
        "_unheard",
        "_woken",
        "_worker",
        "connections",
    )

    def __init__(
        self, worker: Host, channel_fd: int, *, blocking: bool, control: bool, greedy: bool, counted: bool
    ) -> None:
        """See `WorkerProcess.listener`."""
        # A socket object, so that its family and type are right; then another file takes its descriptor.
        super().__init__(worker.public.first.family, socket.SOCK_STREAM, worker.public.first.proto)
        self._epoll = epoll()
        self._channel = ChannelWatch(worker, self._epoll, channel_fd)
        os.dup2(self._epoll.fileno(), self.fileno(), inheritable=False)
        self._worker = worker
        self._blocking = blocking
        self._greedy = greedy
        self._receiver = Receiver(channel_fd, worker.ends, 0, BATCH)
        self._arrivals: list[Any] = []
        """Taken and not accepted yet, last first: of a loop that accepts until there is nothing, so never for long."""
        self._count = worker.counter("connection") if counted else None
        # Not the lock of `connections`: one that waits for the kernel would keep closing threads waiting.
        self._accepting = RLock()
        self.connections = LiveConnections(worker)
        """What a runner asks, and does, when the worker drains."""
        self._control_fd = worker.link.fileno() if control else None
        if self._control_fd is not None:
            self._epoll.register(self._control_fd, EPOLLIN)
        self._took = False
        """Something, since there was nothing."""
        self._unheard = 0
        """Looks into the channel since the last one at the control socket."""
        self._timeout_s: float | None = None if blocking else 0.0
        """What the server has set last."""
        self._woken: Callable[[], object] | None = None
        """See `wake`."""

    # ---- what a server calls -----------------------------------------------------------------------------------

    def accept(self) -> tuple[Connection, Address]:
        """A connection and its client's address. Raises BlockingIOError if none is there, or no descriptor is free:
        then it waits in the channel."""
        with self._accepting:
            arrival = self._arrivals.pop() if self._arrivals else self._take()
            conn, address = Accepted.arrived(arrival, self._blocking, self.connections.begin(arrival).close)
        if self._count is not None:
            self._count()
        return conn, address

    def accept_bare(self) -> Bare:
        """The same, for a loop that does all with the descriptor itself."""
        with self._accepting:
            arrival = self._arrivals.pop() if self._arrivals else self._take()
            conn = Bare(arrival.fd, arrival.family, self.connections.begin(arrival))
        if self._count is not None:
            self._count()
        return conn

    def _accept(self) -> tuple[int, Address]:
        """What `socket.socket.accept` is made of; some servers call it. The descriptor is the caller's, which need not
        tell when it is closed: it counts as closed now."""
        conn, address = self.accept()
        return conn.detach(), address

    def getsockname(self) -> Any:
        """The address that clients connect to; the first, if there are several, see `Public`."""
        return self._worker.public.first.address

    def getsockopt(self, level: int, option: int, size: int = 0) -> Any:
        """What a listening socket would say of itself, 0 for all else."""
        if size:
            return bytes(size)
        if level != socket.SOL_SOCKET:
            return 0
        match option:
            case socket.SO_ACCEPTCONN:
                return 1
            case socket.SO_TYPE:
                return int(self.type)
            case socket.SO_DOMAIN:
                return int(self.family)
            case socket.SO_PROTOCOL:
                return self.proto
        return 0

    def setsockopt(self, *_: Any) -> None:
        """Done by the master, where it concerns a listener."""

    def bind(self, _address: Any) -> None:
        """Done by the master."""

    def listen(self, _backlog: int = 0) -> None:
        """Done by the master."""

    def shutdown(self, _how: int) -> None:
        """The master's listener serves other workers, too."""

    def setblocking(self, flag: bool) -> None:
        self._timeout_s = None if flag else 0.0

    def settimeout(self, seconds: float | None) -> None:
        """It never blocks; the server finds here again what it has set."""
        self._timeout_s = seconds

    def gettimeout(self) -> float | None:
        """How long a server waits in `select` before it accepts (`socketserver.BaseServer.handle_request`): so this is
        not 0.0, unless the server has said so, or is a loop."""
        return self._timeout_s

    def getblocking(self) -> bool:
        return self._timeout_s != 0

    @property
    def timeout(self) -> float | None:
        return self._timeout_s

    @property
    def _io_refs(self) -> int:
        return 0

    @_io_refs.setter
    def _io_refs(self, count: int) -> None:
        """uvloop counts here when it takes the descriptor for itself: which it would never accept from."""
        if count > 0:
            raise RuntimeError("uvloop cannot accept from a pyfanout.Listener: use pyfanout.embed.loop")

    def _real_close(self) -> None:
        self._channel.forget()
        self._epoll.close()
        _socket.socket.close(self)

    # ---- what a runner calls -----------------------------------------------------------------------------------

    def quiet(self) -> None:
        """From now on there is nothing to accept. May be called again, and from a signal handler."""
        self._channel.quiet()

    def wake(self, woken: Callable[[], object] = bool) -> None:
        """The listener is readable until the server accepts once more, which calls `woken`."""
        with self._accepting:
            self._woken = woken
            self._watch_control(EPOLLOUT)  # to which one can write at any time

    def receive(self, timeout_s: float) -> None:
        """Reads what the master says within that time, for a server that does not accept now."""
        news = poll()
        if self._control_fd is not None:
            news.register(self._control_fd, POLLIN)
        if news.poll(timeout_s * 1000):
            self._receive()

    def limit(self, count: int) -> None:
        """The server itself stops accepting at `count` connections: beyond that others get them. Before READY."""
        self._worker.most = min(self._worker.most or MOST_CONNECTIONS, count)

    def disown(self) -> None:
        """In a child that the worker forked: there is nothing to accept, and the child's copy of a loop cannot send to
        clients. A handler with a thread of its own may go on with its connection in a child."""
        self._channel.forget()
        self._woken = None
        self._arrivals.clear()
        self.connections.disown(silence=not self._blocking)

    @property
    def pending(self) -> int:
        """Connections that are taken and not accepted: which `accept` returns without asking the channel."""
        return len(self._arrivals)

    @property
    def handshake_timeout(self) -> float:
        """Seconds that a client may take for its TLS handshake."""
        return self._worker.config.handshake_timeout

    @property
    def proxied(self) -> bool:
        """Whether proxies say who the client is."""
        return self._worker.config.proxy_protocol

    @property
    def in_preamble(self) -> int:
        """Connections that are taken, in their preamble: `accept` returns each when that is complete."""
        return 0

    @property
    def live(self) -> int:
        """How many connections there are that were accepted, and neither closed nor detached."""
        return len(self.connections)

    @property
    def settled(self) -> bool:
        """Whether each of them is between two requests, and none is about to be accepted."""
        return not self._arrivals and not self.in_preamble and self.connections.settled

    # ---- inside ------------------------------------------------------------------------------------------------

    def _watch_control(self, besides: int) -> None:
        """Have the set watch the control socket for `besides`, too."""
        fd, events = self._worker.link.fileno(), besides | (EPOLLIN if self._control_fd is not None else 0)
        with contextlib.suppress(OSError, ValueError):  # it is not there; or the set was closed
            self._epoll.unregister(fd)
        with contextlib.suppress(OSError, ValueError):
            if events:
                self._epoll.register(fd, events)

    def _take(self) -> Any:
        if self._woken is not None:
            woken, self._woken = self._woken, None
            self._watch_control(0)
            woken()
        rc, channel = -errno.EAGAIN, self._channel
        if channel.fd is not None and not channel.rests:
            rc, arrivals = self._receiver.take_ready(BATCH if self._greedy else 1)
        if rc > 0:
            self._took = True
            self._unheard += 1  # one that accepts once each time it comes round may never find nothing
            if self._unheard >= UNHEARD:
                self._receive()
            self._arrivals = list(arrivals)[::-1]
            return self._arrivals.pop()
        if rc == 0:  # the master has finished, or is gone
            self._worker.drain()
        elif rc in (-errno.EMFILE, -errno.ENFILE, *OUT_OF_MEMORY):
            if rc in OUT_OF_MEMORY or not self._worker.farewell.drop():  # else it is told of again at once
                channel.rest(-rc)
        elif rc not in (-errno.EAGAIN, -errno.EINTR):
            raise OSError(-rc, f"take a connection: {os.strerror(-rc)}")
        if self._took and self._unheard < UNHEARD:  # it was woken for that; what else there is wakes it again
            self._unheard += 1
        else:
            self._receive()
        self._took = False
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    def _receive(self) -> None:
        self._unheard = 0
        if self._control_fd is not None and not self._worker.forked and not self._worker.receive():
            with contextlib.suppress(OSError, ValueError):
                self._epoll.unregister(self._control_fd)
            self._control_fd = None
            self._worker.outlive_master()
