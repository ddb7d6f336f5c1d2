"""Why an application cannot be loaded or started, in words and with its traceback."""

from __future__ import annotations

import importlib
import os
import traceback
from typing import NamedTuple

from pyfanout.errors import ConfigError, FanoutError, LoadError

_NOT_THE_APPLICATIONS = (os.path.dirname(__file__), os.path.dirname(importlib.__file__), "<frozen importlib")


class Failure(NamedTuple):
    """Why an application cannot be loaded or started."""

    reason: str
    """One line."""
    trace: str
    """Its traceback; nothing if the reason says it all."""


def failure_of(error: BaseException, *, whole: bool = False) -> Failure:
    """Of an exception that ends a start. `whole`: with our own frames, if there are no others."""
    cause = error.__cause__ if isinstance(error, LoadError) else error
    words = str(error) if isinstance(error, FanoutError) else f"{type(error).__name__}: {error}"
    plain = cause is None or isinstance(error, ConfigError)
    trace = "" if cause is None or plain else _trace_of(cause, whole=whole)
    return Failure((words.splitlines() or [""])[0], trace)


def _trace_of(error: BaseException, *, whole: bool) -> str:
    """The traceback from the application's first frame on: those before it are ours, and importlib's. If there is none,
    the error alone (a module that cannot be compiled), or `whole` traceback (an error of our own)."""
    found = error.__traceback__
    while found is not None and found.tb_frame.f_code.co_filename.startswith(_NOT_THE_APPLICATIONS):
        found = found.tb_next
    if found is None and whole:
        found = error.__traceback__
    return "".join(traceback.format_exception(type(error), error, found))
