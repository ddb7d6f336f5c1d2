"""What master and worker say to each other on a worker's control socket: the messages, encode, decode, tell, hear.

The socket is a SEQPACKET pair: one message is one packet, a byte that says which, then its payload. The master decodes
what a worker wrote, so `decode` believes nothing.
"""

from __future__ import annotations

import signal
import socket
from dataclasses import dataclass
from enum import IntEnum

from pyfanout.config import MAX_THREADS

PACKET_BYTES = 32 * 1024
"""The largest packet; both ends receive with this size. A longer text loses its beginning: a traceback ends with the
reason."""

WAKE = signal.SIGURG
"""Sent after a message to a worker that boots and so does not read its socket: at this signal it looks there. Ignored
by default, so one that comes too early or too late has no effect."""


SERVING_BYTES = 200

MOST_CONNECTIONS = 2**31 - 1
"""The highest limit of a worker."""


class Stage(IntEnum):
    """How far a worker came that could not start."""

    LOAD = 1
    """The application could not be imported: exit code 4."""
    START = 2
    """Its start hook, or the serving loop, failed: exit code 3."""


@dataclass(frozen=True, slots=True)
class Ready:
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


@dataclass(frozen=True, slots=True)
class Failed:
    """Worker to master: I cannot start, and exit."""

    stage: Stage
    reason: str
    """One line."""
    details: str
    """The traceback, or nothing."""


@dataclass(frozen=True, slots=True)
class WantsSuccessor:
    """Worker to master: I have had my `max_requests` and serve on until another is there in my place. To a dispatcher:
    I shall leave, and serve on until I am released."""


@dataclass(frozen=True, slots=True)
class Retiring:
    """Worker to master: I take no more connections (a SIGTERM), finish mine and exit with 0."""


@dataclass(frozen=True, slots=True)
class HasRoom:
    """Worker to master: the scoreboard says that you wait until a connection of mine is done, and one is."""


@dataclass(frozen=True, slots=True)
class Short:
    """Worker to master: I cannot take connections (no descriptor, no memory, too many children): pass them to others,
    also those that wait in my channel. Or: I can again."""

    short: bool


@dataclass(frozen=True, slots=True)
class Cut:
    """Worker to master: I stop now, and so many of my connections get no whole answer."""

    connections: int
    """From 0 to 2^32 - 1."""


@dataclass(frozen=True, slots=True)
class ServerStopping:
    """Master to worker: the server stops. Serve what still comes, until your channel ends; have idle connections end,
    for they may take the room of those that wait."""


@dataclass(frozen=True, slots=True)
class Drain:
    """Master to worker: you get no more connections. Finish those that you have begun, and exit. A dispatcher says it
    to a worker that asks to leave, and not when it stops: then the worker takes all connections until the channel ends,
    because there are no other workers."""


@dataclass(frozen=True, slots=True)
class Ping:
    """Master to worker: are you there?"""

    number: int
    """From 0 to 2^32 - 1."""


@dataclass(frozen=True, slots=True)
class Pong:
    """Worker to master: I am. From the event loop; of a blocking worker, from its control thread."""

    number: int
    """The ping's."""
    still_ms: int
    """For how long all serving threads have been in the same requests, while no byte came from a client or went to one;
    0: they have not. Milliseconds, less than 2^32."""


Message = Ready | Failed | WantsSuccessor | Retiring | HasRoom | Short | Cut | ServerStopping | Drain | Ping | Pong

_SEPARATOR = "\0"
_STAGES = frozenset(Stage)


class DecodeError(ValueError):
    """A packet is not a message."""


def encode(message: Message) -> bytes:
    """One packet, at most PACKET_BYTES long."""
    match message:
        case Ready(pool, threads, most, serving):
            text = "".join(each if " " <= each <= "~" else "?" for each in serving[:SERVING_BYTES])
            return b"R" + bytes([pool]) + threads.to_bytes(2, "big") + most.to_bytes(4, "big") + text.encode()
        case Failed(stage, reason, details):
            head = reason.replace(_SEPARATOR, " ").encode(errors="replace")[:1024] + b"\0"
            tail = details.encode(errors="replace")[-(PACKET_BYTES - len(head) - 2) :]
            return b"F" + bytes([stage]) + head + tail
        case WantsSuccessor():
            return b"S"
        case Retiring():
            return b"T"
        case HasRoom():
            return b"O"
        case Short(short):
            return b"H" + bytes([short])
        case Cut(connections):
            return b"X" + connections.to_bytes(4, "big")
        case ServerStopping():
            return b"C"
        case Drain():
            return b"D"
        case Ping(number):
            return b"I" + number.to_bytes(4, "big")
        case Pong(number, still_ms):
            return b"A" + number.to_bytes(4, "big") + still_ms.to_bytes(4, "big")


def decode(packet: bytes) -> Message:
    """The message in a packet. Raises DecodeError for anything that `encode` does not make."""
    match packet[:1], packet[1:]:
        case b"R", payload if 7 <= len(payload) <= 7 + SERVING_BYTES and payload[0] <= 1:
            pool, threads = bool(payload[0]), int.from_bytes(payload[1:3], "big")
            most, serving = int.from_bytes(payload[3:7], "big"), payload[7:].decode("latin-1")
            plain = serving.isascii() and serving.isprintable()
            if (1 if pool else 0) <= threads <= MAX_THREADS and most <= MOST_CONNECTIONS and plain:
                return Ready(pool, threads, most, serving)
        case b"F", payload if payload and payload[0] in _STAGES:
            reason, _, details = payload[1:].decode(errors="replace").partition(_SEPARATOR)
            return Failed(Stage(payload[0]), reason, details)
        case b"S", b"":
            return WantsSuccessor()
        case b"T", b"":
            return Retiring()
        case b"O", b"":
            return HasRoom()
        case b"H", b"\0" | b"\1" as payload:
            return Short(payload == b"\1")
        case b"X", payload if len(payload) == 4:
            return Cut(int.from_bytes(payload, "big"))
        case b"C", b"":
            return ServerStopping()
        case b"D", b"":
            return Drain()
        case b"I", payload if len(payload) == 4:
            return Ping(int.from_bytes(payload, "big"))
        case b"A", payload if len(payload) == 8:
            return Pong(int.from_bytes(payload[:4], "big"), int.from_bytes(payload[4:], "big"))
    raise DecodeError(f"not a message: {packet[:16]!r}")


def tell(sock: socket.socket, message: Message) -> None:
    """Without waiting. Raises OSError: the other side is gone, or does not read."""
    sock.send(encode(message), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)


def hear(sock: socket.socket) -> Message | None:
    """The next message; None if the other side has closed its end. Without waiting. Raises BlockingIOError if there is
    none, DecodeError, and OSError."""
    try:
        packet = sock.recv(PACKET_BYTES, socket.MSG_DONTWAIT)
    except ConnectionResetError:  # it had not read all
        return None
    return decode(packet) if packet else None


def says_drain(sock: socket.socket) -> bool:
    """Whether the next message is `Drain`; it stays where it is."""
    try:
        return sock.recv(PACKET_BYTES, socket.MSG_DONTWAIT | socket.MSG_PEEK) == encode(Drain())
    except OSError:
        return False
