"""How a worker loads its application: before asyncio's loop runs, or while it runs.

Most programs import before. uvicorn's workers import the application while their loop runs, so that it may begin tasks.
What fails for that reason, one way or the other, is loaded again the other way. The server then runs on the loop that
the application has used.
"""

from __future__ import annotations

import importlib
import inspect
import logging
import sys
import traceback
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

from pyfanout.app import App, Given
from pyfanout.errors import LoadError
from pyfanout.kind import Kind
from pyfanout.servers import found

if TYPE_CHECKING:
    from pyfanout.config import Config
    from pyfanout.worker.loops import Loops
    from pyfanout.worker.worker import WorkerProcess

log = logging.getLogger("pyfanout.worker")

_ON_ASYNCIO = (Kind.ASGI, Kind.COROUTINE, Kind.AIOHTTP, Kind.TORNADO)

_ABOUT_THE_LOOP = (
    "no running event loop",
    "no current event loop",
    "cannot be called from a running event loop",
    "event loop is already running",
    "while another loop is running",
    "in the same thread as an async event loop",  # asgiref
)
_ERRORS_ABOUT_THE_LOOP = ("AsyncLibraryNotFoundError", "NoEventLoopError", "SynchronousOnlyOperation")
"""sniffio's, anyio's, Django's."""


def load_for(config: Config, load: Callable[[], App], worker: WorkerProcess | None) -> tuple[App, Loops | None]:
    """The application, and the loops that it may have used; `settle` follows when its kind is known. Without a worker
    it is loaded as in one. Raises LoadError, or what `load` raises."""
    if isinstance(load, Given):
        return load(), None
    if not _may_be_on_asyncio(config):
        return _not_async(load(), "its server has none"), None
    loops: Loops = importlib.import_module("pyfanout.worker.loops").Loops(config, _loop_name(config), worker)
    try:
        return _load_either_way(loops, load, within_first=_is_uvicorns(config)), loops
    except BaseException:
        loops.close()
        raise


def _load_either_way(loops: Loops, load: Callable[[], App], *, within_first: bool) -> App:
    ways = [(loops.load_before, "before its server's loop runs"), (loops.load_within, "in its server's running loop")]
    if within_first:
        ways.reverse()
    (first, _), (second, how) = ways
    try:
        return cast("App", first(load))
    except (Exception, SystemExit) as error:
        if not _is_about_the_loop(error):
            raise
        log.info("%s%s; the application is loaded again, %s", loops.prefix, error, how)
        _clear(error)
    return cast("App", second(load))


def _clear(error: BaseException | None) -> None:
    """A coroutine that was to be a task, and that the traceback keeps, is no mistake of the application's: Python shall
    not warn of it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        while error is not None:
            traceback.clear_frames(error.__traceback__)
            error = error.__cause__


def settle(loops: Loops, app: App, kind: Kind) -> None:
    """Has its server run on the loop that the application has used. Raises LoadError if it cannot."""
    loops.settle(on_asyncio=is_on_asyncio(app, kind))


def is_on_asyncio(app: App, kind: Kind) -> bool:
    """Whether its server is."""
    module = sys.modules.get("pyfanout.embed.aio")  # what has such a runner has imported it
    return kind in _ON_ASYNCIO or (module is not None and isinstance(app, module.AsyncioRunner))


def preloaded(load: Callable[[], App]) -> App:
    """The application, in the master. Raises LoadError, or what `load` raises."""
    where = "--preload loads it in the master, which has none"
    try:
        return _not_async(load(), where)
    except LoadError as error:
        if error.__cause__ is None or not _is_about_the_loop(error.__cause__):
            raise
        raise LoadError(f"{error}; {where}") from error.__cause__


def _not_async(app: Any, where: str) -> App:
    if inspect.iscoroutine(app):
        app.close()
        raise LoadError(f"the factory is async, and needs a running loop; {where}")
    return cast("App", app)


def _may_be_on_asyncio(config: Config) -> bool:
    kinds: tuple[Kind, ...] = (Kind.ASGI if config.as_ == "auto" else Kind(config.as_),)
    if config.server != "auto":
        kinds = found(config.server).kinds
    return any(kind is Kind.RUNNER or kind in _ON_ASYNCIO for kind in kinds)


def _is_uvicorns(config: Config) -> bool:
    return config.server == "uvicorn" or (config.server == "auto" and config.as_ == Kind.ASGI.value)


def _loop_name(config: Config) -> str:
    """That of the server, if it is known, else uvicorn's: most of those that need it are made for that."""
    known = config.server == "hypercorn" or config.as_ not in ("auto", Kind.ASGI.value, Kind.RUNNER.value)
    return "asyncio" if known else "auto"


def _is_about_the_loop(error: BaseException) -> bool:
    cause: BaseException | None = error
    while cause is not None:
        if type(cause).__name__ in _ERRORS_ABOUT_THE_LOOP:
            return True
        if isinstance(cause, RuntimeError) and any(words in str(cause) for words in _ABOUT_THE_LOOP):
            return True
        cause = cause.__cause__
    return False
