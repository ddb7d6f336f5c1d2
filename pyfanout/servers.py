"""Which servers `--server` can name: those that come with pyfanout, and those that packages register.

A package registers one by an entry point of GROUP. For a name of pyfanout's own nothing is looked up, because
importlib.metadata takes 30 ms to import. A registered server is imported when it is used. Where pyfanout's own are: see
`embed`.
"""

from __future__ import annotations

import functools
import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from pyfanout.errors import ConfigError, LoadError
from pyfanout.kind import Kind
from pyfanout.options import Values

if TYPE_CHECKING:
    from collections.abc import Iterable
    from importlib.metadata import EntryPoint

GROUP = "pyfanout.servers"


@dataclass(frozen=True, slots=True)
class Own:
    """A server of pyfanout's own: the module of `pyfanout.embed` with its name has its `Runner`."""

    name: str
    kinds: tuple[Kind, ...]
    """What it serves."""
    patches: bool = False
    """It patches the worker before that imports the application."""


OWN = {
    own.name: own
    for own in (
        Own("uvicorn", (Kind.ASGI,)),
        Own("hypercorn", (Kind.ASGI,)),
        Own("waitress", (Kind.WSGI,)),
        Own("cheroot", (Kind.WSGI,)),
        Own("gevent", (Kind.WSGI, Kind.HANDLER), patches=True),
        Own("wsgiref", (Kind.WSGI,)),
    )
}
"""By name. The first of a kind is its default, if pyfanout itself does not serve that."""


@dataclass(frozen=True, slots=True)
class Registered:
    """A server that a package has registered."""

    name: str
    entry: EntryPoint
    patches = False

    @property
    def origin(self) -> str:
        """Where it is from, in words: "mine:Runner of my-server 1.0"."""
        package = self.entry.dist
        return self.entry.value + (f" of {package.name} {package.version}" if package else "")

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """What it serves, as its runner says. Raises LoadError."""
        runner = self.runner()
        try:
            kinds = tuple(Kind(kind) for kind in runner.kinds)
        except (ValueError, TypeError):
            kinds = ()
        if not kinds or isinstance(runner.kinds, str) or Kind.RUNNER in kinds:
            known = ", ".join(kind.value for kind in Kind if kind is not Kind.RUNNER)
            raise self._error(f"its kinds, {runner.kinds!r}, have to be some of {known}, such as kinds = ('wsgi',)")
        return kinds

    def runner(self) -> Any:
        """Its class of runners, imported now. Raises LoadError, with a `__cause__` if its module fails."""
        module, _, attribute = self.entry.value.partition("[")[0].partition(":")
        module = module.strip()
        try:
            runner: Any = importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{module}.".startswith(f"{error.name}."):
                raise self._failed(error) from error  # it exists, and imports what does not
            raise self._error(f"there is no module named {error.name!r}: install the package again") from None
        except (Exception, SystemExit) as error:  # whatever it does at import
            raise self._failed(error) from error
        for name in attribute.strip().split("."):
            try:
                runner = getattr(runner, name)
            except AttributeError:
                words = f"{module!r} has no such attribute: the entry point has to name a class, as in {module}:Runner"
                raise self._error(words) from None
        if not isinstance(runner, type) or not all(hasattr(runner, name) for name in ("check", "serve", "kinds", "of")):
            raise self._error("it is not a subclass of pyfanout.embed.Runner, which it has to be")
        return runner

    def _failed(self, error: BaseException) -> LoadError:
        reason = (str(error).splitlines() or [""])[0]
        return self._error(f"its import failed: {type(error).__name__}{reason and ': '}{reason}")

    def _error(self, words: str) -> LoadError:
        return LoadError(f"server: {self.name} is {self.origin}; {words}")


Server: TypeAlias = Own | Registered


def find(name: str) -> Server | None:
    """The server of that name; None: there is none. Raises ConfigError if two packages have registered it, or if what
    is installed cannot be read."""
    if name in OWN:
        return OWN[name]
    entries = _entries().get(name, ())
    if len({entry.value for entry in entries}) > 1:
        origins = " and ".join(Registered(name, entry).origin for entry in entries)
        raise ConfigError(f"server: {name} is registered twice, as {origins}: uninstall one of the packages")
    return Registered(name, entries[0]) if entries else None


def found(name: str) -> Server:
    """The same, for a value of the option, which was checked. Raises ConfigError if it has gone."""
    server = find(name)
    if server is None:
        raise ConfigError(f"server: no package registers {name} any more")
    return server


def patches(name: str) -> bool:
    """Whether a server patches the worker before that imports the application."""
    return name in OWN and OWN[name].patches


def read(value: object) -> str:
    """The value of the option. Raises ValueError (ConfigError is one) if there is no such server."""
    text = value.strip().lower() if isinstance(value, str) else ""
    if text != "auto" and (not text or find(text) is None):
        raise ValueError("no such server")
    return text


def registered() -> list[str]:
    """For a list of servers: each registered name, and where it is from."""
    return [
        f"{name} ({Registered(name, entry).origin}{', not used: pyfanout has a server of that name' * (name in OWN)})"
        for name, entries in sorted(_entries().items())
        for entry in entries
    ]


def also_allowed() -> str:
    """Continues a list of pyfanout's own servers."""
    try:
        names = [name for name in _entries() if name not in OWN]
    except ConfigError as error:
        return f" ({error})"
    return "".join(f", {name}" for name in sorted(names))


@functools.cache
def _entries() -> dict[str, list[EntryPoint]]:
    """What packages have registered, by name in small letters. Raises ConfigError."""
    from importlib import metadata  # noqa: PLC0415 - 30 ms

    try:
        entries: Iterable[EntryPoint] = metadata.entry_points(group=GROUP)
        known: dict[str, list[EntryPoint]] = {}
        for entry in entries:
            known.setdefault(entry.name.lower(), []).append(entry)
    except Exception as error:  # whatever importlib.metadata raises for a file that it cannot read
        raise ConfigError(f"server: the entry points of {_broken(metadata)} cannot be read ({error})") from None
    return known


def _broken(metadata: Any) -> str:
    """Which package has entry points that cannot be read, and what to do."""
    for package in metadata.distributions():
        try:
            list(package.entry_points)
        except Exception:  # the one that `_entries` has met: of any kind
            return f"{package.name}, in {package.locate_file('')}: install it again, or uninstall it; they"
    return "a package"


_OWN_NAMES = ("auto", *OWN)
NAMES = Values("one of " + ", ".join(_OWN_NAMES), "{" + ",".join(_OWN_NAMES) + "}", read, also_allowed)
"""The values of the option `server`."""
