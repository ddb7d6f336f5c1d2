"""watches: an event reaches the function of its descriptor, and none after that is removed."""

from __future__ import annotations

import errno
import os
from typing import Any

import pytest

from pyfanout.errors import CoreError
from pyfanout.master.watches import Watches


class Core:
    """Notes what it is asked to watch."""

    def __init__(self) -> None:
        self.watched: dict[int, int] = {}
        self.refuses = False

    def _refuse(self) -> None:
        if self.refuses:
            raise CoreError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    def watch(self, fd: int, token: int) -> None:
        self._refuse()
        self.watched[fd] = token

    def unwatch(self, fd: int) -> None:
        self._refuse()
        del self.watched[fd]


@pytest.fixture
def core() -> Any:
    return Core()


def test_each_descriptor_has_its_function(core: Any) -> None:
    watches, called = Watches(core), []
    for fd in (3, 4):
        watches.add(fd, lambda fd=fd: called.append(fd))  # type: ignore[misc]  # mypy infers no type of a lambda with a default
    watches.call(core.watched[4])
    watches.call(core.watched[3])
    assert called == [4, 3]


def test_an_event_that_was_read_before_its_watch_was_removed_is_dropped(core: Any) -> None:
    watches, called = Watches(core), []
    watches.add(3, lambda: called.append("old"))
    token = core.watched[3]
    watches.remove(3)
    watches.add(3, lambda: called.append("new"))  # another file has got the number
    watches.call(token)
    assert called == []
    watches.call(core.watched[3])
    assert called == ["new"]


def test_a_function_may_remove_its_own_watch(core: Any) -> None:
    watches = Watches(core)
    watches.add(3, lambda: watches.remove(3))
    token = core.watched[3]
    watches.call(token)
    watches.call(token)
    assert core.watched == {}


def test_what_is_not_watched_may_be_removed(core: Any) -> None:
    Watches(core).remove(3)


def test_what_the_system_refuses_to_watch_is_not_watched(core: Any) -> None:
    watches = Watches(core)
    core.refuses = True
    with pytest.raises(CoreError):
        watches.add(3, print)
    core.refuses = False
    watches.remove(3)
    assert core.watched == {}


def test_a_refused_removal_changes_nothing(core: Any) -> None:
    watches, called = Watches(core), []
    watches.add(3, lambda: called.append(3))
    core.refuses = True
    watches.remove(3)
    watches.call(core.watched[3])
    assert called == []
