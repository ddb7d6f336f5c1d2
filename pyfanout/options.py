"""What an option is: its name, the values that it takes, how one is read, and the words for all of that.

Knows no option: `config` has those. Raises ConfigError, in one line.
"""

from __future__ import annotations

import difflib
import inspect
import ipaddress
import math
import operator
import os
import re
import socket
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, Field, dataclass, fields
from typing import Any, TypeAlias

from pyfanout.errors import ConfigError
from pyfanout.host import cpus

Network: TypeAlias = "ipaddress.IPv4Network | ipaddress.IPv6Network"

MAX_WORKERS = 1024  # half of the seats in the core: each may have a successor
MAX_THREADS = 256  # per worker; more blocking handlers than this belong on an asyncio loop
MAX_SECONDS = 1_000_000  # eleven days; keeps every deadline far inside 64 bits of nanoseconds
MAX_COUNT = 2**31 - 1  # a C int
PREFIX = "PYFANOUT_"  # of the variables


@dataclass(frozen=True, slots=True)
class Values:
    """A set of values: how one is read, and in words which they are."""

    allowed: str
    """Ends the sentence "workers: 'many' is not ..."."""
    metavar: str
    """Stands for the value in `--help`."""
    read: Callable[[Any], object]
    """From a value of the right type, or its text, to the value; or an error if it is neither."""
    also: Callable[[], str] = str
    """Continues `allowed` in an error: what is found out only then."""


@dataclass(frozen=True, slots=True)
class Option:
    """What is known of one field of `Config` besides its type; kept in the field's metadata."""

    name: str
    values: Values
    help: str
    short: str | None
    """The short flag, such as `-w`."""
    default: str
    """The default in words."""
    python_only: bool
    """It cannot be written as text: it is neither a flag nor a variable."""

    @property
    def word(self) -> str:
        """Its name where Python's keywords are no matter: `as` for `as_`."""
        return self.name.rstrip("_")

    @property
    def flag(self) -> str:
        return "--" + self.word.replace("_", "-")

    @property
    def variable(self) -> str:
        return PREFIX + self.word.upper()

    def given(self, environ: Mapping[str, str]) -> bool:
        """Whether its variable says something: one that is blank does not, as compose files and CI say "not set"."""
        return not self.python_only and bool(environ.get(self.variable, "").strip())

    def read(self, value: object, source: str | None = None) -> object:
        """The value that `value` stands for. Raises ConfigError, naming `source`, if it is not allowed."""
        try:
            return self.values.read(value)
        except ConfigError:  # in words of its own
            raise
        except (ValueError, TypeError, OverflowError):
            origin = f" (from {source})" if source else ""
            allowed = self.values.allowed + self.values.also()
            raise ConfigError(f"{self.word}: {_one_line(value)}{origin} is not {allowed}") from None


def whole(low: int, high: int = MAX_COUNT) -> Values:
    def read(value: object) -> int:
        if isinstance(value, bool):
            raise TypeError("a truth value is not a number")
        number = _digits(value) if isinstance(value, str) else operator.index(value)  # type: ignore[arg-type]
        if not low <= number <= high:
            raise ValueError("out of range")
        return number

    return Values(f"a number from {low} to {high}", "N", read)


def _digits(text: str) -> int:
    """`int()` would take `1_000` and the digits of every script as well."""
    text = text.strip()
    if not (text.isascii() and text.isdecimal()):
        raise ValueError("not digits")
    return int(text)


