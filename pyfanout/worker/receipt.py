"""Receipt: the duty to report the end of one connection, once."""

from __future__ import annotations

from collections.abc import Callable


class Receipt:
    """Made for each connection that a worker takes; closing it reports that the connection is over.

    By these reports the master knows how many connections a worker has, and a drain when the worker has none. Whatever
    has the descriptor has the receipt, and closes it just before it closes the descriptor: a client that sees the end
    and comes again finds a worker that has one connection less. A socket of another class, or another process, that
    takes over the descriptor takes over the receipt, too (`move`).
    """

    __slots__ = ("_report",)

    def __init__(self, report: Callable[[], object] | None = None) -> None:
        """`close` calls `report`. None: it is closed, see `CLOSED`."""
        self._report = report

    def close(self) -> bool:
        """Report the end, unless it was reported or the receipt has moved. Returns whether this call has done so. May
        be called again, from any thread, and in the middle of anything."""
        report, self._report = self._report, None
        if report is None:
            return False
        report()
        return True

    def move(self) -> Receipt:
        """Returns another receipt, which has the duty of this one. This one is closed, without a report."""
        report, self._report = self._report, None
        return CLOSED if report is None else Receipt(report)

    @property
    def is_open(self) -> bool:
        """Whether the end is still to be reported, by this receipt."""
        return self._report is not None


CLOSED = Receipt()
"""Of a socket whose end is not reported, such as a duplicate."""
