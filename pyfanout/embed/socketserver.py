"""The standard library's socketserver, http.server, xmlrpc.server and what is made of them.

A server that handles one request at a time is run as a blocking handler: it shares the pool with the other workers', so
that no client waits behind a busy one. One with ThreadingMixIn or ForkingMixIn, whose accept loop is always free, has
its own loop and a listener.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import http.server
import inspect
import os
import select
import socket
import socketserver
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIServer

from pyfanout import exits
from pyfanout.embed.forking import Children
from pyfanout.embed.runner import LOOK_S
from pyfanout.embed.threaded import ThreadedRunner
from pyfanout.embed.views import changed, probe, views
from pyfanout.embed.wsgi import informed
from pyfanout.errors import ConfigError
from pyfanout.shape import innermost
from pyfanout.worker import blocking, clients
from pyfanout.worker.farewell import linger
from pyfanout.worker.idle import LOOK_S as IDLE_LOOK_S
from pyfanout.worker.idle import answering, end_if_idle

if TYPE_CHECKING:
    from pyfanout.kind import SocketServer
    from pyfanout.worker.listener import Listener
    from pyfanout.worker.public import Bound, Public
    from pyfanout.worker.worker import Worker


class _LoopIsOverError(BaseException):
    """Ends a loop of the server's own, which calls `handle_request` again and again. Its `except Exception` lets this
    pass."""


LOCAL_NAME = "localhost"
"""SERVER_NAME on a UNIX socket, if a client does not say another one."""


class Runner(ThreadedRunner):
    """`server` is a class of servers, with its class of request handlers, or a `functools.partial` of one:
    `Runner(ThreadingHTTPServer, MyHandler)`. That may also be an attribute `RequestHandlerClass` of the server's class.
    Or it is a class of request handlers alone, or a partial of one, which gets a TCPServer, or an HTTPServer if it
    speaks HTTP; or a function that is called with the address, with `handler` if that is given, and with
    `bind_and_activate=False`, and returns a server."""

    instead = "call monkey.patch_all(thread=False), or use a WSGI application with --server gevent"

    def __init__(
        self, server: SocketServer, handler: Callable[..., socketserver.BaseRequestHandler] | None = None
    ) -> None:
        self._make = _factory(server, handler)
        self._server: Any = None
        self._children: Children | None = None
        """Of a forking server."""
        self._drains = -1
        """For a forking server: an eventfd that its children do not read, so that it wakes all of them."""
        self._child_drains = False
        """In a child: it has been woken."""
        self._in_stock_loop = False
        """The loop that has the main thread is BaseServer's, which alone calls `service_actions`."""
        self._is_over = False
        """Another loop finds that when it accepts."""

    def serve(self, worker: Worker) -> None:
        self._server = server = self._make(worker.public.first.address)
        server.socket.close()
        _refuse_wrapped(server)
        forks = isinstance(server, socketserver.ForkingMixIn)
        threads = isinstance(server, socketserver.ThreadingMixIn)
        if _is_a(server.RequestHandlerClass, http.server.BaseHTTPRequestHandler):
            self.shows_requests = not forks  # whose children read them
            count = worker.counter("request") if self.shows_requests else None
            _extend(server, lambda handler: _minding(handler, lambda: self._leaves(worker), count))
        if isinstance(server, WSGIServer) and (app := server.get_app()):
            multithread = threads or (worker.config.threads > 1 and not forks)
            server.set_app(informed(app, worker, multithread=multithread, multiprocess=forks))
        if type(server).handle_error is socketserver.BaseServer.handle_error:
            server.handle_error = _unless_gone(server.handle_error, worker)
        if threads or forks:
            super().serve(worker)
        else:
            blocking.serve(worker, _Single(server, worker), counted=not self.shows_requests)

    def run(self, worker: Worker, listener: Listener, started: Callable[[], None]) -> None:
        server = self._server
        _activate(server, listener, worker)
        server.shutdown_request = _with_farewell(server.shutdown_request, worker)
        server.close_request = _for_good(server.close_request, ours=not isinstance(server, socketserver.ForkingMixIn))
        if not isinstance(server, socketserver.ForkingMixIn):
            _keep_live(server, listener)
        if isinstance(server, socketserver.ForkingMixIn):
            # Of the one server, not of its class: mypy knows methods of classes only.
            server.finish_request = self._minded(server.finish_request, worker)  # type: ignore[attr-defined]
            server.process_request = _known(server.process_request, worker)  # type: ignore[method-assign, assignment]
            server.collect_children = _hearing(server, worker, listener)  # type: ignore[method-assign]
            self._children = Children(server, worker, listener)
            exits.also_end(self._children.end)
        server.service_actions = self._seen_in_stock_loop(server.service_actions)
        server.get_request = self._until_over(server.get_request)
        started()
        try:
            with contextlib.suppress(_LoopIsOverError):
                server.serve_forever()
            patience_s = time.monotonic() + worker.config.drain_timeout
            while self._serves(listener) and time.monotonic() < patience_s:
                listener.end_silent()
                listener.receive(LOOK_S)  # the master may be gone
        finally:
            if self._children:  # those that are left: their time is over
                self._children.end()
        worker.stopped_with(listener.live)
        server.server_close()

    def _serves(self, listener: Listener) -> bool:
        """In threads and children that `server_close` need not wait for, too."""
        return bool(listener.live or (self._children and self._children.serving()))

    def _minded(self, finish_request: Callable[..., object], worker: Worker) -> Callable[..., object]:
        """In a child of a forking server: when the worker drains, the child ends its connection if it is idle. The
        worker itself has closed its copy of it. SIGQUIT ends the child at once."""
        self._drains = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

        def mind(request: Any) -> None:
            news = worker.background.poll()
            news.register(self._drains, select.POLLIN)
            worker.background.wait(news, None)
            self._child_drains = True
            while True:
                end_if_idle(request)
                worker.background.sleep(IDLE_LOOK_S)

        def finish(request: socket.socket, address: Any) -> None:
            worker.signals.serves()
            with contextlib.suppress(OSError, RuntimeError):  # no descriptor, or no thread, can be had
                worker.background.open()
                worker.background.start(functools.partial(mind, request))
            finish_request(request, address)

        return finish

    def _leaves(self, worker: Worker) -> bool:
        return self._child_drains if worker.forked else worker.leaves

    def drains(self) -> None:
        if self._drains >= 0:
            os.eventfd_write(self._drains, 1)

    def waits(self, listener: Listener, end_s: float) -> bool:
        """Its handlers go on without its loop, which is only for accepting."""
        return listener.in_preamble > 0  # for a second at most

    def stop(self) -> None:
        """A `shutdown` that is not overridden waits for BaseServer's own loop, also if another one runs."""
        if self._in_stock_loop or type(self._server).shutdown is not socketserver.BaseServer.shutdown:
            self._server.shutdown()
        else:
            self._is_over = True

    def _seen_in_stock_loop(self, service_actions: Callable[[], object]) -> Callable[[], None]:
        def act() -> None:
            self._in_stock_loop = True
            service_actions()

        return act

    def _until_over(self, get_request: Callable[[], Any]) -> Callable[[], Any]:
        def get() -> Any:
            if self._is_over:
                raise _LoopIsOverError
            return get_request()

        return get


