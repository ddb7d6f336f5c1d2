"""What applications and servers see of a worker: what is documented, which the process behind it does."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pyfanout
import pyfanout.embed
from pyfanout.worker.face import Worker
from pyfanout.worker.serving import ServingWorker, inside

FOR_APPLICATIONS = {"slot", "generation", "pid", "draining", "retire"}
FOR_SERVERS = {
    *("config", "public", "leaves", "has_siblings", "listener", "tls_context", "counter", "call_hook"),
    *("on_drain", "ready", "drain"),
}


def names(kind: type) -> set[str]:
    return {name for name in dir(kind) if not name.startswith("_")}


def test_it_has_what_is_documented_and_nothing_else() -> None:
    assert names(pyfanout.Worker) == FOR_APPLICATIONS
    assert names(pyfanout.embed.ServingWorker) == FOR_APPLICATIONS | FOR_SERVERS


def test_it_shows_the_process_behind_it() -> None:
    said: list[str] = []
    process: Any = SimpleNamespace(slot=1, generation=2, pid=3, draining=False, retire=lambda: said.append("retire"))
    worker = Worker(process)
    assert repr(worker) == "<Worker slot=1 generation=2 pid=3>"
    assert not worker.draining
    process.draining = True
    assert worker.draining
    worker.retire()
    assert said == ["retire"]
    assert inside(ServingWorker(process)) is process


def test_what_a_server_sets_is_set_in_the_process() -> None:
    process: Any = SimpleNamespace(on_drain=None)
    worker = ServingWorker(process)
    worker.on_drain = quiet = lambda: None
    assert process.on_drain is quiet
    assert worker.on_drain is quiet
