"""Which kind of application it is: told by its class, by the marks of known protocols, or by its `shape`. Never calls
it.

What can be of one kind only is sure: `--as` with another kind is refused. What may be of several kinds is refused until
`--as` says which, except for a plain function of two arguments, which is taken for a handler.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from types import FunctionType
from typing import Any

from pyfanout.errors import ConfigError
from pyfanout.kind import Kind, is_socketserver, known_class, name_of
from pyfanout.servers import OWN, found
from pyfanout.shape import DEEPEST, Shape, attribute, inner_of, innermost, shape_of

COUNTS = {Kind.HANDLER: 2, Kind.COROUTINE: 2, Kind.WSGI: 2, Kind.ASGI: 3}
"""How many arguments each is called with."""

_WORDS = {
    Kind.HANDLER: "a blocking handler",
    Kind.COROUTINE: "a coroutine handler",
    Kind.SOCKETSERVER: "a class of socketserver",
    Kind.WSGI: "a WSGI application",
    Kind.ASGI: "an ASGI application",
    Kind.AIOHTTP: "an aiohttp.web.Application",
    Kind.TORNADO: "a tornado.web.Application",
    Kind.RUNNER: "a pyfanout.embed.Runner",
}

_ENVIRON = frozenset(("environ", "env"))
_START = frozenset(("start_response", "start_resp"))
_CONN = frozenset(("conn", "connection", "sock", "socket", "client", "client_socket", "client_sock"))
_ADDR = frozenset(("addr", "address", "client_address", "client_addr", "peer", "peername"))

_TYPES = {
    "WSGIEnvironment": Kind.WSGI,
    "StartResponse": Kind.WSGI,
    "dict": Kind.WSGI,  # no connection is one
    "Dict": Kind.WSGI,
    "socket": Kind.HANDLER,
    "SSLSocket": Kind.HANDLER,
    "StreamReader": Kind.COROUTINE,
    "StreamWriter": Kind.COROUTINE,
    "Scope": Kind.ASGI,
    "HTTPScope": Kind.ASGI,
    "Receive": Kind.ASGI,
    "Send": Kind.ASGI,
    "ASGIReceiveCallable": Kind.ASGI,
    "ASGISendCallable": Kind.ASGI,
}
"""What annotations tell."""

_AWAITABLES = frozenset(("Awaitable", "Coroutine", "CoroutineType", "Future", "Task"))

_MARKS = {"_asgi_single_callable": False, "_asgi_double_callable": True}
"""asgiref's: whether it is of ASGI 2."""

_GENERATOR = "is a generator, which does not run when called: remove its yield"
_ANY_OF_THEM = "--as wsgi, --as asgi or --as handler"
_FACTORY = "can be called without arguments, as a function that returns the application: --factory calls it first"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is found out about an application."""

    kind: Kind | None = None
    """None: it is of none, or may be of several."""
    sure: bool = False
    """It can be of no other."""
    guessed: bool = False
    """It is taken for that kind, because nothing speaks against it."""
    reason: str = ""
    """If there is no kind: why, and what to do. Words that follow the application's name."""


def kind_of(app: object, as_: str = "auto", server: str = "auto") -> Kind:
    """The kind that an application is of, or is served as. `as_` and `server` are the options' values.

    It is a function, a method, an object whose class has `__call__`, or a `functools.partial` of these; or of one of
    the classes named in `Kind`. Raises ConfigError if it cannot be called, if it cannot be what the options say, or, if
    they say nothing, if it is of no kind, or may be of several.
    """
    verdict = _verdict(app, set())
    kind = verdict.kind
    if as_ != "auto":
        kind = Kind(as_)
        if objection := _objection(app, kind, verdict):
            raise ConfigError(f"--as {as_} does not fit the application {_name(app)}: it {objection}")
    elif server != "auto" and (kind is None or verdict.guessed):
        kind = next((each for each in found(server).kinds if not _objection(app, each, verdict)), kind)
    if kind is None:
        raise ConfigError(f"the application {_name(app)} {verdict.reason}")
    chosen = None if server == "auto" else found(server)
    if chosen is not None and not chosen.patches and not _has_servers(kind) and kind not in chosen.kinds:
        served = " and ".join(each.value for each in chosen.kinds)
        raise ConfigError(f"server: {server} is for {served} applications, and {_name(app)} is {_WORDS[kind]}")
    return kind


def _has_servers(kind: Kind) -> bool:
    """Whether its servers are chosen by name, or it is one itself."""
    return kind is Kind.RUNNER or any(own.kinds[0] is kind for own in OWN.values())


def doubt(app: object) -> str:
    """What to log when a handler fails that may be something else; empty: nothing else is likely."""
    if not _verdict(app, set()).guessed:
        return ""
    arguments = ", ".join(shape_of(app).names[:2])
    return (
        f". {_name(app)}({arguments}) is taken for a handler(conn, addr), as nothing tells what it is; if it is a WSGI"
        " application: --as wsgi"
    )


