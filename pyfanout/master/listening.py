"""The endpoints while the core accepts on them: what is logged when accepting pauses or one of them is lost.

Of a master and of a dispatcher alike.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence

from pyfanout.core import Core, Event, EventKind
from pyfanout.master.endpoints import Endpoint
from pyfanout.master.shortage import Shortage

log = logging.getLogger("pyfanout.master")


class Listening:
    """On these endpoints, whose descriptors it gives to the core. The socket files stay the caller's."""

    def __init__(self, core: Core, endpoints: Sequence[Endpoint]) -> None:
        self._core = core
        self._endpoints = endpoints
        self._shortage = Shortage()
        for endpoint in endpoints:
            core.listen(endpoint.sock.fileno())
            endpoint.detach()

    @property
    def addresses(self) -> str:
        return ", ".join(endpoint.address for endpoint in self._endpoints)

    def on_event(self, event: Event) -> str | None:
        """One of the core. If accepting pauses, and that is logged: what is short."""
        match event.kind:
            case EventKind.PAUSED if self._shortage.begins(event.error):
                return os.strerror(event.error)
            case EventKind.RESUMED:
                self._shortage.ends()
            case EventKind.LISTENER_FAILED:
                address = self._endpoints[event.token].address
                log.critical(
                    "lost listener %s: %s; restart pyfanout to listen there again; other listeners go on",
                    address,
                    os.strerror(event.error),
                )
        return None

    def look(self) -> None:
        """Log the connections that were lost since the last look."""
        self._shortage.lost(self._core.lost)
