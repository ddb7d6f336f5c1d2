"""What master and worker say to each other on a worker's control socket: the messages, encode, decode, send, receive.

The socket is a SEQPACKET pair: one message is one packet, a byte that says which (`TYPES`), then its payload; some
carry descriptors. The master decodes what a worker wrote, so `decode` believes nothing.
"""

from __future__ import annotations

import array
import dataclasses
import errno
import os
import signal
import socket
from dataclasses import dataclass, field
from enum import IntEnum
from typing import ClassVar, Self

from pyfanout.options import MAX_THREADS

PACKET_BYTES = 32 * 1024
"""The largest packet; both ends receive with this size. A longer text loses its beginning: a traceback ends with the
reason."""

WAKE = signal.SIGURG
"""Sent after a message to a worker that boots and so does not read its socket: at this signal it looks there. Ignored
by default, so one that comes too early or too late has no effect."""

SERVING_BYTES = 200

MOST_CONNECTIONS = 2**31 - 1
"""The highest limit of a worker."""

_SEPARATOR = b"\0"


class DecodeError(ValueError):
    """A packet is not a message."""


class Stage(IntEnum):
    """How far a worker came that could not start."""

    LOAD = 1
    """The application could not be imported: exit code 4."""
    START = 2
    """Its start hook, or the serving loop, failed: exit code 3."""


@dataclass(frozen=True, slots=True)
class Message:
    """One without a payload, unless a subclass has one."""

    CARRIES: ClassVar[int] = 0
    """Descriptors that go with it."""
    fds: tuple[int, ...] = field(default=(), kw_only=True, repr=False)
    """As many. Of a message that is sent they stay the sender's; of one that was received they are the receiver's."""

    def pack(self) -> bytes:
        """The payload."""
        return b""

    @classmethod
    def unpack(cls, payload: bytes) -> Self:
        """The message of a payload. Raises ValueError if it is none."""
        if payload:
            raise ValueError("it has no payload")
        return cls()


def _number_of(payload: bytes, size: int = 4) -> int:
    if len(payload) != size:
        raise ValueError("wrong length")
    return int.from_bytes(payload, "big")


def _packed(number: int) -> bytes:
    return number.to_bytes(4, "big")


@dataclass(frozen=True, slots=True)
class Ready(Message):
    """Worker to master: my loop takes work now."""

    pool: bool
    """From the pool channel; else from the slot's own."""
    threads: int
    """How many threads take; 0: an event loop does."""
    most: int = 0
    """Connections that an event loop may hold, those that wait for it included; 0: any number."""
    serving: str = ""
    """What kind of application it is, and by which server it is served, for the log. Printable ASCII, at most
    SERVING_BYTES."""

    def pack(self) -> bytes:
        text = "".join(each if " " <= each <= "~" else "?" for each in self.serving[:SERVING_BYTES])
        return bytes([self.pool]) + self.threads.to_bytes(2, "big") + _packed(self.most) + text.encode()

    @classmethod
    def unpack(cls, payload: bytes) -> Self:
        if not 7 <= len(payload) <= 7 + SERVING_BYTES or payload[0] > 1:
            raise ValueError("wrong length, or neither with the pool nor without")
        pool, threads = bool(payload[0]), _number_of(payload[1:3], 2)
        most, serving = _number_of(payload[3:7]), payload[7:].decode("ascii")
        if not (pool <= threads <= MAX_THREADS and most <= MOST_CONNECTIONS and serving.isprintable()):
            raise ValueError("out of range")
        return cls(pool, threads, most, serving)


@dataclass(frozen=True, slots=True)
class Failed(Message):
    """Worker to master: I cannot start, and exit."""

    stage: Stage
    reason: str
    """One line."""
    details: str
    """The traceback, or nothing."""

    def pack(self) -> bytes:
        head = self.reason.encode(errors="replace").replace(_SEPARATOR, b" ")[:1024] + _SEPARATOR
        tail = self.details.encode(errors="replace")[-(PACKET_BYTES - len(head) - 2) :]
        return bytes([self.stage]) + head + tail

    @classmethod
    def unpack(cls, payload: bytes) -> Self:
        reason, _, details = payload[1:].partition(_SEPARATOR)
        return cls(Stage(_number_of(payload[:1], 1)), reason.decode(errors="replace"), details.decode(errors="replace"))


@dataclass(frozen=True, slots=True)
class WantsSuccessor(Message):
    """Worker to master: I have had my `max_requests` and serve on until another is there in my place. To a dispatcher:
    I shall leave, and serve on until I am released."""


@dataclass(frozen=True, slots=True)
class Retiring(Message):
    """Worker to master: I take no more connections (a SIGTERM), finish mine and exit with 0."""


@dataclass(frozen=True, slots=True)
class HasRoom(Message):
    """Worker to master: the scoreboard says that you wait until a connection of mine is done, and one is."""


@dataclass(frozen=True, slots=True)
class Short(Message):
    """Worker to master: I cannot take connections (no descriptor, no memory, too many children): pass them to others,
    also those that wait in my channel. Or: I can again."""

    short: bool

    def pack(self) -> bytes:
        return bytes([self.short])

    @classmethod
    def unpack(cls, payload: bytes) -> Self:
        return cls([b"\0", b"\1"].index(payload) == 1)


@dataclass(frozen=True, slots=True)
class Cut(Message):
    """Worker to master: I stop now, and so many of my connections get no whole answer."""

    connections: int
    """From 0 to 2^32 - 1."""

    def pack(self) -> bytes:
        return _packed(self.connections)

    @classmethod
    def unpack(cls, payload: bytes) -> Self:
        return cls(_number_of(payload))


@dataclass(frozen=True, slots=True)
class ServerStopping(Message):
    """Master to worker: the server stops. Serve what still comes, until your channel ends; have idle connections end,
    for they may take the room of those that wait."""


