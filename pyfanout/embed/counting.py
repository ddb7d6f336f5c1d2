"""Requests for `max_requests`, where a server shows them: each counts once, when it is about to be handled, as in
gunicorn. A connection without a request, and what no request can be made of, does not count."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from typing import ParamSpec

    from pyfanout.kind import ASGIApp
    from pyfanout.worker.worker import WorkerProcess

    P = ParamSpec("P")

T = TypeVar("T")


def counted(handle: Callable[P, T], worker: WorkerProcess) -> Callable[P, T]:
    """A function to be called in the place of `handle`, for each request; `handle` itself if nothing is counted."""
    count = worker.counter("request")
    if count is None:
        return handle

    def counting(*arguments: P.args, **keywords: P.kwargs) -> T:
        count()
        return handle(*arguments, **keywords)

    return counting


def counted_asgi(app: ASGIApp, worker: WorkerProcess) -> ASGIApp:
    """The same for an ASGI application: its lifespan is no request, a websocket is one."""
    handle = counted(app, worker)
    if handle is app:
        return app
    return lambda scope, *channels: (app if scope["type"] == "lifespan" else handle)(scope, *channels)