class _Single:
    """A server that handles one request at a time, as a blocking handler."""

    def __init__(self, server: Any, worker: Worker) -> None:
        self._server = server
        self._listening = _StandIn(worker.public.first)
        server.shutdown = worker.drain  # there is no loop of its own to wait for
        _activate(server, self._listening, worker)

    def __call__(self, conn: socket.socket, addr: Any) -> None:
        """What BaseServer does for one request, with the methods that are there to be overridden."""
        server = self._server
        self._listening.pending.pair = conn, addr
        try:
            request, addr = server.get_request()
        except OSError:
            return
        if not server.verify_request(request, addr):
            server.shutdown_request(request)
            return
        try:
            server.process_request(request, addr)
        except Exception:
            server.handle_error(request, addr)
            server.shutdown_request(request)
        except BaseException:
            server.shutdown_request(request)
            raise


class _StandIn(socket.socket):
    """In the place of a listening socket, which the master has: one of the same kind, so a server may look at it."""

    def __init__(self, bound: Bound) -> None:
        super().__init__(bound.family, socket.SOCK_STREAM, bound.proto)
        self._address = bound.address
        self.pending = threading.local()

    def accept(self) -> tuple[socket.socket, Any]:
        """For `get_request`, which may wrap what it gets."""
        pair: tuple[socket.socket, Any] = self.pending.pair
        return pair

    def getsockname(self) -> Any:
        return self._address

    def setsockopt(self, *_: Any) -> None:
        """Done by the master, where it concerns a listener."""

    def bind(self, _address: Any) -> None:
        """Done by the master."""

    def listen(self, _backlog: int = 0) -> None:
        """Done by the master."""


