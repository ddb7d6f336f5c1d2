"""What the rooms of a worker ask of it. The rooms import this and not the worker, which imports them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable

    from pyfanout.config import Config
    from pyfanout.core import WorkerEnds
    from pyfanout.link.link import Link
    from pyfanout.link.messages import Message, Stage
    from pyfanout.worker.background import Background
    from pyfanout.worker.farewell import Farewell
    from pyfanout.worker.public import Public


class Host(Protocol):
    """The worker that a room belongs to; see `worker.WorkerProcess` for each of these."""

    slot: int
    born_s: float
    joined: bool
    config: Config
    public: Public
    ends: WorkerEnds
    link: Link
    background: Background
    farewell: Farewell
    most: int
    forked: bool
    draining: bool
    stopped: bool
    on_drain: Callable[[], None] | None

    def tls_context(self) -> ssl.SSLContext | None: ...
    def counter(self, unit: str) -> Callable[[], None] | None: ...
    def ended(self) -> None: ...
    def is_short(self, short: bool, of: str = ...) -> None: ...
    def short_of(self, error: int) -> None: ...
    def drain(self) -> None: ...
    def send(self, message: Message) -> None: ...
    def receive(self) -> bool: ...
    def outlive_master(self) -> None: ...
    def fail(self, stage: Stage, error: BaseException) -> int: ...