_DECIMAL = re.compile(r"(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)


def _decimal(text: str) -> float:
    """The same for `float()`: `1.5` and `1e3`, and neither `1_0.5` nor `+1`."""
    text = text.strip()
    if not _DECIMAL.fullmatch(text):
        raise ValueError("not a decimal number")
    return float(text)


def auto_workers() -> int:
    return min(cpus.available(), MAX_WORKERS)


def worker_count() -> Values:
    number = whole(1, MAX_WORKERS)

    def read(value: object) -> object:
        return auto_workers() if is_auto(value) else number.read(value)

    return Values(f'{number.allowed} or "auto"', "N", read)


def is_auto(value: object) -> bool:
    return isinstance(value, str) and value.strip().lower() == "auto"


def seconds(*, zero: bool) -> Values:
    def read(value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise TypeError("not a number")
        seconds = _decimal(value) if isinstance(value, str) else float(value)
        if not math.isfinite(seconds) or not 0 <= seconds <= MAX_SECONDS or (seconds == 0 and not zero):
            raise ValueError("out of range")
        return seconds

    least = "from 0" if zero else "above 0"
    return Values(f"a number of seconds {least} to {MAX_SECONDS}", "SECONDS", read)


def one_of(names: Iterable[str], kind: Callable[[str], str] = str) -> Values:
    known = tuple(str(name) for name in names)

    def read(value: object) -> str:
        text = value.strip().lower() if isinstance(value, str) else None
        if text not in known:
            raise ValueError("unknown name")
        return kind(text)

    return Values("one of " + ", ".join(known), "{" + ",".join(known) + "}", read)


def _read_switch(value: object) -> bool:
    if isinstance(value, bool):
        return value
    words = {
        "1": True,
        "true": True,
        "yes": True,
        "on": True,
        "0": False,
        "false": False,
        "no": False,
        "off": False,
    }
    text = value.strip().lower() if isinstance(value, str) else None
    if text not in words:
        raise ValueError("not a switch")
    return words[text]


def _read_path(value: object) -> str:
    if not isinstance(value, str | os.PathLike):
        raise TypeError("not a path")
    path = os.fspath(value)
    if not isinstance(path, str) or not path or "\0" in path:
        raise ValueError("not a path")
    return path


class Mode(int):
    """Permission bits of a file, which read as `chmod` has them."""

    def __str__(self) -> str:
        return f"{self:03o}"


def _read_mode(value: object) -> Mode:
    if isinstance(value, str):
        digits = value.strip().removeprefix("0o")
        if not (digits.isascii() and digits.isdecimal()):
            raise ValueError("not digits")
        value = int(digits, 8)
    if isinstance(value, bool):
        raise TypeError("a truth value is not a mode")
    mode = Mode(operator.index(value))  # type: ignore[arg-type]  # else TypeError, as wanted
    if not 0 <= mode <= 0o777:
        raise ValueError("out of range")
    return mode


def _read_owner(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("not a name")
    text = value.strip()
    user, colon, group = text.partition(":")
    if not (user or group) or (colon and not group) or ":" in group:
        raise ValueError("not an owner")
    return text


def _read_binds(value: object) -> tuple[str | socket.socket, ...]:
    """Text is split at commas; a list is taken as it is, so that it can hold a path with a comma in it."""
    parts: Iterable[object]
    if isinstance(value, str):
        parts = [part for part in value.split(",") if part.strip()]
    elif isinstance(value, socket.socket):
        parts = [value]
    elif isinstance(value, Iterable) and not isinstance(value, bytes):
        parts = value
    else:
        raise TypeError("not addresses")
    binds: list[str | socket.socket] = []
    for part in parts:
        if not isinstance(part, str | socket.socket):
            raise TypeError("not an address")
        binds.append(part if isinstance(part, socket.socket) else part.strip())
    if not binds or "" in binds:
        raise ValueError("no address")
    return tuple(binds)


def _read_callable(value: object) -> object:
    if not callable(value):
        raise TypeError("not callable")
    return value


def _read_tls(value: object) -> object:
    if not callable(value) and type(value).__module__ != "ssl":  # not isinstance: ssl takes 10 ms to import
        raise TypeError("neither a context nor a function")
    return value


BINDS = Values("an address, an open socket, or a list of these", "ADDRESS", _read_binds)
SWITCH = Values("one of true, false, yes, no, on, off, 1, 0", "SWITCH", _read_switch)
PATH = Values("the path of a file", "PATH", _read_path)
MODE = Values('a mode in octal, such as "660"; as a number, 0o660', "MODE", _read_mode)
OWNER = Values("a user, user:group or :group", "OWNER", _read_owner)
FOLDER = Values("the path of a folder", "PATH", _read_path)


def _read_networks(value: object) -> tuple[Network, ...]:
    parts = [part for part in value.split(",") if part.strip()] if isinstance(value, str) else value
    if not isinstance(parts, Iterable) or isinstance(parts, bytes):
        raise TypeError("not networks")
    networks = tuple(ipaddress.ip_network(str(part).strip()) for part in parts)
    if not networks:
        raise ValueError("no network")
    return networks


NETWORKS = Values("a network such as 10.0.0.0/8, or a list of these", "NETWORKS", _read_networks)
TLS = Values("an ssl.SSLContext, or a function that returns one", "CONTEXT", _read_tls)
HOOK = Values("a function of one argument, the worker", "FUNCTION", _read_callable)


def described(
    values: Values,
    help: str,
    *,
    short: str | None = None,
    default: str | None = None,
    python_only: bool = False,
) -> dict[str, object]:
    """The metadata of a field. `default` is for one whose default does not speak for itself."""
    return {"values": values, "help": help, "short": short, "default": default, "python_only": python_only}


def options_of(config: type) -> dict[str, Option]:
    """Every option by name: of the fields of this dataclass, its own before those of the class that it extends."""
    own = inspect.get_annotations(config)
    each_own_first = sorted(fields(config), key=lambda each: each.name not in own)
    return {each.name: _option_of(each) for each in each_own_first}


def _option_of(each: Field[Any]) -> Option:
    meta = each.metadata
    default = meta["default"] or (text_of(each.default) if each.default is not MISSING else "")
    return Option(each.name, meta["values"], meta["help"], meta["short"], default, meta["python_only"])


def check(config: Any) -> None:
    """Replace each field of this dataclass, at its birth, by the value that it stands for. Raises ConfigError."""
    for each in fields(config):
        value = getattr(config, each.name)
        if value is not None or each.default is not None:
            object.__setattr__(config, each.name, _option_of(each).read(value))  # frozen from here on


def did_you_mean(name: str, known: Iterable[str], prefix: str = "") -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {prefix}{close[0]}?" if close else ""


def _one_line(value: object) -> str:
    """`repr`, made fit for an error that is one line whatever it was given."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 200 else text[:197] + "..."


def text_of(value: object) -> str:
    """A value as one would write it on the command line."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return ", ".join(map(text_of, value))
    if isinstance(value, socket.socket):
        return f"socket fd={value.fileno()}"
    if isinstance(value, float):
        return f"{value:.12g}"
    return str(value)