def is_double_callable(app: object) -> bool:
    """An ASGI 2 application: `app(scope)` gives what is then called with `receive` and `send`."""
    mark = _mark(app)
    if mark is not None:
        return _MARKS[mark]
    inner = innermost(app)
    if isinstance(inner, type):
        return _makes_callables_of_two(inner)
    shape = shape_of(app)
    return shape.known and shape.takes(1) and not shape.takes(3)


# ---- what it is ------------------------------------------------------------------------------------------------------


def _name(app: object) -> str:
    inner = innermost(app)
    return name_of(inner) if attribute(inner, "__qualname__") else type(inner).__qualname__


def _mark(app: object) -> str | None:
    for name in _MARKS:
        if attribute(app, name) is True:  # not merely true: a mock has any attribute
            return name
    return None


def _verdict(app: Any, seen: set[int]) -> Verdict:
    """`seen` are wrappers around it, by id. Raises ConfigError if it cannot be called."""
    if known := known_class(app):
        return Verdict(known, sure=True)
    if not callable(app):
        raise ConfigError(f"the application must be a function, not {type(app).__name__}")
    inner = innermost(app)
    if is_socketserver(inner):
        return Verdict(Kind.SOCKETSERVER, sure=True)
    if _mark(app) is not None:
        return Verdict(Kind.ASGI, sure=True)
    shape = shape_of(app)
    if shape.is_async_generator:
        return Verdict(reason=_GENERATOR)
    if isinstance(inner, type):
        return _of_class(inner, shape)
    told = _told(shape)
    if told is None and (shape.least < 2 or not isinstance(inner, FunctionType)):
        told = _within(app, shape, seen)
    if told is not None:
        return told
    return _of_async(shape) if shape.is_async else _of_plain(shape)


def _told(shape: Shape) -> Verdict | None:
    """What its arguments tell, by their names and annotations; None: nothing."""
    first, second, third = (*shape.names[:3], "", "", "")[:3]
    kinds = {_TYPES[word] for word in shape.types[:3] if word in _TYPES}
    kind = kinds.pop() if len(kinds) == 1 else None
    if (first, second) == ("receive", "send"):
        return Verdict(
            reason="takes receive and send, as the object of an ASGI 2 application for one request: name its class"
        )
    if shape.takes(3) and not shape.is_generator and (first == "scope" or kind is Kind.ASGI):
        return Verdict(Kind.ASGI, sure=not shape.takes(2) or (second, third) == ("receive", "send"))
    if first == "scope" and shape.takes(1) and not (shape.takes(2) or shape.is_async or shape.is_generator):
        return Verdict(Kind.ASGI, sure=True)  # of ASGI 2
    if not shape.takes(2):
        return None

    def tells(one: bool, other: bool, wanted: Kind) -> bool:
        """By one word; of what can be called without arguments, as a factory is, by both names."""
        return (one and other) if shape.takes(0) else one or other or kind is wanted

    if tells(first in _ENVIRON, second in _START, Kind.WSGI):
        if shape.is_async:
            return Verdict(reason="is async, but takes the arguments of a WSGI application, which no server awaits")
        return Verdict(Kind.WSGI, sure=first in _ENVIRON and second in _START)
    if tells(first == "reader", second == "writer", Kind.COROUTINE):
        if shape.is_async or shape.wraps_async or shape.returns in _AWAITABLES:
            return Verdict(Kind.COROUTINE, sure=shape.is_async and not shape.takes(3))
        return Verdict(
            reason="takes a reader, but is not async: write async def, or --as coroutine if it returns an awaitable"
        )
    if tells(first in _CONN, second in _ADDR, Kind.HANDLER) and not shape.is_async:
        return Verdict(reason=_GENERATOR) if shape.is_generator else Verdict(Kind.HANDLER)
    return None


def _within(app: Any, shape: Shape, seen: set[int]) -> Verdict | None:
    """What the callable is that it wraps, if it can be called in the same way; None: that does not tell."""
    seen.add(id(app))
    if len(seen) > DEEPEST:
        return None
    for inner in inner_of(app):
        if id(inner) in seen:
            continue
        try:
            kind = _verdict(inner, seen).kind
        except ConfigError:
            continue
        fits = kind is Kind.ASGI or (kind is Kind.WSGI and not shape.is_async)
        if kind is not None and fits and shape.takes(COUNTS[kind]):
            return Verdict(kind)
    return None


