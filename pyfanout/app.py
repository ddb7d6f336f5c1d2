"""How a worker gets its handler: the import of `module:attr`, and whether it is blocking or asyncio.

Owns the form of the spec and the words for what can go wrong with it. Never calls the handler. `import_from`
runs in the worker after the fork, so that a reload sees new code; `check_spec` runs before anything is
opened.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import inspect
import os
import sys
from enum import Enum
from typing import TYPE_CHECKING, TypeAlias, cast

from pyfanout.errors import ConfigError, LoadError

if TYPE_CHECKING:  # asyncio is the asyncio workers' affair
    import asyncio
    import socket
    from collections.abc import Awaitable, Callable
    from typing import Any

BlockingHandler: TypeAlias = "Callable[[socket.socket, Any], object]"
AsyncHandler: TypeAlias = "Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[object]]"
Handler: TypeAlias = "BlockingHandler | AsyncHandler"


class Kind(Enum):
    """How a handler is run."""

    BLOCKING = "blocking"
    """`handler(conn, addr)`, one at a time on each thread."""
    ASYNCIO = "asyncio"
    """`async def handler(reader, writer)`, many at once on a loop."""


def kind_of(handler: object) -> Kind:
    """ASYNCIO for what `async def` made, BLOCKING for all else that can be called.

    It may be a function, a method, an object whose class has `__call__`, or a `functools.partial` of these.
    Raises ConfigError if it cannot be called, or if it is a generator: a call would run nothing of it.
    """
    if not callable(handler):
        raise ConfigError(f"the handler must be a function, not {type(handler).__name__}")
    inner: object = handler
    while isinstance(inner, functools.partial):
        inner = inner.func
    # `__call__` of its class, not its own: to call a class is to make an object, whatever the object can do.
    bodies = (inner, getattr(type(inner), "__call__", None))  # noqa: B004 - wanted is the function
    if any(inspect.isgeneratorfunction(body) or inspect.isasyncgenfunction(body) for body in bodies):
        raise ConfigError(
            f"the handler {_name(inner)} is a generator, which does not run when called: remove its yield"
        )
    return Kind.ASYNCIO if any(map(inspect.iscoroutinefunction, bodies)) else Kind.BLOCKING


def check_spec(spec: str) -> tuple[str, str]:
    """The module and the attribute that `module:attr` names. Raises ConfigError if it has another form."""
    module, colon, attribute = spec.partition(":")
    if module.endswith(".py") or "/" in module:
        hint = f"name the module, not its file, such as {_module_of(module)}:{attribute or 'handler'}"
    elif colon and all(part.isidentifier() for name in (module, attribute) for part in name.split(".")):
        return module, attribute
    else:
        hint = "write module:attr, such as app:handler"
    raise ConfigError(f"the application {spec!r} cannot be found by that name: {hint}")


def import_from(spec: str) -> Handler:
    """Import what `module:attr` names; `attr` may have dots. The current folder is searched first.

    Raises ConfigError if the spec is malformed, and LoadError if there is no such module, if its import fails
    (then the exception is the `__cause__`, for its traceback), if it has no such attribute, or if that cannot
    be called.
    """
    module, attribute = check_spec(spec)
    folder = _search_current_folder()
    try:
        found: object = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise _failed_import(module, error) from error  # it exists, and imports what does not
        raise LoadError(f"no module named {error.name!r} in {folder} or on sys.path") from None
    except (Exception, SystemExit) as error:  # whatever the application does at import
        raise _failed_import(module, error) from error
    path = module
    for name in attribute.split("."):
        try:
            found = getattr(found, name)
        except AttributeError:
            raise LoadError(f"{path!r} has no attribute {name!r}{_suggest(found, name)}") from None
        path += f".{name}"
    if not callable(found):
        raise LoadError(f"{spec!r} is not a function: it is of type {type(found).__name__}")
    return cast("Handler", found)


def _search_current_folder() -> str:
    """A console script's `sys.path` starts with the folder of the script, not with the one we are in."""
    try:
        folder = os.getcwd()
    except FileNotFoundError:  # it was deleted under us; an installed module can still be found
        return "the current folder (deleted)"
    if sys.path[:1] != [folder]:
        sys.path.insert(0, folder)
    return folder


def _failed_import(module: str, error: BaseException) -> LoadError:
    reason = (str(error).splitlines() or [""])[0]
    return LoadError(f"the import of {module!r} failed: {type(error).__name__}" + (f": {reason}" if reason else ""))


def _suggest(owner: object, missing: str) -> str:
    """The callable in `owner` that was probably meant, or else those that were defined there."""
    known = {name: value for name, value in getattr(owner, "__dict__", {}).items() if callable(value)}
    close = difflib.get_close_matches(missing, known, n=1)
    if close:
        return f"; did you mean {close[0]}?"
    home = getattr(owner, "__module__", None) or getattr(owner, "__name__", None)
    own = [
        name for name, value in known.items() if not name.startswith("_") and getattr(value, "__module__", None) == home
    ]
    return f"; it has {', '.join(own[:8])}" if own else ""


def _module_of(file: str) -> str:
    return os.path.normpath(file).removesuffix(".py").lstrip("./").replace("/", ".") or "app"


def _name(value: object) -> str:
    return getattr(value, "__qualname__", type(value).__qualname__)
