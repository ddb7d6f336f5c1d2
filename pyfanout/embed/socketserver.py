"""The standard library's socketserver, http.server, xmlrpc.server and what is made of them.

A server that handles one request at a time is run as a blocking handler: it shares the pool with the other workers', so
that no client waits behind a busy one. One with ThreadingMixIn or ForkingMixIn, whose accept loop is always free, has
its own loop and a listener.
"""

from __future__ import annotations

import contextlib
import functools
import http.server
import os
import select
import socket
import socketserver
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIServer

from pyfanout import exits
from pyfanout.embed.forking import Children, collecting, tracked
from pyfanout.embed.runner import LOOK_S
from pyfanout.embed.socketserver_address import StandIn, activate, refuse_wrapped
from pyfanout.embed.socketserver_ends import for_good, keep_live, unless_gone, with_farewell
from pyfanout.embed.socketserver_factory import factory
from pyfanout.embed.socketserver_handlers import extend, is_a, minding
from pyfanout.embed.threaded import ThreadedRunner
from pyfanout.embed.wsgi import informed
from pyfanout.worker import blocking
from pyfanout.worker.idle import LOOK_S as IDLE_LOOK_S
from pyfanout.worker.idle import end_if_idle
from pyfanout.worker.serving import ServingWorker, inside

if TYPE_CHECKING:
    from pyfanout.kind import SocketServer
    from pyfanout.worker.listener import Listener
    from pyfanout.worker.worker import WorkerProcess


class _LoopIsOverError(BaseException):
    """Ends a loop of the server's own, which calls `handle_request` again and again. Its `except Exception` lets this
    pass."""


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
        self._make = factory(server, handler)
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

    def serve(self, face: ServingWorker) -> None:
        worker = inside(face)
        self._server = server = self._make(worker.public.first.address)
        server.socket.close()
        refuse_wrapped(server)
        forks = isinstance(server, socketserver.ForkingMixIn)
        threads = isinstance(server, socketserver.ThreadingMixIn)
        if is_a(server.RequestHandlerClass, http.server.BaseHTTPRequestHandler):
            self.shows_requests = not forks  # whose children read them
            count = worker.counter("request") if self.shows_requests else None
            extend(server, lambda handler: minding(handler, lambda: self._leaves(worker), count))
        if isinstance(server, WSGIServer) and (app := server.get_app()):
            multithread = threads or (worker.config.threads > 1 and not forks)
            server.set_app(informed(app, worker, multithread=multithread, multiprocess=forks))
        if type(server).handle_error is socketserver.BaseServer.handle_error:
            server.handle_error = unless_gone(server.handle_error, worker)
        if threads or forks:
            super().serve(face)
        else:
            blocking.serve(worker, _Single(server, worker), counted=not self.shows_requests)

    def run(self, face: ServingWorker, listener: Listener, started: Callable[[], None]) -> None:
        worker = inside(face)
        server = self._server
        activate(server, listener, worker)
        server.shutdown_request = with_farewell(server.shutdown_request, worker)
        server.close_request = for_good(server.close_request, ours=not isinstance(server, socketserver.ForkingMixIn))
        if not isinstance(server, socketserver.ForkingMixIn):
            keep_live(server, listener)
        if isinstance(server, socketserver.ForkingMixIn):
            # Of the one server, not of its class: mypy knows methods of classes only.
            server.finish_request = self._minded(server.finish_request, worker)  # type: ignore[attr-defined]
            server.process_request = tracked(server.process_request, worker)  # type: ignore[method-assign, assignment]
            server.collect_children = collecting(server, worker, listener)  # type: ignore[method-assign]
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
                listener.connections.end_silent()
                listener.receive(LOOK_S)  # the master may be gone
        finally:
            if self._children:  # those that are left: their time is over
                self._children.end()
        worker.stopped_with(listener.live)
        server.server_close()

    def _serves(self, listener: Listener) -> bool:
        """In threads and children that `server_close` need not wait for, too."""
        return bool(listener.live or (self._children and self._children.serving()))

    def _minded(self, finish_request: Callable[..., object], worker: WorkerProcess) -> Callable[..., object]:
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

    def _leaves(self, worker: WorkerProcess) -> bool:
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

    def __init__(self, server: Any, worker: WorkerProcess) -> None:
        self._server = server
        self._listening = StandIn(worker.public.first)
        server.shutdown = worker.drain  # there is no loop of its own to wait for
        activate(server, self._listening, worker)

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