@contextlib.contextmanager
def _unwrapped(server: Any) -> Iterator[None]:
    """What the server does with its listening socket meanwhile, other than to look at it, is refused."""
    ours = server.socket
    try:
        yield
    except OSError as error:
        if error.errno != errno.ENOTSOCK:  # no other socket can be made of a Listener
            raise
        _refuse_wrapped(server, None)
    if server.socket is not ours:
        _refuse_wrapped(server)


def _refuse_wrapped(server: Any, plain: type[socket.socket] | None = socket.socket) -> None:
    """pyfanout puts its own socket in the place of the server's. A server that does TLS by that would do none."""
    if type(server.socket) is not plain:
        raise ConfigError(
            f"{type(server).__name__} wraps its listening socket, which is the master's: for TLS use certfile and "
            "keyfile, or ssl; or wrap each connection in get_request"
        )


def _activate(server: Any, listening: Any, worker: Worker) -> None:
    """It sets its names, and may do what its class wants at that point. With several listeners a handler gets a view of
    the server, in which `server_address` and all that `server_bind` has set are those of its connection's listener."""

    def names(bound: Bound) -> dict[str, Any]:
        made = probe(server)
        with _StandIn(bound) as stand_in:
            _bind(made, bound, stand_in, worker)
        return changed(made, server)

    _bind(server, worker.public.first, listening, worker)
    with _unwrapped(server):
        server.server_activate()
    server.socket = listening
    if len(worker.public.listeners) > 1:
        known = views(server, worker.public, names)
        _extend(server, lambda handler: _introduced(handler, known, worker.public))
    if isinstance(server, http.server.HTTPServer) and type(server).address_family != socket.AF_UNIX:
        vars(server)["get_request"] = _with_host(server.get_request)


def _bind(server: Any, bound: Bound, listening: Any, worker: Worker) -> None:
    """An HTTP server takes each address for a host and a port, of which it makes its name."""
    server.address_family, server.server_address, server.socket = bound.family, bound.address, listening
    with contextlib.ExitStack() as stack:
        if isinstance(server, http.server.HTTPServer) and bound.family == socket.AF_UNIX:
            named = bound._replace(address=(LOCAL_NAME, 443 if worker.config.tls else 80))
            vars(server)["socket"] = stack.enter_context(_StandIn(named))
        with _unwrapped(server):
            server.server_bind()
    server.server_address, server.socket = bound.address, listening


def _extend(server: Any, extended: Callable[[Any], Any]) -> None:
    """Put `extended(class)` in the place of the server's class of handlers, also where that is in a partial, which
    SimpleHTTPRequestHandler needs for its `directory`. Any other function stays as it is."""

    def within(handler: Any) -> Any:
        if isinstance(handler, functools.partial):
            return functools.partial(within(handler.func), *handler.args, **handler.keywords)
        return extended(handler) if isinstance(handler, type) else handler

    server.RequestHandlerClass = within(server.RequestHandlerClass)


