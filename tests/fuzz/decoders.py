"""Coverage-guided fuzzing of all that reads what a worker or a client wrote: `decoders.py NAME [options of libFuzzer]`.

What is found is written to crash-...; a run of that file shows it again. tests/unit/test_fuzz.py runs all of them.
"""

from __future__ import annotations

import mmap
import os
import sys
import time
from collections.abc import Callable

import atheris

with atheris.instrument_imports(include=["pyfanout"]):
    from pyfanout import control
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
    assert view.in_hands >= 0
    policy.hang(
        now_ns=time.monotonic_ns(),
        pinged_ns=None,
        ping_timeout_ns=10**10,
        threads=view.threads,
        busy_threads=view.busy_threads,
        busy_since_ns=view.busy_since_ns,
        asked_ns=view.beat_ns,
        timeout_ns=10**10,
    )


TARGETS: dict[str, Callable[[bytes], None]] = {
    "control": control_socket,
    "proxy": proxy_header,
    "board": board_page,
}

if __name__ == "__main__":
    name = sys.argv.pop(1)
    if name == "board":
        _core = Core(1, Policy.ROUND_ROBIN)
        _core.share()
        _core.begin(0, 1, 0)
        _page = mmap.mmap(_core.ends(0)[2], PAGE_BYTES)
    atheris.Setup(sys.argv, TARGETS[name])
    atheris.Fuzz()
    os._exit(0)
