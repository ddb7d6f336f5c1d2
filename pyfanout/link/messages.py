"""What master and worker say to each other on a worker's control socket: the messages, encode, decode, send, receive.

The socket is a SEQPACKET pair: one message is one packet, a byte that says which (`TYPES`), then its payload. The
master decodes what a worker wrote, so `decode` believes nothing.
"""

from __future__ import annotations

import signal
import socket
from dataclasses import dataclass
from enum import IntEnum
from typing import Self

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


class Message:
    """One without a payload, unless a subclass has one."""

    __slots__ = ()

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
}
"""What the first byte of a packet says."""

_CODES = {each: code for code, each in TYPES.items()}


def encode(message: Message) -> bytes:
    """One packet, at most PACKET_BYTES long."""
    return _CODES[type(message)] + message.pack()


def decode(packet: bytes) -> Message:
    """The message in a packet. Raises DecodeError for anything that `encode` does not make."""
    try:
        return TYPES[packet[:1]].unpack(packet[1:])
    except (KeyError, ValueError):
        raise DecodeError(f"not a message: {packet[:16]!r}") from None


def send(sock: socket.socket, message: Message) -> None:
    """Without waiting. Raises OSError: the other side is gone, or does not read."""
    sock.send(encode(message), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)


def receive(sock: socket.socket) -> Message | None:
    """The next message; None if the other side has closed its end. Without waiting. Raises BlockingIOError if there is
    none, DecodeError, and OSError."""
    try:
        packet = sock.recv(PACKET_BYTES, socket.MSG_DONTWAIT)
    except ConnectionResetError:  # it had not read all
        return None
    return decode(packet) if packet else None


def is_drain_next(sock: socket.socket) -> bool:
    """Whether the next message is `Drain`; it stays where it is."""
    try:
        return sock.recv(PACKET_BYTES, socket.MSG_DONTWAIT | socket.MSG_PEEK) == encode(Drain())
    except OSError:
        return False
