"""twisted: any protocol factory, such as `twisted.web.server.Site`."""

from __future__ import annotations

import contextlib
import socket
import sys
from typing import TYPE_CHECKING, Any

from pyfanout.embed import runner
from pyfanout.embed.runner import LOOK_S
from pyfanout.embed.views import view
from pyfanout.embed.wsgi import informed
from pyfanout.worker.serving import ServingWorker, inside
from pyfanout.worker.threads import Pool, Steps

if TYPE_CHECKING:
    from twisted.internet.interfaces import IProtocolFactory

    from pyfanout.worker.listener import Listener
    from pyfanout.worker.public import Bound
    from pyfanout.worker.worker import WorkerProcess


class Runner(runner.Runner):
    """`factory` makes a protocol for each connection. TLS is its own affair, see `TLSMemoryBIOFactory`."""

    needs = ("twisted",)
    no_tls = "certfile: twisted has TLS in its factory; wrap it in TLSMemoryBIOFactory"

    def __init__(self, factory: IProtocolFactory) -> None:
        self._factory = factory

    def serve(self, face: ServingWorker) -> None:
        worker = inside(face)
        from twisted.internet import reactor as found  # it is made by its import, and must be ours

        reactor: Any = found
        worker.call_hook(worker.config.on_worker_start)
        listener = worker.listener(counted=not _counts_requests(worker, self._factory))
        _inform_wsgi(worker)
        port = _port(worker, listener, self._factory, reactor)
        _watch_threads(worker, reactor)

        def drain() -> None:
            if not worker.forked:
                listener.quiet()
                reactor.callFromThread(_settle, worker, listener, port, reactor)

        def stop() -> None:
            worker.stopped_with(listener.live)
            _stop(reactor)

        def started() -> None:
            worker.signals.through(reactor.callFromThread, stop)
            worker.on_drain, worker.on_closing = drain, listener.connections.make_room
            worker.ready(pool=False, threads=0)

        port.startListening()
        reactor.callWhenRunning(started)
        try:
            reactor.run(installSignalHandlers=False)
        finally:
            worker.signals.plain()
            worker.call_hook(worker.config.on_worker_exit)


def _counts_requests(worker: WorkerProcess, factory: Any) -> bool:
    """Whether the factory is a twisted.web site, perhaps behind TLS: then its requests count, when they are whole."""
    while inner := getattr(factory, "wrappedFactory", None):
        factory = inner
    http = sys.modules.get("twisted.web.http")
    if http is None or not isinstance(factory, http.HTTPFactory):
        return False
    if (count := worker.counter("request")) is not None:
        kind = http.Request
        receive = kind.requestReceived

        def received(request: Any, *arguments: Any) -> None:
            if getattr(request.channel, "factory", None) is factory:
                count()
            receive(request, *arguments)

        kind.requestReceived = received
    return True


def _inform_wsgi(worker: WorkerProcess) -> None:
    """Applications of a WSGIResource."""
    if (wsgi := sys.modules.get("twisted.web.wsgi")) is not None:
        respond = wsgi._WSGIResponse

        def respond_to_informed(reactor: Any, threads: Any, app: Any, request: Any) -> Any:
            return respond(reactor, threads, informed(app, worker, multithread=threads.max > 1), request)

        wsgi._WSGIResponse = respond_to_informed  # type: ignore[attr-defined]  # private, no type


def _say_goodbye() -> None:
    """The answers of twisted.web say from now on that the connection ends, also to requests that came before. HTTP/2
    has another channel."""
    if (http := sys.modules.get("twisted.web.http")) is not None:
        kind = http.HTTPChannel
        write_headers = kind.writeHeaders

        def write_last(channel: Any, version: bytes, code: bytes, reason: bytes, headers: Any) -> None:
            if not code.startswith(b"1"):
                headers.setRawHeaders(b"Connection", [b"close"])
                channel.persistent = False
            write_headers(channel, version, code, reason, headers)

        kind.writeHeaders = write_last