def _of_async(shape: Shape) -> Verdict:
    if shape.takes(3) and not shape.takes(2):
        return Verdict(Kind.ASGI, sure=True)
    if shape.takes(3) and shape.least < 2:
        return Verdict(reason=f"is async and takes {shape.count}, which tells no kind: --as asgi or --as coroutine")
    if shape.takes(2) and shape.takes(0) and shape.names:
        return Verdict(
            reason=f"is async and takes {shape.count}, which tells no kind: --factory if it returns the application,"
            " else --as coroutine"
        )
    if shape.takes(2):  # a third one, which has a default, is for its own use
        return Verdict(Kind.COROUTINE, sure=not shape.takes(3))
    if shape.takes(0):
        return Verdict(reason=_FACTORY)
    if shape.takes(1):
        return Verdict(
            reason="is async and takes one argument, where a coroutine handler takes a reader and a writer; a handler"
            " of one stream is for pyfanout.embed.anyio.Runner or trio.Runner"
        )
    return Verdict(reason=f"is async and takes {shape.count}: a coroutine handler takes two, an ASGI application three")


def _of_plain(shape: Shape) -> Verdict:
    if shape.takes(3) and not shape.takes(2):
        if shape.wraps_async or shape.returns in _AWAITABLES:
            return Verdict(Kind.ASGI)
        return Verdict(
            reason=f"takes {shape.count}, where a handler and a WSGI application take two; for an ASGI application that"
            " returns an awaitable: --as asgi"
        )
    if not shape.takes(2):
        if shape.is_loose:
            return Verdict(reason=f"wraps what takes {shape.count}, which tells no kind: {_ANY_OF_THEM}")
        if shape.takes(0):
            return Verdict(reason=_FACTORY)
        return Verdict(
            reason=f"takes {shape.count}: a handler and a WSGI application take two, an ASGI application three"
        )
    if shape.is_generator:  # as no other kind is
        return Verdict(Kind.WSGI)
    if shape.least < 2:
        factory = "--factory if it returns the application, else " if shape.names and shape.takes(0) else ""
        return Verdict(reason=f"takes {shape.count}, which tells no kind: {factory}{_ANY_OF_THEM}")
    if shape.wraps_async:
        return Verdict(
            reason="is a plain function around an async one: --as coroutine if it returns what that returns, --as"
            " handler if it waits for it"
        )
    return Verdict(Kind.HANDLER, guessed=True)


def _of_class(app: type, shape: Shape) -> Verdict:
    """Its call makes an object."""
    first, second = (*shape.names[:2], "", "")[:2]
    if shape.takes(3) and not shape.takes(2) and hasattr(app, "__await__"):
        return Verdict(Kind.ASGI, sure=True)
    if shape.known and shape.takes(2) and shape.least == 2:
        if hasattr(app, "__iter__"):
            return Verdict(Kind.WSGI, sure=first in _ENVIRON and second in _START)
        told = _told(shape)
        if told is not None and told.kind is Kind.HANDLER:  # it serves while it is made
            return told
    if shape.takes(1) and not shape.takes(0) and _makes_callables_of_two(app):
        return Verdict(Kind.ASGI, sure=first == "scope")  # of ASGI 2
    if any("__call__" in vars(base) for base in app.__mro__):
        if shape.takes(0):
            return Verdict(reason="is a class, whose objects can be called: --factory makes one, and serves that")
        return Verdict(reason=f"is a class that is made with {shape.count}: name an object of it")
    return Verdict(reason=f"is a class that is made with {shape.count}, and none of those that can be served")


def _makes_callables_of_two(app: type) -> bool:
    call = inspect.getattr_static(app, "__call__", None)
    if not isinstance(call, FunctionType):
        return False
    shape = shape_of(call)  # it is given the object, too
    return shape.takes(3) and not shape.takes(4)


# ---- what it cannot be -----------------------------------------------------------------------------------------------


def _objection(app: Any, wanted: Kind, verdict: Verdict) -> str:
    """Why it can surely not be served as `wanted`, in words that follow "it "; empty: perhaps it can."""
    if verdict.sure and verdict.kind is not None and verdict.kind is not wanted:
        return f"is {_WORDS[verdict.kind]}, --as {verdict.kind.value}"
    if wanted not in COUNTS:
        return "" if verdict.kind is wanted or _may_be(app, wanted) else f"is not {_WORDS[wanted]}"
    shape = shape_of(app)
    if shape.is_async_generator or (shape.is_generator and wanted is not Kind.WSGI):
        return _GENERATOR
    if wanted is Kind.ASGI and is_double_callable(app):
        return ""
    if not (shape.takes(COUNTS[wanted]) or shape.is_loose):
        return verdict.reason or f"takes {shape.count}, where {_WORDS[wanted]} takes {COUNTS[wanted]}"
    if shape.is_async and wanted in (Kind.HANDLER, Kind.WSGI):
        return "is async: --as coroutine or --as asgi"
    return ""


def _may_be(app: Any, wanted: Kind) -> bool:
    """Of the kinds that are told by their class: what else their servers take."""
    match wanted:
        case Kind.TORNADO:  # a callback, or a delegate
            return hasattr(app, "start_request") or (callable(app) and shape_of(app).takes(1))
        case Kind.SOCKETSERVER:  # a function that returns a server
            return callable(app) and not shape_of(app).is_async
        case Kind.RUNNER:
            return hasattr(app, "serve") and hasattr(app, "check")
        case _:
            return False
