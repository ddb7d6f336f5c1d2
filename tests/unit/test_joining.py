"""joining: what a worker does with an answer that is no welcome. The rest is in system/test_dispatcher."""

from __future__ import annotations

import os
import select
import socket
import threading

import pytest

from pyfanout.dispatcher import joining
from pyfanout.errors import WorkerError
from pyfanout.link.messages import Drain, Join, encode


def answer_with(join_socket: socket.socket, packet: bytes, fds: tuple[int, ...]) -> None:
    control = joining.answer(join_socket)
    assert isinstance(control, socket.socket)
    with control:
        if fds:
            socket.send_fds(control, [packet], fds)
        elif packet:
            control.send(packet)


def asks(join_socket: socket.socket, raised: list[Exception]) -> None:
    try:
        joining.join(join_socket)
    except Exception as error:
        raised.append(error)


STRANGE: dict[str, tuple[bytes, int]] = {
    "the end": (b"", 0),
    "another message": (encode(Drain()), 0),
    "another message with a descriptor": (encode(Join()), 1),
    "no message": (b"?", 3),
    "a welcome with too few descriptors": (b"W" + bytes(12), 2),
}


@pytest.mark.parametrize(("packet", "count"), STRANGE.values(), ids=STRANGE.keys())
def test_an_answer_that_is_no_welcome_leaves_no_descriptor(packet: bytes, count: int) -> None:
    outside, inside = joining.make_join_socket()
    with outside, inside, open(os.devnull) as null:
        before = len(os.listdir("/proc/self/fd"))
        worker = threading.Thread(target=asks, args=(outside, raised := []))
        worker.start()
        select.select([inside], [], [], 20)  # it has asked
        answer_with(inside, packet, (null.fileno(),) * count)
        worker.join()
        assert [type(error) for error in raised] == [WorkerError]
        assert len(os.listdir("/proc/self/fd")) == before


def test_a_request_is_a_join_only() -> None:
    outside, inside = joining.make_join_socket()
    with outside, inside:
        outside.send(encode(Drain()))
        assert joining.answer(inside) is joining.NoRequest.NONE
        outside.shutdown(socket.SHUT_WR)
        assert joining.answer(inside) is joining.NoRequest.STOP
