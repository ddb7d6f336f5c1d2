"""Servers as workers: one module each, which imports its server when it is used. Read `runner` first.

`pyfanout.serve(app)` finds the module by the kind of the application and `--server`. To give a server its own options,
make its runner yourself:

    from pyfanout.embed import uvicorn
    pyfanout.serve(uvicorn.Runner(app, http="h11", ws_ping_interval=5))
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from typing import TYPE_CHECKING, Any, cast

from pyfanout.embed.runner import Runner
from pyfanout.errors import ConfigError
from pyfanout.kind import Kind
from pyfanout.servers import OWN, Registered, found
from pyfanout.worker.serving import ServingWorker

if TYPE_CHECKING:
    from pyfanout.app import App

__all__ = ["Runner", "ServingWorker", "runner_of", "title_of"]


def runner_of(app: App, kind: Kind, server: str) -> Runner:
    """The runner for an application of this kind; `server` is an option's value. Raises ConfigError if that server does
    not speak for this kind, and LoadError if the server is not installed."""
    runner = cast("Runner", app) if kind is Kind.RUNNER else _class_of(kind, server).of(app, kind)
    runner.check()
    return runner


def title_of(runner: Runner) -> str:
    """The server of a runner that was checked, and its version, for the log: "waitress 3.0.2"."""
    if not runner.needs:
        module, kind = type(runner).__module__, type(runner).__qualname__
        return module.removeprefix(f"{__name__}.") if module.startswith(f"{__name__}.") else f"{module}.{kind}"
    return " ".join(filter(None, (runner.needs[0], _version_of(runner.needs[0]))))


def _version_of(name: str) -> str:
    """Of an imported distribution; nothing if that cannot be told. Without importlib.metadata, which takes longer to
    import than some of the servers."""
    module = sys.modules.get(name)
    for attribute in ("__version__", "version"):
        if isinstance(version := getattr(module, attribute, None), str):
            return version
    folder = os.path.dirname(os.path.dirname(getattr(module, "__file__", None) or ""))
    with contextlib.suppress(OSError):
        for entry in os.listdir(folder):
            distribution, _, version = entry.removesuffix(".dist-info").partition("-")
            if entry.endswith(".dist-info") and distribution.lower() == name:
                return version
    return ""


def _class_of(kind: Kind, server: str) -> type[Runner]:
    if server != "auto":
        chosen = found(server)
        if isinstance(chosen, Registered) and kind in chosen.kinds:
            return cast("type[Runner]", chosen.runner())
    able = [own.name for own in OWN.values() if kind in own.kinds]
    name = able[0] if able else kind.value
    if able and server != "auto":
        if server not in able:
            raise ConfigError(f"server: {server} does not serve {kind.value} applications; {' and '.join(able)} do")
        name = server
    module: Any = importlib.import_module(f"pyfanout.embed.{name}")
    return cast("type[Runner]", module.Runner)
