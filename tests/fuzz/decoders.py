"""Coverage-guided fuzzing of all that reads what a worker or a client wrote: `decoders.py NAME [options of libFuzzer]`.

What is found is written to crash-...; a run of that file shows it again. tests/unit/test_fuzz.py runs all of them.
"""

from __future__ import annotations

import mmap
import os
import socket
import sys
import time
from collections.abc import Callable

import atheris

with atheris.instrument_imports(include=["pyfanout"]):
    from pyfanout import control, joining
    from pyfanout.config import MAX_THREADS, Policy
    from pyfanout.core import Core
    from pyfanout.master import policy
    from pyfanout.worker import proxy

PAGE_BYTES = 4096


def control_socket(data: bytes) -> None:
    """A packet on the control socket: one of the messages, which is encoded as it came, or DecodeError."""
    try:
        message = control.decode(data)
    except control.DecodeError:
        return
    packet = control.encode(message)
    assert len(packet) <= control.PACKET_BYTES
    again = control.decode(packet)
    assert type(again) is type(message)
    if not isinstance(message, control.Failed):  # whose texts may be cut, and may not be UTF-8
        assert packet == data


def proxy_header(data: bytes) -> None:
    """What a client sends first: a header that ends where it says, something that may become one, or ProxyError."""
    try:
        header = proxy.parse(data)
    except proxy.ProxyError:
        return
    if header is None:
        assert len(data) < max(proxy.V1_BYTES, proxy.V2_BYTES)
        return
    assert 0 < header.length <= len(data)
    assert proxy.parse(data[: header.length]) == header
    assert proxy.parse(data[: header.length - 1]) is None
    assert proxy.parse(data + b"\r\nmore") == header


def board_page(data: bytes) -> None:
    """A worker's page of the board: whatever is there, what the master makes of it is possible."""
    _page[:] = data[:PAGE_BYTES].ljust(PAGE_BYTES, data[-1:] or b"\0")
    view = _core.look(0)
    assert 0 <= view.done <= view.taken
    assert 0 <= view.busy_threads <= view.threads <= MAX_THREADS
    assert view.busy_since_ns >= 0
    now_ns = time.monotonic_ns()
    for pinged_ns in (None, now_ns, now_ns - 10**11):
        policy.hang(
            now_ns=now_ns,
            pinged_ns=pinged_ns,
            ping_timeout_ns=10**10,
            threads=view.threads,
            busy_threads=view.busy_threads,
            busy_since_ns=view.busy_since_ns,
            asked_ns=view.beat_ns,
            timeout_ns=10**10,
        )


def door(data: bytes) -> None:
    """What a guest says when it joins, and the descriptors that it sends: a socket, a word, or OSError; and the
    dispatcher has none of them afterwards. The first byte says how many, and of which kind."""
    how, packet = data[0] if data else 0, data[1:64]
    sent = [_strange[(how >> 2 + i) % len(_strange)] for i in range(how % 4)]
    socket.send_fds(_outside, [packet], sent)
    before = len(os.listdir("/proc/self/fd"))
    try:
        found = joining.answer(_inside)
        if isinstance(found, socket.socket):
            assert packet[:1] == b"J"
            found.close()
    except OSError:
        pass
    assert len(os.listdir("/proc/self/fd")) == before


TARGETS: dict[str, Callable[[bytes], None]] = {
    "control": control_socket,
    "proxy": proxy_header,
    "board": board_page,
    "door": door,
}

if __name__ == "__main__":
    name = sys.argv.pop(1)
    if name == "board":
        _core = Core(1, Policy.ROUND_ROBIN)
        _core.share()
        _core.begin(0, 1, 0)
        _page = mmap.mmap(_core.ends(0)[2], PAGE_BYTES)
    if name == "door":
        _outside, _inside = joining.make_door()
        _strange = [each.detach() for each in (socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET), socket.socket())]
        _strange.append(os.open(os.devnull, os.O_RDONLY))
    atheris.Setup(sys.argv, TARGETS[name])
    atheris.Fuzz()
    os._exit(0)