@dataclass(frozen=True, slots=True)
class Drain(Message):
    """Master to worker: you get no more connections. Finish those that you have begun, and exit. A dispatcher says it
    to a worker that asks to leave, and not when it stops: then the worker takes all connections until the channel ends,
    because there are no other workers."""


@dataclass(frozen=True, slots=True)
class Ping(Message):
    """Master to worker: are you there?"""

    number: int
    """From 0 to 2^32 - 1."""

    def pack(self) -> bytes:
        return _packed(self.number)

    @classmethod
    def unpack(cls, payload: bytes) -> Self:
        return cls(_number_of(payload))


@dataclass(frozen=True, slots=True)
class Pong(Message):
    """Worker to master: I am. From the event loop; of a blocking worker, from its control thread."""

    number: int
    """The ping's."""
    still_ms: int
    """For how long all serving threads have been in the same requests, while no byte came from a client or went to one;
    0: they have not. Milliseconds, less than 2^32."""

    def pack(self) -> bytes:
        return _packed(self.number) + _packed(self.still_ms)

    @classmethod
    def unpack(cls, payload: bytes) -> Self:
        return cls(_number_of(payload[:4]), _number_of(payload[4:]))


@dataclass(frozen=True, slots=True)
class Join(Message):
    """Worker to dispatcher, on the join socket: this is your end of my control socket."""

    CARRIES: ClassVar[int] = 1


@dataclass(frozen=True, slots=True)
class Welcome(Message):
    """Dispatcher to worker, the first on a control socket: you have joined. It carries a `core.EndFds`."""

    CARRIES: ClassVar[int] = 3
    seat: int
    """The worker's number in the core."""
    generation: int
    """Counts the workers of this seat, from 1; less than 2^64."""

    def pack(self) -> bytes:
        return _packed(self.seat) + self.generation.to_bytes(8, "big")

    @classmethod
    def unpack(cls, payload: bytes) -> Self:
        return cls(_number_of(payload[:4]), _number_of(payload[4:], 8))


TYPES: dict[bytes, type[Message]] = {
    b"R": Ready,
    b"F": Failed,
    b"S": WantsSuccessor,
    b"T": Retiring,
    b"O": HasRoom,
    b"H": Short,
    b"X": Cut,
    b"C": ServerStopping,
    b"D": Drain,
    b"I": Ping,
    b"A": Pong,
    b"J": Join,
    b"W": Welcome,
}
"""What the first byte of a packet says."""

_CODES = {each: code for code, each in TYPES.items()}


def encode(message: Message) -> bytes:
    """One packet, at most PACKET_BYTES long."""
    return _CODES[type(message)] + message.pack()


def decode(packet: bytes, fds: tuple[int, ...] = ()) -> Message:
    """The message in a packet, with the descriptors that came with it. Raises DecodeError for anything that `encode`
    does not make; the descriptors stay the caller's then."""
    try:
        message = TYPES[packet[:1]].unpack(packet[1:])
    except (KeyError, ValueError):
        raise DecodeError(f"not a message: {packet[:16]!r}") from None
    if len(fds) != message.CARRIES:
        raise DecodeError(f"{len(fds)} descriptors with {type(message).__name__}, which carries {message.CARRIES}")
    return dataclasses.replace(message, fds=fds) if fds else message


def send(sock: socket.socket, message: Message, *, wait: bool = False) -> None:
    """Without waiting; `wait`: for as long as the socket's timeout says. Raises OSError: the other side is gone, or
    does not read."""
    flags = socket.MSG_NOSIGNAL | (0 if wait else socket.MSG_DONTWAIT)
    if message.fds:
        socket.send_fds(sock, [encode(message)], message.fds, flags)
    else:
        sock.send(encode(message), flags)


def receive(sock: socket.socket, *, wait: bool = False, most_fds: int = 0) -> Message | None:
    """The next message, which may carry at most so many descriptors; None if the other side has closed its end. Without
    waiting, or for as long as the socket's timeout says. Raises BlockingIOError if there is none, TimeoutError,
    DecodeError, and OSError; EMFILE if a descriptor that came found no room."""
    flags = 0 if wait else socket.MSG_DONTWAIT
    fds: tuple[int, ...] = ()
    try:
        if not most_fds:  # the kernel closes any that come
            packet = sock.recv(PACKET_BYTES, flags)
        else:
            packet, fds = _receive_fds(sock, most_fds, flags)
    except ConnectionResetError:  # it had not read all
        return None
    message = None
    try:
        message = decode(packet, fds) if packet else None
    finally:
        for fd in () if message else fds:  # also of an empty packet, which is taken for the end
            os.close(fd)
    return message


def _receive_fds(sock: socket.socket, most: int, flags: int) -> tuple[bytes, tuple[int, ...]]:
    """A packet and its descriptors, which no program that is executed inherits: as `socket.recv_fds`, which ignores its
    flags (Python 3.11)."""
    found = array.array("i")
    space = socket.CMSG_LEN(most * found.itemsize)
    packet, ancillary, came, _ = sock.recvmsg(PACKET_BYTES, space, flags | socket.MSG_CMSG_CLOEXEC)
    for level, kind, payload in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            found.frombytes(payload[: len(payload) // found.itemsize * found.itemsize])
    if came & socket.MSG_CTRUNC:
        for fd in found:
            os.close(fd)
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
    return packet, tuple(found)


def is_drain_next(sock: socket.socket) -> bool:
    """Whether the next message is `Drain`; it stays where it is."""
    try:
        return sock.recv(PACKET_BYTES, socket.MSG_DONTWAIT | socket.MSG_PEEK) == encode(Drain())
    except OSError:
        return False
