"""The listener that trio's servers accept from. It imports trio, so `trio.py` imports it in the worker."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import trio

from pyfanout.worker import connection

if TYPE_CHECKING:
    from pyfanout.worker.connection import Address
    from pyfanout.worker.listener import Listener
    from pyfanout.worker.receipt import Receipt


class PassedStream(trio.abc.HalfCloseableStream):
    """A SocketStream that has a receipt and knows the true client; trio's own cannot be subclassed, and takes no
    socket that could."""

    def __init__(self, plain: socket.socket, peer: Address, receipt: Receipt) -> None:
        self._stream = trio.SocketStream(trio.socket.from_stdlib_socket(plain))
        self.socket = self._stream.socket
        self.peer = peer
        self._receipt = receipt

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def send_eof(self) -> None:
        await self._stream.send_eof()

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._stream.send_all(data)

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        return await self._stream.receive_some(max_bytes)

    async def aclose(self) -> None:
        if self._receipt.close():
            trio.lowlevel.notify_closing(self.socket)
            connection.part(self.socket.detach())
        await self._stream.aclose()


class PassedListener(trio.abc.Listener[PassedStream]):
    """trio's own SocketListener takes nothing but trio's own sockets."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener

    async def accept(self) -> PassedStream:
        while True:
            try:
                passed, peer = self._listener.accept()
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self._listener)
            else:
                receipt = passed.hand_over()
                conn = socket.socket(passed.family, passed.type, passed.proto, fileno=passed.detach())
                return PassedStream(conn, peer, receipt)

    async def aclose(self) -> None:
        self._listener.quiet()
        await trio.lowlevel.checkpoint()
