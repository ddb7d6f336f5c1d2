"""Classes of request handlers, made of a socketserver's own."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pyfanout.shape import innermost
from pyfanout.worker.idle import answering

if TYPE_CHECKING:
    from pyfanout.worker.public import Public


def extend(server: Any, extended: Callable[[Any], Any]) -> None:
    """Put `extended(class)` in the place of the server's class of handlers, also where that is in a partial, which
    SimpleHTTPRequestHandler needs for its `directory`. Any other function stays as it is."""

    def within(handler: Any) -> Any:
        if isinstance(handler, functools.partial):
            return functools.partial(within(handler.func), *handler.args, **handler.keywords)
        return extended(handler) if isinstance(handler, type) else handler

    server.RequestHandlerClass = within(server.RequestHandlerClass)


def is_a(handler: Any, base: type) -> bool:
    made = innermost(handler)
    return isinstance(made, type) and issubclass(made, base)


def introduced(handler: Any, known: list[Any], public: Public) -> Any:
    """A class of handlers that are given a view."""

    class Handler(handler):
        def __init__(self, request: Any, client_address: Any, server: Any, *more: Any, **options: Any) -> None:
            number = getattr(request, "listener", public.number)  # a server may have made another socket of it
            super().__init__(request, client_address, known[number], *more, **options)

    return functools.wraps(handler, updated=())(Handler)


def minding(handler: Any, drains: Callable[[], bool], count: Callable[[], None] | None) -> Any:
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
