"""Coverage-guided fuzzing of all that reads what a worker or a client wrote: `decoders.py NAME [options of libFuzzer]`.

What is found is written to crash-...; a run of that file shows it again. tests/unit/test_fuzz.py runs all of them. The
scoreboard is read in C: it is guided if the core was built with coverage.c, as it is there.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import socket
import sys
import time
from collections.abc import Callable
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["pyfanout"]):
    from pyfanout import _core
    from pyfanout.config import Policy
    from pyfanout.core import Core, EventKind
    from pyfanout.dispatcher import joining
    from pyfanout.link import messages
    from pyfanout.master import timing
    from pyfanout.options import MAX_THREADS
    from pyfanout.worker import proxy

LIBFUZZER = Path(atheris.__file__).with_name("core_with_libfuzzer" + EXTENSION_SUFFIXES[0])
CLIENTS = 64
"""More than both workers get: some wait, and the master looks for room."""


def control_socket(data: bytes) -> None:
    """A packet on the control socket: one of the messages, which is encoded as it came, or DecodeError."""
    try:
        message = messages.decode(data)
    except messages.DecodeError:
        return
    packet = messages.encode(message)
    assert len(packet) <= messages.PACKET_BYTES
    again = messages.decode(packet)
    assert type(again) is type(message)
    if not isinstance(message, messages.Failed):  # whose texts may be cut, and may not be UTF-8
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


def guide() -> None:
    """By what the core does, too, if it was built with coverage.c. libFuzzer is loaded when the first input comes."""
    core, fuzzer = ctypes.CDLL(_core.__file__), ctypes.CDLL(str(LIBFUZZER))
    if begin := getattr(core, "coverage_begin", None):
        begin(fuzzer["__sanitizer_cov_8bit_counters_init"], fuzzer["__sanitizer_cov_pcs_init"])


def score_page(data: bytes) -> None:
    """The pages of two workers: whatever is there, what the master makes of it is possible, and connections go on."""
    if not _guided:
        _guided.append(guide())
    for page in _pages:
        page[:] = data[: mmap.PAGESIZE].ljust(mmap.PAGESIZE, data[-1:] or b"\0")
    for event in _master.run(0):
        assert event.kind is EventKind.WATCHED, event
    for seat in range(len(_pages)):
        view = _master.look(seat)
        assert 0 <= view.done <= view.taken
        assert 0 <= view.busy_threads <= view.threads <= MAX_THREADS
        assert view.busy_since_ns >= 0
        now_ns = time.monotonic_ns()
        for pinged_ns in (None, now_ns, now_ns - 10**11):
            timing.hang(
                now_ns=now_ns,
                pinged_ns=pinged_ns,
                ping_timeout_ns=10**10,
                threads=view.threads,
                busy_threads=view.busy_threads,
                busy_since_ns=view.busy_since_ns,
                still_ns=view.beat_ns,
                timeout_ns=10**10,
            )


def join_request(data: bytes) -> None:
    """What a worker sends when it joins, and the descriptors that it sends: a socket, a word, or OSError; and the
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


_guided: list[None] = []

TARGETS: dict[str, Callable[[bytes], None]] = {
    "control": control_socket,
    "proxy": proxy_header,
    "score": score_page,
    "join": join_request,
}

if __name__ == "__main__":
    name = sys.argv.pop(1)
    if name == "score":
        _master = Core(2, Policy.LEAST_CONNECTIONS)
        _master.share()
        for seat in range(2):
            _master.begin(seat, 1, seat)
            _master.enter(seat, pool=seat == 1, threads=seat, size=8, most=4)
        _pages = [
            mmap.mmap(_master.ends(0).scoreboard_fd, mmap.PAGESIZE, offset=seat * mmap.PAGESIZE) for seat in range(2)
        ]
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as listener:
            listener.bind("")
            listener.listen(CLIENTS)
            _clients = [socket.socket(socket.AF_UNIX) for _ in range(CLIENTS)]
            for client in _clients:
                client.connect(listener.getsockname())
            _master.listen(listener.detach())
    if name == "join":
        _outside, _inside = joining.make_join_socket()
        _strange = [each.detach() for each in (socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET), socket.socket())]
        _strange.append(os.open(os.devnull, os.O_RDONLY))
    atheris.Setup(sys.argv, TARGETS[name])
    atheris.Fuzz()
    os._exit(0)
