"""How a worker gets its application: the import of `module:attr`.

Owns the form of the spec and the words for what can go wrong with it. `import_from` runs in the worker after the fork,
so that a reload sees new code; `check_spec` runs before anything is opened.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import inspect
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from pyfanout.errors import ConfigError, LoadError
from pyfanout.folders import Folders
from pyfanout.kind import ASGIApp, AsyncHandler, BlockingHandler, SocketServer, WSGIApp, known_class, name_of

if TYPE_CHECKING:
    from pyfanout.embed.runner import Runner

App: TypeAlias = "BlockingHandler | AsyncHandler | WSGIApp | ASGIApp | SocketServer | Runner"
"""What can be served."""


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


class Given:
    """Loads an application that is there already: none of its code runs."""

    def __init__(self, app: App) -> None:
        self._app = app

    def __call__(self) -> App:
        return self._app


def loader_of(app: App | str, folders: Folders, *, factory: bool) -> Callable[[], App]:
    """What a worker calls for its application: `app` itself, what it returns (`factory`), or the same of "module:attr".
    Raises ConfigError if that is malformed."""
    if isinstance(app, str):
        check_spec(app)
        return functools.partial(import_from, app, folders, factory=factory)
    load = cast("Callable[[], App]", app) if factory else Given(app)
    if folders.chdir is None and folders.app_dir is None:
        return load  # the program is where it wants to be

    def enter_and_load() -> App:
        folders.enter()
        return load()

    return enter_and_load


def import_from(spec: str, folders: Folders | None = None, *, factory: bool = False) -> App:
    """Import what `module:attr` names; `attr` may have dots. The folder of the application, by default the current one,
    is entered, and searched first. `factory`: it is a function without arguments that returns the application.

    Raises ConfigError if the spec is malformed, and LoadError if there is no such module, if its import or the factory
    fails (then the exception is the `__cause__`, for its traceback), if it has no such attribute, or if that cannot be
    called.
    """
    module, attribute = check_spec(spec)
    folder = (folders or Folders.here()).enter() or "the current folder (deleted)"
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
    if factory:
        found = _call(found, spec)
        if inspect.iscoroutine(found):  # an async factory: the caller that has a loop awaits it
            return cast("App", found)
    if not callable(found) and known_class(found) is None:
        what = f"what {spec!r} returns" if factory else repr(spec)
        raise LoadError(f"{what} is not a function: it is of type {type(found).__name__}")
    return cast("App", found)


def _failed_import(module: str, error: BaseException) -> LoadError:
    return LoadError(f"the import of {module!r} failed: {_in_words(error)}")


def _in_words(error: BaseException) -> str:
    reason = (str(error).splitlines() or [""])[0]
    return type(error).__name__ + (f": {reason}" if reason else "")


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


def _call(factory: Any, spec: str) -> object:
    try:
        return factory()
    except (Exception, SystemExit) as error:
        raise LoadError(f"the factory {name_of(factory)} of {spec!r} failed: {_in_words(error)}") from error
