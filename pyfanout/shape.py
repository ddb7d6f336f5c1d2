"""The shape of a callable: how it may be called, and what its call gives. Found without calling it.

Knows what wraps other callables (partials, methods, `__wrapped__`, middleware). What a shape means is `kind`'s affair.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

INNER = ("__wrapped__", "app", "_app", "application", "wsgi_app", "asgi_app", "wrapped", "_wrapped", "server")
"""Where wrappers keep what they wrap."""

DEEPEST = 32
"""Wrappers within wrappers. Some objects have every attribute, without end."""


@dataclass(frozen=True, slots=True)
class Shape:
    """How something may be called."""

    names: tuple[str, ...] = ()
    """Of the arguments that may be given by position, without leading underscores."""
    types: tuple[str, ...] = ()
    """Their annotations: the last word of each, such as "socket" for `socket.socket | None`. Empty: none."""
    returns: str = ""
    """The same of what it returns."""
    least: int = 0
    most: float = float("inf")
    """How many arguments it may be called with, by position. Infinite: it takes `*args`."""
    by_name: bool = False
    """It needs an argument that can be given by its name only."""
    known: bool = True
    """False: it is built in, or compiled, and does not tell its arguments."""
    is_async: bool = False
    """Its call gives an awaitable."""
    wraps_async: bool = False
    """It is a plain function around one that is async, and may return what that returns, or wait for it."""
    is_loose: bool = False
    """It takes any arguments itself, and wraps what does not: these arguments are those of what it wraps."""
    is_generator: bool = False
    is_async_generator: bool = False

    def takes(self, count: int) -> bool:
        """Whether it may be called with so many arguments, as far as is known."""
        return not self.known or (not self.by_name and self.least <= count <= self.most)

    @property
    def count(self) -> str:
        """The number of its arguments in words."""
        if not self.known:
            return "an unknown number of arguments"
        if self.by_name:
            return "an argument that must be given by name"
        if self.most == float("inf"):
            return "any number of arguments"
        if self.most == self.least:
            return f"{_in_words(self.least) if self.least else 'no'} argument{'s' * (self.least != 1)}"
        return f"{_in_words(self.least)} to {_in_words(int(self.most))} arguments"


def _in_words(number: int) -> str:
    words = ("none", "one", "two", "three")
    return words[number] if number < len(words) else str(number)


def shape_of(app: Any) -> Shape:
    """Of any callable; of a class it is that of making an instance."""
    bodies = list(_bodies(app))
    # To call a class is to make an object, whatever the object can do.
    is_async = not isinstance(innermost(app), type) and any(map(_is_coroutine_function, bodies))
    wrapped = list(_wrapped(app))
    how: dict[str, Any] = {
        "is_async": is_async,
        "wraps_async": not is_async and any(_is_coroutine_function(body) for each in wrapped for body in _bodies(each)),
        "is_loose": _takes_anything(app),
        "is_generator": any(_is(inspect.isgeneratorfunction, body) for body in bodies),
        "is_async_generator": any(_is(inspect.isasyncgenfunction, body) for body in bodies),
    }
    signature = _signature(app)
    if signature is None:
        return Shape(known=False, **how)
    parameters = list(signature.parameters.values())
    given = [each for each in parameters if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)]
    any_number = any(each.kind is each.VAR_POSITIONAL for each in parameters)
    least = sum(each.default is each.empty for each in given)
    return Shape(
        names=tuple(each.name.lstrip("_") for each in given),
        types=tuple(_last_word(each.annotation) for each in given),
        returns=_last_word(signature.return_annotation),
        least=least,
        most=float("inf") if any_number else len(given),
        by_name=any(each.kind is each.KEYWORD_ONLY and each.default is each.empty for each in parameters),
        **how,
    )


def innermost(app: Any) -> Any:
    """What a partial calls in the end."""
    while isinstance(app, functools.partial):
        app = app.func
    return app


def call_of(app: Any) -> Any:
    """The `__call__` that a call of an object runs: its class's, bound to it; that may be a slot with another function
    in it for each object. None: the class does not say."""
    found = inspect.getattr_static(type(app), "__call__", None)
    bind = getattr(type(found), "__get__", None)
    try:
        return found if bind is None else bind(found, app, type(app))
    except Exception:  # a slot that is empty; a proxy without a request
        return None


def attribute(app: Any, name: str) -> Any:
    """None if it has none, or if that cannot be had, as of a proxy without a request."""
    try:
        return getattr(app, name, None)
    except Exception:
        return None


def inner_of(app: Any) -> Iterator[Any]:
    """The callables that it keeps as a wrapper keeps what it wraps."""
    for each in (app, attribute(app, "__self__")):
        for name in INNER:
            inner = attribute(each, name)
            if inner is not None and inner is not app and callable(inner):
                yield inner


def _bodies(app: Any) -> Iterator[Any]:
    """Whatever may say of itself that it is a coroutine function: the object, and what runs when it is called."""
    inner = innermost(app)
    yield inner
    if not isinstance(inner, type) and not inspect.isroutine(inner):
        called = call_of(inner)
        if called is not None:
            yield called


def _wrapped(app: Any) -> Iterator[Any]:
    """What it wraps, by `functools.wraps`, from the outermost to the innermost."""
    seen = innermost(app)
    called = seen if inspect.isroutine(seen) or isinstance(seen, type) else call_of(seen)
    for each in (seen, called):
        inner = attribute(each, "__func__") or each  # of a method
        for _ in itertools.repeat(None, DEEPEST):
            inner = inspect.getattr_static(inner, "__wrapped__", None)
            if inner is None:
                break
            yield inner


def _is(predicate: Callable[[Any], bool], body: Any) -> bool:
    try:
        return predicate(body)
    except Exception:  # as of a proxy without a request
        return False


def _is_coroutine_function(body: Any) -> bool:
    """By its code, or because it is marked as one, as `inspect` and `asyncio` know it (asgiref, Cython)."""
    if _is(inspect.iscoroutinefunction, body):
        return True
    coroutines = sys.modules.get("asyncio.coroutines")  # what is marked has imported it
    marker = getattr(coroutines, "_is_coroutine", None)
    return marker is not None and attribute(body, "_is_coroutine") is marker


def _takes_anything(app: Any) -> bool:
    outer = _signature(app, follow=False) if attribute(app, "__wrapped__") else None
    return outer is not None and any(each.kind is each.VAR_POSITIONAL for each in outer.parameters.values())


def _signature(app: Any, *, follow: bool = True) -> inspect.Signature | None:
    inner = innermost(app)
    if not (isinstance(inner, type) or inspect.isroutine(inner) or attribute(inner, "__signature__")):
        # `inspect` itself asks the class, where it may find a slot only.
        called = call_of(inner)
        if inner is app and called is not None and not attribute(inner, "__wrapped__"):
            app = called
    options: dict[str, Any] = {"follow_wrapped": follow}
    if sys.version_info >= (3, 14):  # else it evaluates annotations, whose names may exist for type checkers only
        import annotationlib  # noqa: PLC0415 - earlier Pythons have none

        options["annotation_format"] = annotationlib.Format.STRING
    try:
        return inspect.signature(app, **options)
    except Exception:  # it is built in; or its own `__signature__` fails
        return None


def _last_word(annotation: Any) -> str:
    """ "WSGIEnvironment" for `wsgiref.types.WSGIEnvironment`, as a string or not."""
    if annotation is inspect.Parameter.empty:
        return ""
    text = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", None) or str(annotation)
    return text.partition("|")[0].partition("[")[0].strip(" \"'").rpartition(".")[2]
