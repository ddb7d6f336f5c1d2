"""One server on several listening sockets, as the plain server on one of them would be.

Servers have their address as an attribute, and an application reads it there, or as SERVER_PORT. A worker has one
server for all its listeners. So a connection is given a view of it: an object with the server's state, in which only
what depends on the address is different.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyfanout.worker.public import Bound, Public


def views(server: Any, public: Public, names: Callable[[Bound], dict[str, Any]]) -> list[Any]:
    """The server as it is on each listener, by `Connection.listener`. It has the address of the first one itself;
    `names` returns the attributes that another one changes."""
    known = enumerate(public.listeners)
    return [server if number == public.number else view(server, names(bound)) for number, bound in known]


def view(server: Any, names: dict[str, Any]) -> Any:
    """The same server with the attributes `names`: one state, so whatever else is set here is set there. It is of a
    subclass, since only what a class defines has precedence over the attributes of an instance."""
    kind = type(server)

    def own(name: str) -> property:
        return property(lambda _: names[name], lambda _, value: names.update({name: value}))

    def define(attributes: dict[str, Any]) -> None:
        attributes.update({name: own(name) for name in names}, __module__=kind.__module__, __doc__=kind.__doc__)

    made: Any = object.__new__(types.new_class(kind.__name__, (kind,), exec_body=define))
    made.__dict__ = server.__dict__
    return made


def probe(server: Any, **names: Any) -> Any:
    """A copy of the server with these attributes, to call a method on that sets others. Nothing is set in the server
    itself."""
    made = object.__new__(type(server))
    made.__dict__.update(server.__dict__, **names)
    return made


def changed(made: Any, server: Any) -> dict[str, Any]:
    """The attributes in which a `probe` has become different from the server."""
    before = vars(server)
    return {name: value for name, value in vars(made).items() if name not in before or before[name] is not value}