def _is_a(handler: Any, base: type) -> bool:
    made = innermost(handler)
    return isinstance(made, type) and issubclass(made, base)


def _introduced(handler: Any, known: list[Any], public: Public) -> Any:
    """A class of handlers that are given a view."""

    class Handler(handler):
        def __init__(self, request: Any, client_address: Any, server: Any, *more: Any, **options: Any) -> None:
            number = getattr(request, "listener", public.number)  # a server may have made another socket of it
            super().__init__(request, client_address, known[number], *more, **options)

    return functools.wraps(handler, updated=())(Handler)


def _with_host(get_request: Callable[[], tuple[Any, Any]]) -> Callable[[], tuple[Any, Any]]:
    """Handlers of HTTP log the client's host, of which one of a UNIX socket has none."""

    def get() -> tuple[Any, Any]:
        request, address = get_request()
        return request, address if isinstance(address, tuple) else ("", 0)

    return get


def _unless_gone(handle_error: Callable[[Any, Any], None], worker: Worker) -> Callable[[Any, Any], None]:
    """Prints a traceback, but not for each client that breaks off."""

    def handle(request: Any, address: Any) -> None:
        error = sys.exc_info()[1]
        if error is not None and clients.has_gone(error, request):
            clients.log.debug("worker=%d: %s has gone: %s", worker.slot, address, error)
        else:
            handle_error(request, address)

    return handle


def _with_farewell(shutdown_request: Callable[[Any], None], worker: Worker) -> Callable[[Any], None]:
    """With TLS the process that has served a client sends close_notify; a forking server's parent calls
    `close_request`. The child reads late input of its client, because the worker has no descriptor for it any more."""

    def shutdown(request: Any) -> None:
        if farewell := getattr(request, "bid_farewell", None):
            farewell()
        if worker.forked and not worker.signals.quit and isinstance(request, socket.socket):
            linger(request)
        shutdown_request(request)

    return shutdown


def _known(process_request: Callable[..., object], worker: Worker) -> Callable[..., object]:
    """Forks a child, which is in `active_children` when a stop looks there."""

    def process(request: Any, address: Any) -> None:
        with worker.signals.forking():
            process_request(request, address)

    return process


def _hearing(server: Any, worker: Worker, listener: Listener) -> Callable[..., None]:
    """Collects children that have ended. At `max_children` the server waits until one has, and does not read its
    listener meanwhile; here it reads what the master says."""
    collect = server.collect_children

    def collect_children(*, blocking: bool = False) -> None:
        children = server.active_children or set()
        while len(children) >= server.max_children and not blocking:
            for pid in list(children):
                with contextlib.suppress(ChildProcessError):  # the application has collected it
                    if os.waitpid(pid, os.WNOHANG)[0] == 0:
                        continue
                children.discard(pid)
            if worker.draining:
                return
            if len(children) >= server.max_children:
                worker.is_short(True, "children")
                listener.receive(LOOK_S)
        worker.is_short(False, "children")
        collect(blocking=blocking)

    return collect_children


def _for_good(close_request: Callable[[Any], None], *, ours: bool) -> Callable[[Any], None]:
    """Closes a connection also if its handler has kept a `makefile` object of it. `ours`: the connection is over then;
    else a child goes on with it. A server may have made another socket of it, which reports no end."""

    def close(request: Any) -> None:
        hand_over = None if ours else getattr(request, "hand_over", None)
        on_done = hand_over and hand_over()
        close_request(request)
        if drop := getattr(request, "drop", None):
            drop()
        if on_done is not None:
            on_done()

    return close


