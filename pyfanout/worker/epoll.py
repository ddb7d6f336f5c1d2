"""`select.epoll`, also where gevent has patched the module, and so removed it."""

from __future__ import annotations

try:
    from select import epoll
except ImportError:
    # It has no types; and mypy sees one name that is a class here and any object there.
    from gevent.monkey import get_original  # type: ignore[import-untyped, unused-ignore]

    epoll = get_original("select", "epoll")  # type: ignore[misc]

__all__ = ["epoll"]
