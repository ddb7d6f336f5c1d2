"""asyncio and uvloop loops whose `create_server` serves our Listener.

uvloop's own takes the descriptor, and never accepts. asyncio's own works, but makes a task, a future and a coroutine
for each connection, where here its transport is made at once: on 2026-11-22 uvicorn on asyncio went from 0.91 to 0.95
and 1.04 (two rounds of `python -m bench embed`) of its own conn/s. uvloop's are made without a task, and without a
socket object, which it does not use: on 2026-11-28 uvicorn's processes went from 71 us to 65 for each connection (the
median of 5 rounds; 57 by itself), with ours the master's included.
"""

from __future__ import annotations

import asyncio
import functools
import importlib
import importlib.util
import logging
from collections.abc import Callable, Coroutine
from typing import Any

from pyfanout.config import Config
from pyfanout.errors import ConfigError
from pyfanout.greenlets import THREADS, patch_of
from pyfanout.worker.listener import Listener

log = logging.getLogger("pyfanout.worker")


_FINDS_THE_PROXY = "loop: uvloop asks the kernel who the client is, and so finds the proxy; use asyncio"


def loop_factory(
    name: str | Callable[[], asyncio.AbstractEventLoop], config: Config
) -> Callable[[], asyncio.AbstractEventLoop]:
    """For "asyncio", "uvloop", or "auto": uvloop if it is installed and can be used here; a function is one already.
    Raises ConfigError."""
    if callable(name):
        return name
    if name not in ("auto", "asyncio", "uvloop"):
        raise ConfigError(f"loop: {name!r} is not one of auto, asyncio, uvloop")
    if name == "uvloop" and config.proxy_protocol:
        raise ConfigError(_FINDS_THE_PROXY)
    patch = patch_of(*THREADS, "select")
    if name == "uvloop" and patch:
        raise ConfigError(
            f"loop: {patch.patcher} has patched this process, and no greenlet runs while uvloop waits; use asyncio"
        )
    wanted = name == "uvloop" or (name == "auto" and not config.proxy_protocol and not patch)
    if not wanted or (name == "auto" and importlib.util.find_spec("uvloop") is None):
        return new_asyncio_loop
    return new_uvloop


def new_asyncio_loop() -> asyncio.AbstractEventLoop:
    """asyncio's, with our `create_server`."""
    return _new_loop(asyncio.SelectorEventLoop)


def new_uvloop() -> asyncio.AbstractEventLoop:
    """uvloop's, with our `create_server`; `uvicorn --loop pyfanout.embed.loop:new_uvloop` takes it, too."""
    return _new_loop(importlib.import_module("uvloop").Loop)


def _new_loop(base: Any) -> asyncio.AbstractEventLoop:
    class Loop(base):
        async def create_server(self, protocol_factory: Any, *args: Any, sock: Any = None, **options: Any) -> Any:
            if not isinstance(sock, Listener):
                return await super().create_server(protocol_factory, *args, sock=sock, **options)
            server = Server(self, protocol_factory, sock, options)
            if options.get("start_serving", True):
                await server.start_serving()
            return server

    return Loop()


class Server(asyncio.AbstractServer):
    """Accepts from a Listener as a loop's own server would."""

    def __init__(self, loop: Any, protocol_factory: Any, listener: Listener, options: dict[str, Any]) -> None:
        self._loop = loop
        self._protocol_factory = protocol_factory
        self._listener: Listener | None = listener
        self._serving = False
        names = ("ssl", "ssl_handshake_timeout", "ssl_shutdown_timeout")
        self._options = {name: options[name] for name in names if options.get(name) is not None}
        if "ssl" in self._options:
            self._options.setdefault("ssl_handshake_timeout", listener.handshake_timeout)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._make_transport = getattr(loop, "_make_socket_transport", None)
        if self._make_transport is None and listener.proxied:
            raise ConfigError(_FINDS_THE_PROXY)
        if self._options.get("ssl"):
            self._begin = self._shake_hands
        else:
            self._begin = self._open_bare if self._make_transport is None else self._open
        self._closed = loop.create_future()

    @property
    def sockets(self) -> tuple[Listener, ...]:
        return () if self._listener is None else (self._listener,)

    def get_loop(self) -> Any:
        return self._loop

    def is_serving(self) -> bool:
        return self._serving

    async def start_serving(self) -> None:
        if not self._serving and self._listener is not None:
            self._serving = True
            self._loop.add_reader(self._listener.fileno(), self._accept)

    async def serve_forever(self) -> None:
        await self.start_serving()
        try:
            await self._closed
        finally:
            self.close()

    def close(self) -> None:
        if self._listener is None:
            return
        listener, self._listener = self._listener, None
        if self._serving:
            self._serving = False
            self._loop.remove_reader(listener.fileno())
        listener.close()
        if not self._closed.done():
            self._closed.set_result(None)

    async def wait_closed(self) -> None:
        if self._tasks:
            await asyncio.wait(self._tasks)

    def _accept(self) -> None:
        """All that is there. What comes meanwhile wakes it again: a look in vain takes 30 us in a worker that was
        asleep."""
        more = True
        while more and (listener := self._listener) is not None:
            try:
                self._begin(listener)
            except BlockingIOError:
                return
            more = listener.pending > 0

    def _open(self, listener: Listener) -> None:
        """asyncio."""
        conn, address = listener.accept()
        try:
            self._make_transport(conn, self._protocol_factory(), extra={"peername": address})
        except BaseException as error:
            conn.close()
            _tell(error)

    def _open_bare(self, listener: Listener) -> None:
        """uvloop: its coroutine makes the transport before its first wait, and what is left needs no task."""
        conn = listener.accept_bare()
        connecting = self._loop.connect_accepted_socket(self._protocol_factory, conn)
        try:
            made = connecting.send(None)
        except BaseException as error:
            conn.lose()
            _tell(error)
        else:
            made.add_done_callback(functools.partial(_go_on, connecting))

    def _shake_hands(self, listener: Listener) -> None:
        conn, _ = listener.accept()
        task = self._loop.create_task(self._connect(listener, conn))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connect(self, listener: Listener, conn: Any) -> None:
        fd = conn.fileno()
        try:
            with listener.connections.shaking_hands(fd):
                made = self._loop.connect_accepted_socket(self._protocol_factory, conn, **self._options)
                transport, _ = await made
            if conn.fileno() == fd:  # when it is closed the loop waits for the client's close_notify, for 30 s
                listener.connections.idle_while(fd, transport.is_closing)
        except OSError as error:  # a handshake that failed, included: ssl.SSLError is one
            log.debug("a connection could not be set up and is closed: %s", error)
            conn.close()
        except BaseException:
            conn.close()
            raise


def _tell(error: BaseException) -> None:
    if not isinstance(error, Exception):
        raise error
    log.error("the event loop made no transport for a connection; the connection is closed", exc_info=error)


def _go_on(connecting: Coroutine[Any, Any, Any], _made: asyncio.Future[Any]) -> None:
    """If its reference were dropped while it waits, it would close the transport."""
    try:
        connecting.send(None)
    except StopIteration:
        pass
    except Exception as error:
        log.debug("a connection could not be set up and is closed: %s", error)
