"""The limit of open files of this process (RLIMIT_NOFILE): raised as far as it needs, and no further.

Programs inherit it, and some of them look at each number below. A million numbers take 0.14 s in C and 0.8 s in Python
(measured on 2026-11-30); there are containers with a billion. Others have select(2), which knows 1024.
"""

from __future__ import annotations

import logging
import resource

log = logging.getLogger("pyfanout")

ANY = 65_536
"""For any number of connections: more than a Python process serves, and 9 ms in such a loop in C, 50 in Python. An
operator who wants more names the number, or raises the soft limit itself: what is higher stays."""

PER_CONNECTION = 2
"""The client's, and one that its request opens: a file, a connection to another server."""

RESERVE = 256
"""For all else that a process has open."""

_UNKNOWN = 1024
"""If the system does not say: the soft limit of most systems."""


def of_connections(most: int) -> int:
    """What a worker needs that holds `most` connections; 0: any number."""
    return PER_CONNECTION * most + RESERVE if most else ANY


class OpenFiles:
    """The limit of this process, as it was found and as it is."""

    def __init__(self) -> None:
        try:
            self.soft, self._hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        except (OSError, ValueError):  # a sandbox
            self.soft = self._hard = _UNKNOWN
        if self.soft == resource.RLIM_INFINITY:
            self.soft = self._hard = ANY
        self._found = self.soft

    def raise_to(self, count: int) -> None:
        """Raise the soft limit to `count`, or as far as the hard one allows. It is never lowered, and stays if the
        program has set it meanwhile."""
        wanted = count if self._hard == resource.RLIM_INFINITY else min(count, self._hard)
        if wanted > self.soft and self._is_ours() and self._set(wanted):
            self.soft = wanted

    def restore(self) -> None:
        """As it was found, unless the program has set it meanwhile. In a child, too, which has its own."""
        if self.soft != self._found and self._is_ours() and self._set(self._found):
            self.soft = self._found

    def _is_ours(self) -> bool:
        return OpenFiles().soft == self.soft

    def _set(self, soft: int) -> bool:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, self._hard))
        except (OSError, ValueError) as error:  # a sandbox
            log.info("the limit of open files stays at %d: %s", self.soft, error)
            return False
        return True
