"""The PROXY protocol, versions 1 and 2: the line or block in which a proxy says whose connection it is.

https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt. `parse` is pure. Our own, since the one library there is
(proxy-protocol 0.11.3, looked at on 2026-11-22) does not say where a header ends, takes what follows a version 2 header
for its extensions, and answers some bad headers with struct.error or a port above 65535; it takes 5 us, this 2.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import struct
from collections.abc import Sequence
from typing import NamedTuple

from pyfanout.options import Network
from pyfanout.worker.connection import Address, Connection

V1_BYTES = 107
"""The longest header of version 1, with its CRLF."""

V2_BYTES = 4096
"""The longest header of version 2 that we take. It may have 65,551, but proxies that send certificates need 2,000."""

_V2 = b"\r\n\r\n\x00\r\nQUIT\n"
_IPV4, _IPV6 = struct.Struct("!4s4sHH"), struct.Struct("!16s16sHH")
_CREDENTIALS = struct.Struct("=iII")  # struct ucred: pid, uid, gid


class ProxyError(OSError):
    """No header, a bad one, or none from a proxy that may send one. One line."""


class Header(NamedTuple):
    """What is before the client's first byte."""

    address: Address | None
    """The true client's. None: the connection's own stays. The proxy speaks for itself (LOCAL, a check of health), does
    not know (UNKNOWN), or its client came over a UNIX socket: that has neither host nor port, which servers want."""
    length: int
    """Bytes."""


def parse(data: bytes) -> Header | None:
    """The header that `data` begins with; None: it may be one, but there is more to come. Raises ProxyError if it is
    none, or a bad one."""
    if data[:12] == _V2[: len(data)]:
        return _parse_v2(data)
    if data[:6] == b"PROXY "[: len(data)]:
        return _parse_v1(data)
    raise ProxyError(f"no PROXY header: it begins with {data[:16]!r}")


def _parse_v1(data: bytes) -> Header | None:
    end = data.find(b"\r\n", 0, V1_BYTES)
    if end < 0:
        if len(data) >= V1_BYTES:
            raise ProxyError(f"a bad PROXY header: no end of line within {V1_BYTES} bytes")
        return None
    length = end + 2
    words = data[:end].split(b" ")
    match words:
        case [_, b"UNKNOWN", *_]:
            return Header(None, length)
        case [_, b"TCP4" | b"TCP6" as family, source, target, port, target_port]:
            parts = _host(source, family), _host(target, family), _port(port), _port(target_port)
            if None not in parts:
                host, _, number, _ = parts
                return Header((host, number) if family == b"TCP4" else (host, number, 0, 0), length)  # type: ignore[arg-type]
    raise ProxyError(f"a bad PROXY header: {data[:end]!r}")


def _host(text: bytes, family: bytes) -> str | None:
    """In the form that `accept` gives; None if it is not one of its family."""
    number, size = (socket.AF_INET, 4) if family == b"TCP4" else (socket.AF_INET6, 16)
    try:
        packed = socket.inet_pton(number, text.decode("ascii"))
    except (OSError, ValueError):
        return None
    return socket.inet_ntop(number, packed) if len(packed) == size else None


def _port(text: bytes) -> int | None:
    """As the protocol wants it: digits without a leading zero."""
    if not text.isdigit() or len(text) > 5 or (text[:1] == b"0" and text != b"0"):
        return None
    number = int(text)
    return number if number <= 65535 else None


def _parse_v2(data: bytes) -> Header | None:
    if len(data) < 16:
        return None
    version, family, size = struct.unpack_from("!BBH", data, 12)
    length = 16 + size
    if version not in (0x20, 0x21):
        raise ProxyError(f"a bad PROXY header: version and command are 0x{version:02x}")
    if length > V2_BYTES:
        raise ProxyError(f"a bad PROXY header: {length} bytes, of which {V2_BYTES} are taken")
    if len(data) < length:
        return None
    if version == 0x20:  # LOCAL
        return Header(None, length)
    match family >> 4:
        case 1 if size >= _IPV4.size:
            source, _, port, _ = _IPV4.unpack_from(data, 16)
            return Header((socket.inet_ntop(socket.AF_INET, source), port), length)
        case 2 if size >= _IPV6.size:
            source, _, port, _ = _IPV6.unpack_from(data, 16)
            return Header((socket.inet_ntop(socket.AF_INET6, source), port, 0, 0), length)
        case 3 if size >= 216:
            return Header(None, length)
        case 0:
            return Header(None, length)
    raise ProxyError(f"a bad PROXY header: family 0x{family:02x} with {size} bytes")


class ProxyHeaderReader:
    """Lets connections through whose header says who they are. For one worker."""

    def __init__(self, trusted: Sequence[Network]) -> None:
        self._trusted = trusted

    def check(self, sock: socket.socket, peer: Address) -> None:
        """Raises ProxyError if `peer`, at the other end of `sock`, may not send a PROXY header. For an IP address
        `trusted` decides, for a socket file its permissions. An abstract socket has none, and every local user reaches
        it: there root and the worker's own user may."""
        if sock.family != socket.AF_UNIX:
            assert isinstance(peer, tuple)
            host = ipaddress.ip_address(peer[0].partition("%")[0])
            mapped = getattr(host, "ipv4_mapped", None)
            if not any(each in network for each in (host, mapped) if each for network in self._trusted):
                raise ProxyError(f"{peer[0]} is not one of the trusted proxies")
        elif isinstance(sock.getsockname(), bytes):
            _, uid, _ = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
            if uid not in (0, os.geteuid()):
                raise ProxyError(f"user {uid} is not one of the trusted proxies: neither root nor {os.geteuid()}")

    @staticmethod
    def take(sock: Connection) -> Header | None:
        """The header, taken from a connection that is readable, and nothing beyond it; None: not all of it is there.
        Raises ProxyError, and OSError if the connection is broken."""
        try:
            data = sock.recv(V2_BYTES, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return None
        if not data:
            raise ProxyError("it ended before its PROXY header")
        header = parse(data)
        if header is not None:
            sock.recv(header.length)
            sock.preamble_bytes = header.length
        return header