def _keep_live(server: Any, listener: Listener) -> None:
    """A server that makes another socket of a connection, as for TLS, detaches the connection, which is not its end.
    That comes when the server closes the other socket, or forgets it."""
    accepted: list[tuple[Any, Any]] = []
    ends: dict[int, weakref.finalize[Any, Any]] = {}
    get_request, close_request = server.get_request, server.close_request
    kind: Any = type(listener)

    class Lending(kind):
        __slots__ = ()

        def accept(self) -> tuple[Any, Any]:
            conn, address = super().accept()
            accepted.append((conn, conn.hand_over()))
            return conn, address

    def settle(made: Any = None) -> None:
        while accepted:
            conn, on_done = accepted.pop()
            if conn.fileno() >= 0:
                conn.take_back(on_done)
            elif made is None:
                on_done()
            else:
                try:
                    ends[id(made)] = end = weakref.finalize(made, on_done)
                    end.atexit = False
                except TypeError:  # there can be no weak reference to it
                    on_done()
                made = None  # what was accepted before is over

    def get() -> Any:
        try:
            request, address = get_request()
        except BaseException:
            settle()
            raise
        settle(request)
        return request, address

    def close(request: Any) -> None:
        if end := ends.pop(id(request), None):
            end()
        close_request(request)

    listener.__class__ = Lending
    server.get_request, server.close_request = get, close


def _minding(handler: Any, drains: Callable[[], bool], count: Callable[[], None] | None) -> Any:
    """A class of handlers whose answers say that the connection ends, when the worker drains. It marks a connection
    while it answers a request, and counts requests whose head has been read."""

    class Handler(handler):
        _answers: contextlib.ExitStack | None = None
        _continues = False

        def parse_request(self) -> bool:
            """The first line has been read, and the rest is on its way."""
            self._answered()
            self._answers = contextlib.ExitStack()
            self._answers.enter_context(answering(self.connection))
            is_one = bool(super().parse_request())
            if is_one and count is not None:
                count()
            return is_one

        def handle_one_request(self) -> None:
            try:
                super().handle_one_request()
            finally:
                self._answered()

        def finish(self) -> None:
            self._answered()
            super().finish()

        def _answered(self) -> None:
            if self._answers is not None:
                self._answers.close()

        def handle_expect_100(self) -> bool:
            self._continues = True
            try:
                return bool(super().handle_expect_100())
            finally:
                self._continues = False

        def end_headers(self) -> None:
            if drains() and not self._continues:
                self.send_header("Connection", "close")  # which sets close_connection
            super().end_headers()

    return functools.wraps(handler, updated=())(Handler)


def _factory(server: Any, handler: Any) -> Callable[[Any], Any]:
    """What makes the server for an address."""
    if handler is None and _is_a(server, socketserver.BaseRequestHandler):
        speaks_http = _is_a(server, http.server.BaseHTTPRequestHandler)
        server, handler = http.server.HTTPServer if speaks_http else socketserver.TCPServer, server
    if _is_a(server, socketserver.UDPServer):
        raise ConfigError(f"{innermost(server).__name__} serves datagrams; pyfanout passes connections")
    is_class = isinstance(server, type) and issubclass(server, socketserver.BaseServer)
    if is_class and handler is None:
        found = getattr(server, "RequestHandlerClass", None)
        if _takes(server, "address", found):
            handler = found
        if handler is None and not _takes(server, "address"):
            raise ConfigError(
                f"{server.__name__} needs its class of request handlers: "
                f"pyfanout.embed.socketserver.Runner({server.__name__}, MyHandler), or an attribute RequestHandlerClass"
            )
    given = () if handler is None else (handler,)
    return lambda address: (_made if is_class else _call)(server, address, *given)


def _takes(server: Any, *arguments: Any, **named: Any) -> bool:
    try:
        inspect.signature(server).bind(*arguments, **named)
    except TypeError:
        return False
    except ValueError:  # it does not tell
        pass
    return True


def _call(server: Any, *arguments: Any) -> Any:
    return server(*arguments, bind_and_activate=False)


def _made(kind: Any, *arguments: Any) -> Any:
    """It may listen when it is made, as by itself it would: that has been done."""
    options = {"bind_and_activate": False}
    if not _takes(kind, *arguments, **options):
        options = {}
    server = kind.__new__(kind)
    vars(server).update(server_bind=bool, server_activate=bool)
    server.__init__(*arguments, **options)
    for name in ("server_bind", "server_activate"):
        del vars(server)[name]
    return server
