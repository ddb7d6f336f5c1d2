"""messages: what is encoded is decoded; what is not a message raises DecodeError and nothing else."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import socket
from collections.abc import Iterator

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pyfanout.link.messages import (
    MOST_CONNECTIONS,
    PACKET_BYTES,
    SERVING_BYTES,
    Cut,
    DecodeError,
    Drain,
    Failed,
    HasRoom,
    Join,
    Message,
    Ping,
    Pong,
    Ready,
    Retiring,
    ServerStopping,
    Short,
    Stage,
    WantsSuccessor,
    Welcome,
    decode,
    encode,
    receive,
    send,
)
from pyfanout.options import MAX_THREADS

REASON_BYTES = 1024

plain = st.text(st.characters(exclude_categories=["Cs"]))
"""Without surrogates, which have no encoding."""

limits = st.integers(0, MOST_CONNECTIONS)
servings = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=SERVING_BYTES)
ready = st.builds(Ready, st.just(True), st.integers(1, MAX_THREADS), limits, servings) | st.builds(
    Ready, st.just(False), st.integers(0, MAX_THREADS), limits, servings
)
failed = st.builds(
    Failed,
    st.sampled_from(Stage),
    plain.filter(lambda text: "\0" not in text and len(text.encode()) <= REASON_BYTES),
    plain,
)
numbers = st.integers(0, 2**32 - 1)


def fds(count: int) -> st.SearchStrategy[tuple[int, ...]]:
    return st.lists(st.integers(3, 1000), min_size=count, max_size=count).map(tuple)


messages: st.SearchStrategy[Message] = (
    ready
    | failed
    | st.builds(Ping, numbers)
    | st.builds(Pong, numbers, numbers)
    | st.builds(Short, st.booleans())
    | st.builds(Cut, numbers)
    | st.builds(Join, fds=fds(1))
    | st.builds(Welcome, numbers, st.integers(0, 2**64 - 1), fds=fds(3))
    | st.sampled_from([ServerStopping(), Drain(), Retiring(), HasRoom(), WantsSuccessor()])
)


@given(messages)
def test_what_is_encoded_is_decoded(message: Message) -> None:
    packet = encode(message)
    assert decode(packet, message.fds) == message
    assert 0 < len(packet) <= PACKET_BYTES


@given(messages, messages)
def test_different_messages_are_different_packets(one: Message, other: Message) -> None:
    assert ((encode(one), one.fds) == (encode(other), other.fds)) == (one == other)


@given(messages, st.integers(0, 4))
def test_a_message_with_more_or_fewer_descriptors_is_none(message: Message, count: int) -> None:
    if count == message.CARRIES:
        return
    with pytest.raises(DecodeError, match=type(message).__name__):
        decode(encode(message), tuple(range(count)))


@given(st.binary(max_size=64))
@example(b"")
@example(b"R")
@example(b"R\x01\x00\x00")
@example(b"R\x00\xff\xff")
@example(b"R\x02\x00\x01")
@example(b"R\x01\x00\x01\x00")
@example(b"F")
@example(b"F\x00")
@example(b"F\x01")
@example(b"F\x03reason\x00details")
@example(b"T\x00")
@example(b"TT")
@example(b"\xff" * 64)
def test_any_bytes_are_a_message_or_raise_decode_error(packet: bytes) -> None:
    try:
        message = decode(packet)
    except DecodeError:
        return
    assert isinstance(message, Message)
    decode(encode(message))


@given(st.sampled_from([b"R", b"F", b"F\x01", b"F\x02", b"T", b"O"]), st.binary(max_size=PACKET_BYTES))
def test_any_payload_is_a_message_or_raises_decode_error(kind: bytes, payload: bytes) -> None:
    try:
        message = decode(kind + payload)
    except DecodeError:
        return
    if isinstance(message, Ready):
        assert 0 <= message.threads <= MAX_THREADS
        assert message.threads or not message.pool


@given(st.text())
def test_the_words_of_who_serves_are_one_plain_line(serving: str) -> None:
    found = decode(encode(Ready(False, 0, 0, serving)))
    assert isinstance(found, Ready)
    assert len(found.serving) == min(len(serving), SERVING_BYTES)
    for given_, kept in zip(serving, found.serving, strict=False):
        assert kept in (given_, "?")


@pytest.mark.parametrize("text", [b"\n", b"\x1b[2J", b"\xff", b"x" * (SERVING_BYTES + 1)])
def test_words_that_are_not_a_plain_line(text: bytes) -> None:
    with pytest.raises(DecodeError):
        decode(encode(Ready(False, 0)) + text)


@pytest.mark.parametrize("threads", [MAX_THREADS + 1, 65535])
@pytest.mark.parametrize("pool", [False, True])
def test_more_threads_than_there_are(pool: bool, threads: int) -> None:
    """The core asserts what Python has checked: a worker must not reach that assert."""
    with pytest.raises(DecodeError):
        decode(encode(Ready(pool, threads)))


def test_a_pool_without_threads() -> None:
    with pytest.raises(DecodeError):
        decode(encode(Ready(True, 0)))


def traceback_of(size: int) -> Iterator[str]:
    for character in ("x", "é", "€", "\N{SNAKE}"):
        yield (character * size)[:size]


@pytest.mark.parametrize("size", [PACKET_BYTES // 4, PACKET_BYTES - 20, PACKET_BYTES, PACKET_BYTES + 1, 10**6])
def test_a_long_text_loses_its_beginning(size: int) -> None:
    for text in traceback_of(size):
        details = "first line\n" + text + "\nlast line: the reason"
        packet = encode(Failed(Stage.LOAD, "the reason", details))
        assert len(packet) <= PACKET_BYTES
        message = decode(packet)
        assert isinstance(message, Failed)
        assert message.reason == "the reason"
        assert message.details.endswith("\nlast line: the reason")
        if len(details.encode()) + 20 > PACKET_BYTES:
            assert len(packet) > PACKET_BYTES - 4
            assert not message.details.startswith("first line")
        else:
            assert message.details == details


@pytest.mark.parametrize("size", [REASON_BYTES - 1, REASON_BYTES, REASON_BYTES + 1, 10**6])
def test_a_long_reason_leaves_room_for_details(size: int) -> None:
    for text in traceback_of(size):
        packet = encode(Failed(Stage.START, text, "details"))
        assert len(packet) <= PACKET_BYTES
        message = decode(packet)
        assert isinstance(message, Failed)
        assert message.details == "details"
        assert text.startswith(message.reason.rstrip("\N{REPLACEMENT CHARACTER}"))


@given(st.text(), st.text())
def test_what_cannot_be_encoded_is_replaced(reason: str, details: str) -> None:
    """An exception's text may hold anything: half a surrogate pair, the separator."""
    message = decode(encode(Failed(Stage.START, reason, details)))
    assert isinstance(message, Failed)
    assert "\0" not in message.reason


