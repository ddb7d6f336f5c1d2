"""proxy: what a PROXY header says, where it ends, and that nothing else is taken for one."""

from __future__ import annotations

import ipaddress
import os
import socket
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyfanout.worker.connection import Connection
from pyfanout.worker.proxy import V1_BYTES, V2_BYTES, Header, ProxyError, ProxyHeaderReader, parse

SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
V4, V6 = st.ip_addresses(v=4), st.ip_addresses(v=6)
PORTS = st.integers(0, 65535)
TAILS = st.binary(max_size=300)


def v2(command: int, family: int, body: bytes) -> bytes:
    return SIGNATURE + struct.pack("!BBH", 0x20 | command, family, len(body)) + body


def block(source: ipaddress.IPv4Address | ipaddress.IPv6Address, port: int, extensions: bytes = b"") -> bytes:
    family = 0x11 if source.version == 4 else 0x21
    return v2(1, family, source.packed * 2 + struct.pack("!HH", port, 80) + extensions)


def line(source: ipaddress.IPv4Address | ipaddress.IPv6Address, port: int) -> bytes:
    return f"PROXY TCP{source.version} {source} {source} {port} 80\r\n".encode()


def address(source: ipaddress.IPv4Address | ipaddress.IPv6Address, port: int) -> tuple[object, ...]:
    family = socket.AF_INET if source.version == 4 else socket.AF_INET6
    host = socket.inet_ntop(family, source.packed)
    return (host, port) if source.version == 4 else (host, port, 0, 0)


@given(V4 | V6, PORTS, TAILS)
def test_version_1(source: ipaddress.IPv4Address, port: int, tail: bytes) -> None:
    header = line(source, port)
    assert parse(header + tail) == Header(address(source, port), len(header))


@given(V4 | V6, PORTS, TAILS, TAILS)
def test_version_2(source: ipaddress.IPv4Address, port: int, extensions: bytes, tail: bytes) -> None:
    header = block(source, port, extensions)
    assert parse(header + tail) == Header(address(source, port), len(header))


@given(V4 | V6, PORTS, TAILS)
def test_a_part_of_one_wants_more(source: ipaddress.IPv4Address, port: int, extensions: bytes) -> None:
    for header in (line(source, port), block(source, port, extensions)):
        for length in range(1, len(header)):
            assert parse(header[:length]) is None


@pytest.mark.parametrize(
    "header",
    [
        b"PROXY UNKNOWN\r\n",
        b"PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n",
        v2(0, 0x11, bytes(12)),
        v2(0, 0, b""),
        v2(1, 0, b"xyz"),
        v2(1, 0x31, b"/run/app.sock".ljust(108, b"\0") + bytes(108)),
        v2(1, 0x31, b"\0name".ljust(108, b"\0") + bytes(108)),
    ],
)
def test_a_proxy_that_speaks_for_itself_or_does_not_know(header: bytes) -> None:
    assert parse(header + b"GET /") == Header(None, len(header))


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n",
        b"PROXYTCP4 1.2.3.4 1.2.3.4 1 2\r\n",
        b"PROXY TCP4 1.2.3.4 1.2.3.4 1\r\n",
        b"PROXY TCP4 1.2.3.4 1.2.3.4 1 65536\r\n",
        b"PROXY TCP4 1.2.3.4 1.2.3.4 01 2\r\n",
        b"PROXY TCP4 1.2.3.4 1.2.3.4 -1 2\r\n",
        b"PROXY TCP4 1.2.3.256 1.2.3.4 1 2\r\n",
        b"PROXY TCP4 ::1 ::1 1 2\r\n",
        b"PROXY TCP6 1.2.3.4 1.2.3.4 1 2\r\n",
        b"PROXY TCP4  1.2.3.4 1.2.3.4 1 2\r\n",
        b"PROXY UDP4 1.2.3.4 1.2.3.4 1 2\r\n",
        b"PROXY \xff\r\n",
        b"PROXY TCP4 " + b"1" * V1_BYTES,
        SIGNATURE + b"\x11\x11\x00\x0c" + bytes(12),
        SIGNATURE + b"\x22\x11\x00\x0c" + bytes(12),
        v2(1, 0x11, bytes(11)),
        v2(1, 0x21, bytes(35)),
        v2(1, 0x31, bytes(215)),
        v2(1, 0x41, bytes(215)),
        SIGNATURE + struct.pack("!BBH", 0x21, 0x11, V2_BYTES),
    ],
)
def test_bad_ones(data: bytes) -> None:
    with pytest.raises(ProxyError) as caught:
        parse(data)
    assert "\n" not in str(caught.value)


@given(st.binary(max_size=400) | TAILS.map(lambda tail: SIGNATURE + tail) | TAILS.map(lambda tail: b"PROXY " + tail))
def test_any_bytes_give_a_header_or_an_error(data: bytes) -> None:
    """Or the wish for more, which has an end."""
    try:
        found = parse(data)
    except ProxyError:
        return
    assert found is None or 0 < found.length <= len(data)
    assert found is not None or len(data) < V2_BYTES


@given(V4, PORTS, st.data())
def test_a_header_with_wrong_bytes(source: ipaddress.IPv4Address, port: int, data: st.DataObject) -> None:
    header = bytearray(data.draw(st.sampled_from([line(source, port), block(source, port, b"abc")])))
    for _ in range(data.draw(st.integers(1, 4))):
        header[data.draw(st.integers(0, len(header) - 1))] = data.draw(st.integers(0, 255))
    test_any_bytes_give_a_header_or_an_error.hypothesis.inner_test(bytes(header))


def test_who_is_trusted() -> None:
    reader = ProxyHeaderReader([ipaddress.ip_network("10.0.0.0/8"), ipaddress.ip_network("fe80::/10")])
    with socket.socket() as sock:
        for peer in (("10.1.2.3", 1), ("fe80::1%eth0", 1, 0, 2), ("::ffff:10.1.2.3", 1, 0, 0)):
            reader.check(sock, peer)
        for peer in (("11.1.2.3", 1), ("::1", 1, 0, 0), ("::ffff:11.1.2.3", 1, 0, 0)):
            with pytest.raises(ProxyError, match="not one of the trusted"):
                reader.check(sock, peer)


@pytest.mark.parametrize("name", ["file", "abstract"])
def test_who_is_trusted_on_a_unix_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    where = str(tmp_path / "sock") if name == "file" else f"\0{tmp_path}"
    with socket.socket(socket.AF_UNIX) as door, socket.socket(socket.AF_UNIX) as client:
        door.bind(where)
        door.listen()
        client.connect(where)
        sock, peer = door.accept()
        with sock:
            ProxyHeaderReader([]).check(sock, peer)
            us = os.geteuid()
            monkeypatch.setattr(os, "geteuid", lambda: us + 1)
            if name == "file" or us == 0:
                ProxyHeaderReader([]).check(sock, peer)
            else:
                with pytest.raises(ProxyError, match="not one of the trusted"):
                    ProxyHeaderReader([]).check(sock, peer)


def test_nothing_beyond_the_header_is_taken() -> None:
    plain, theirs = socket.socketpair()
    with Connection(fileno=plain.detach()) as ours, theirs:
        theirs.sendall(line(ipaddress.ip_address("192.0.2.1"), 7)[:9])
        assert ProxyHeaderReader.take(ours) is None
        theirs.sendall(line(ipaddress.ip_address("192.0.2.1"), 7)[9:] + b"GET /")
        assert ProxyHeaderReader.take(ours) == Header(("192.0.2.1", 7), 37)
        assert ours.recv(99) == b"GET /"
        assert ours.preamble_bytes == 37