def _stop(reactor: Any) -> None:
    """The end of a drain and a SIGQUIT may come at the same time."""
    from twisted.internet.error import ReactorNotRunning

    with contextlib.suppress(ReactorNotRunning):
        reactor.stop()


def _watch_threads(worker: WorkerProcess, reactor: Any) -> None:
    """Watch the threads of `deferToThread`, and of a WSGIResource that uses the reactor's pool."""
    steps = Steps()
    reactor.callFromThread = steps.counted(reactor.callFromThread)
    threads = reactor.getThreadPool()
    pool = Pool.beside_loop(lambda: threads.max, steps)
    call = threads.callInThreadWithCallback

    def watched_call(on_result: Any, function: Any, *arguments: Any, **keywords: Any) -> None:
        call(on_result, pool.call, function, *arguments, **keywords)

    threads.callInThreadWithCallback = watched_call
    worker.watch.add(pool.look)


def _settle(worker: WorkerProcess, listener: Listener, port: Any, reactor: Any) -> None:
    """Ends connections that wait for a request, until all are over or the time is up."""
    _say_goodbye()
    end_s = reactor.seconds() + worker.config.drain_timeout

    def look() -> None:
        listener.connections.end_unserved()
        if listener.settled:
            for protocol in list(port.protocols):
                channel = getattr(protocol, "_channel", protocol)  # twisted.web: HTTP/1 or /2, as negotiated
                if getattr(channel, "requests", None) == []:
                    channel.loseConnection()  # its transport's would wait for more from the channel, after a pause
        if listener.live and reactor.seconds() < end_s:
            reactor.callLater(LOOK_S, look)
        else:
            worker.stopped_with(listener.live)
            _stop(reactor)

    look()


def _port(worker: WorkerProcess, listener: Listener, factory: Any, reactor: Any) -> Any:
    """A port that accepts from our listener, and knows its protocols."""
    from twisted.internet import address, tcp, unix

    protocols: set[Any] = set()

    class Known:
        protocol: Any

        def connectionLost(self, reason: Any) -> None:
            protocols.discard(self.protocol)
            super().connectionLost(reason)

    class Transport(Known, tcp.Server):
        def getHost(self) -> Any:
            """twisted takes its family for the client's, which is another one if a PROXY header says so."""
            return build(tcp._getsockname(self.socket))  # type: ignore[no-untyped-call]  # twisted has none

    class UnixTransport(Known, unix.Server):
        """Behind a proxy it has another client."""

        def getPeer(self) -> Any:
            peer = self.socket.peer  # type: ignore[attr-defined]  # it is a Connection
            return build(peer) if isinstance(peer, tuple) else super().getPeer()  # type: ignore[no-untyped-call]  # the same

    def build(client: Any) -> Any:
        if not isinstance(client, tuple):
            return address.UNIXAddress(client)
        kind = address.IPv4Address if len(client) == 2 else address.IPv6Address
        return kind("TCP", *client)

    def transport(sock: Any, protocol: Any, client: Any, port: Any, *arguments: Any) -> Any:
        kind = UnixTransport if sock.family == socket.AF_UNIX else Transport
        made = kind(sock, protocol, client, known[sock.listener], *arguments)
        protocols.add(protocol)
        return made

    def names(bound: Bound) -> dict[str, Any]:
        number = None if bound.family == socket.AF_UNIX else bound.address[1]
        return {"_realPortNumber": number, "getHost": lambda: build(bound.address)}

    port: Any = tcp.Port(0, factory, reactor=reactor)
    known = [view(port, names(bound)) for bound in worker.public.listeners]
    port.transport, port._buildAddr = transport, build
    port._preexistingSocket = listener  # as `adoptStreamPort` sets it, but not a copy of the descriptor
    port.addressFamily = listener.family
    port.protocols = protocols
    return port