def test_the_largest_packet_arrives_whole() -> None:
    packet = encode(Failed(Stage.LOAD, "r" * 5000, "d" * 10**6))
    assert len(packet) == PACKET_BYTES
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        theirs.send(packet, socket.MSG_DONTWAIT)
        assert ours.recv(PACKET_BYTES) == packet


# ---- descriptors -----------------------------------------------------------------------------------------------------


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        yield ours, theirs


def held() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_descriptors_arrive_as_the_receivers_own(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    with open(os.devnull) as null:
        send(theirs, Welcome(1, 2, fds=(null.fileno(),) * 3))
    found = receive(ours, most_fds=3)
    assert found is not None
    assert found == Welcome(1, 2, fds=found.fds)
    assert len({os.fstat(fd).st_rdev for fd in found.fds}) == 1
    assert not any(os.get_inheritable(fd) for fd in found.fds)
    for fd in found.fds:
        os.close(fd)


@pytest.mark.parametrize("most", [0, 1, 3])
@pytest.mark.parametrize("sent", [0, 1, 3, 4])
@pytest.mark.parametrize(
    "packet", [b"J", b"W" + bytes(12), encode(Ping(1)), b"?", b""], ids=["join", "welcome", "ping", "?", "empty"]
)
def test_those_of_no_message_are_closed(
    pair: tuple[socket.socket, socket.socket], packet: bytes, sent: int, most: int
) -> None:
    """Whatever a worker sends, the receiver has no descriptor that it does not know of."""
    ours, theirs = pair
    with open(os.devnull) as null:
        socket.send_fds(theirs, [packet], [null.fileno()] * sent)
    before, found = held(), None
    with contextlib.suppress(DecodeError, OSError):
        found = receive(ours, most_fds=most)
    fds = found.fds if found else ()
    assert held() == before + len(fds)
    for fd in fds:
        os.close(fd)


def test_one_that_finds_no_room_is_a_shortage_and_not_an_end(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    with open(os.devnull) as null:
        send(theirs, Join(fds=(null.fileno(),)))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    before = held()
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        with pytest.raises(OSError, match="open files") as raised:
            receive(ours, most_fds=1)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert raised.value.errno == errno.EMFILE
    assert held() == before
