"""The dispatcher of gunicorn's arbiter: which one runs, and when it stops."""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable
from typing import Any

from pyfanout.config import LOG_LEVELS
from pyfanout.core import stop_new
from pyfanout.dispatcher.owner import Dispatcher
from pyfanout.options import MAX_SECONDS


class GunicornDispatcher:
    """The arbiter's dispatcher; another one when its listeners have changed."""

    def __init__(self) -> None:
        self._listeners: list[Any] = []
        self._dispatcher: Dispatcher | None = None
        self._former: list[Dispatcher] = []
        """Their workers have not all left yet, as far as we know."""
        self.arbiter: Any = None
        """gunicorn's, once it makes workers."""
        atexit.register(self._close)

    def _close(self) -> None:
        """The arbiter exits, and has waited for the workers."""
        for each in (*self._former, self._dispatcher):
            if each is not None:
                each.close(0)

    def _alone(self) -> bool:
        """No other arbiter goes on with the listeners, and systemd does not have them."""
        arbiter = self.arbiter
        return arbiter is not None and arbiter.reexec_pid == arbiter.master_pid == 0 and not arbiter.systemd

    def _stop(self) -> None:
        if self._dispatcher is not None:
            self._dispatcher.stop()

    def _stop_before(self, listener: Any) -> Callable[[], None]:
        """The arbiter closes its listeners just before it tells its workers to leave: then they know that all that was
        accepted is theirs, since there are no others. Nor do new clients come, unless another process has it, too."""
        close = listener.close

        def stop_and_close() -> None:
            if self._alone():
                stop_new(listener.sock)
            self._stop()
            close()

        return stop_and_close

    def running(self, listeners: list[Any], config: Any) -> Dispatcher:
        """One that runs."""
        for each in [each for each in self._former if not each.alive]:
            each.close()
            self._former.remove(each)
        if listeners != self._listeners or self._dispatcher is None:
            if self._dispatcher is not None:
                self._stop()  # its workers leave, and it with them
                self._former.append(self._dispatcher)
            self._listeners = list(listeners)
            for listener in listeners:
                listener.close = self._stop_before(listener)
            level = config.loglevel.lower()
            self._dispatcher = Dispatcher(
                bind=[listener.sock for listener in listeners],
                backlog=max(config.backlog, 1),  # gunicorn takes 0, which the kernel takes for 1
                drain_timeout=min(config.graceful_timeout, MAX_SECONDS),
                log_level=None if "PYFANOUT_LOG_LEVEL" in os.environ else level if level in LOG_LEVELS else "info",
            )
        self._dispatcher.start()
        return self._dispatcher


gunicorn_dispatcher = GunicornDispatcher()
