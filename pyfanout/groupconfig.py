"""The options of a group of workers: how many there are, how long each may take, and when it is replaced.

What the group runs and where it listens is the server's, in `config`, which has these, too. `options` has how a value
is read.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pyfanout.options import (
    HOOK,
    MAX_THREADS,
    MAX_WORKERS,
    SWITCH,
    auto_workers,
    check,
    described,
    seconds,
    whole,
    worker_count,
)

if TYPE_CHECKING:
    from pyfanout.worker.face import Worker


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupConfig:
    """Every option of a group, checked. Raises ConfigError at birth if one is not allowed."""

    workers: int = field(
        default_factory=auto_workers,
        metadata=described(
            worker_count(),
            "worker processes; auto: WEB_CONCURRENCY, or the number of CPUs that affinity and cgroup quota allow",
            short="-w",
            default="auto",
        ),
    )
    """Processes. One for each CPU: more only take turns."""

    threads: int = field(
        default=1,
        metadata=described(
            whole(1, MAX_THREADS), "threads per worker: of a blocking handler, and of waitress and cheroot"
        ),
    )
    """Threads. One: it needs no lock in the handler, and is gunicorn's default."""

    max_requests: int = field(
        default=0,
        metadata=described(
            whole(0),
            "replace a worker after this many requests, or connections where its server shows no requests, against "
            "leaks; 0: never",
        ),
    )
    """Requests; docs/embedding.md says of which servers connections. Never: recycling hides leaks, so it must be asked
    for. gunicorn's default, too."""

    max_requests_jitter: int | None = field(
        default=None,
        metadata=described(
            whole(0), "at most this many more, at random for each worker", default="a tenth of max_requests"
        ),
    )
    """Requests; see `jitter`. A tenth: workers that started together and share the load evenly would
    otherwise be replaced all at once, as gunicorn's are, whose default is 0."""

    drain_timeout: float = field(
        default=25.0,
        metadata=described(seconds(zero=True), "how long a stopping worker may take to finish its connections"),
    )
    """Seconds. 25: Kubernetes kills after 30, and what follows (exit hooks, SIGKILL) takes 3 at most."""

    boot_timeout: float = field(
        default=30.0,
        metadata=described(seconds(zero=False), "how long a new worker may take to become ready"),
    )
    """Seconds. 30 is gunicorn's timeout, which also bounds its workers' start."""

    timeout: float = field(
        default=30.0,
        metadata=described(
            seconds(zero=True),
            "how long all threads may be in the same requests, without a byte moving, before the worker counts as "
            "hung; 0: for ever",
        ),
    )
    """Seconds. 30 is gunicorn's timeout. With threads a worker is hung only when all of them are busy."""

    ping_interval: float = field(
        default=1.0,
        metadata=described(seconds(zero=True), "seconds between two pings of a worker; 0: no pings"),
    )
    """Seconds. One: a hung worker is found `ping_timeout` and at most this long after it hangs."""

    ping_timeout: float = field(
        default=5.0,
        metadata=described(
            seconds(zero=False),
            "a worker that has not answered a ping for so long counts as hung, unless a blocking handler runs",
        ),
    )
    """Seconds. 5 is uvicorn's timeout_worker_healthcheck: more than a collection of garbage or some swapping takes."""

    min_uptime: float = field(
        default=1.0,
        metadata=described(
            seconds(zero=True),
            "minimum uptime: a worker that dies earlier, without having served, is restarted with increasing delay. "
            "A new worker serves for so long beside the one that it is to replace",
        ),
    )
    """Seconds. 1 is PM2's min_uptime. A release that dies of its first requests does so within it, and a reload of one
    worker after the other takes that much for each."""

    fail_fast: bool = field(
        default=False,
        metadata=described(SWITCH, "exit with code 3 when a worker dies again and again, instead of trying for ever"),
    )
    """Off: the healthy workers keep serving. On where something else starts the server again: a container."""

    core_dumps: bool = field(
        default=False,
        metadata=described(
            SWITCH, "a hung worker that is killed may write a core dump, if the limits of the system allow it"
        ),
    )
    """Off: the log has the stacks of all threads anyway. A core has keys and clients' data in it."""

    reload_batch: int = field(
        default=1,
        metadata=described(whole(1, MAX_WORKERS), "how many workers a reload replaces at a time"),
    )
    """Workers. One: a reload costs the memory of one more worker, and a broken release is noticed by the first."""

    on_worker_start: Callable[[Worker], object] | None = field(
        default=None,
        metadata=described(HOOK, "called in each worker before it is ready", default="none", python_only=True),
    )
    """Runs after the fork: the place to open what a fork must not share, such as a database connection."""

    on_worker_exit: Callable[[Worker], object] | None = field(
        default=None,
        metadata=described(HOOK, "called in each worker before it exits", default="none", python_only=True),
    )
    """Runs after the last connection is done; not when the worker is killed."""

    def __post_init__(self) -> None:
        check(self)

    @property
    def jitter(self) -> int:
        """Most requests that may be added to `max_requests`, at random."""
        return self.max_requests // 10 if self.max_requests_jitter is None else self.max_requests_jitter
