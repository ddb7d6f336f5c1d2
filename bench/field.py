"""The field: everybody that `python -m bench peers` compares, and how each is started."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from typing import Any

from bench import netns
from bench.peers import HERE, PATH, PEERS
from bench.server import PeerServer, Server

QUICK = (
    "pyfanout gunicorn gthread",
    "pyfanout uvicorn",
    *("gunicorn gthread", "uvicorn", "granian", "Node cluster, SCHED_RR", "nginx"),
)
KINDS = {
    "gunicorn": "WSGI",
    "uWSGI": "WSGI",
    "waitress": "WSGI",
    "uvicorn": "ASGI",
    "hypercorn": "ASGI",
    "granian": "ASGI",
}


@dataclass(frozen=True, slots=True)
class Subject:
    name: str
    kind: str
    """What it speaks: who differs in that is not compared where the speed of that decides."""
    server: str
    """One of `bench.subjects`, or of `bench.peers`."""
    handler: str = ""
    """Of `bench.workloads`; a peer has its own."""
    policy: str = "round-robin"
    threads: int = 1
    """Of a worker, that serve at once: who has more is not compared with who has fewer."""
    quick: bool = False
    """It is in the short run, too."""
    keeps: bool = True
    """A worker can hold many connections."""
    replaces: bool = True
    """It forks another worker when one dies."""
    waits: bool = True
    """It can be asked for work that takes a while."""
    sleeps: bool = False
    """A worker serves so many at once as it has threads, and sleeps when the handler does."""
    sysctls: tuple[tuple[str, str], ...] = ()
    """Of the network, which it is measured with: in a namespace of its own."""

    @property
    def ours(self) -> bool:
        return self.name.startswith("pyfanout")

    def missing(self) -> str | None:
        """What is not here; None: it can run."""
        if self.sysctls and os.geteuid() != 0:
            return "root, who may set sysctls in a network namespace,"
        return PEERS[self.server].missing() if self.server in PEERS else None

    def place(self) -> contextlib.AbstractContextManager[None]:
        """Where it is measured, and all that takes part."""
        return netns.namespace(dict(self.sysctls)) if self.sysctls else contextlib.nullcontext()

    def start(self, *, workers: int, cpu: int | None = None, ballast_mb: int = 0) -> Server:
        """A context manager; everyone answers inside."""
        if self.server in PEERS:
            return PeerServer(self.server, workers=workers, cpu=cpu, ballast_mb=ballast_mb)
        return Server(
            self.server,
            handler=self.handler,
            workers=workers,
            policy=self.policy,
            cpu=cpu,
            threads=self.threads,
            ballast_mb=ballast_mb,
        )


BLOCKS: dict[str, Any] = {"kind": "handler", "handler": "blocking", "keeps": False, "sleeps": True}
STREAMS: dict[str, Any] = {"kind": "streams", "handler": "asyncio"}
SLEEPERS = ("sync", "gthread", "uWSGI", "waitress")
SUBJECTS = (
    Subject("pyfanout blocking", server="pyfanout", quick=True, **BLOCKS),
    Subject("pyfanout threads", server="pyfanout", threads=4, **BLOCKS),
    Subject("pyfanout asyncio", server="pyfanout", quick=True, **STREAMS),
    Subject("pyfanout asyncio, least-connections", server="pyfanout", policy="least-connections", **STREAMS),
    Subject("pyfanout asyncio, source-hash", server="pyfanout", policy="source-hash", **STREAMS),
    Subject("SO_REUSEPORT blocking", server="reuseport", quick=True, **BLOCKS),
    Subject(
        "SO_REUSEPORT blocking, tcp_migrate_req",
        server="reuseport",
        sysctls=(("net.ipv4.tcp_migrate_req", "1"),),
        **BLOCKS,
    ),
    Subject("SO_REUSEPORT asyncio", server="reuseport", quick=True, **STREAMS),
    Subject("shared listener blocking", server="shared", **BLOCKS),
    Subject("shared listener asyncio", server="shared", **STREAMS),
    Subject("dispatcher in Python, blocking", server="by-hand", replaces=False, **BLOCKS),
    Subject("dispatcher in Python, asyncio", server="by-hand", replaces=False, **STREAMS),
    Subject("multiprocessing.reduction, blocking", server="reduction", replaces=False, **BLOCKS),
    Subject("multiprocessing.reduction, asyncio", server="reduction", replaces=False, **STREAMS),
    *(
        Subject(
            name,
            next((kind for word, kind in KINDS.items() if word in name), "another language"),
            name,
            quick=name in QUICK,
            threads=4 if "gthread" in name or "waitress" in name else 1,
            keeps=not any(
                word in name for word in ("sync", "uWSGI", "waitress")
            ),  # waitress: 100, if not told otherwise
            waits=name != "nginx",
            sleeps=any(word in name for word in SLEEPERS),
        )
        for name in PEERS
    ),
)
BY_NAME = {subject.name: subject for subject in SUBJECTS}


def versions() -> dict[str, str]:
    """Of the peers that are here."""
    found = {}
    for peer in PEERS.values():
        if peer.needs.startswith("python:") and peer.missing() is None:
            module = peer.needs.removeprefix("python:")
            found[module] = importlib.metadata.version(module)
    for program, words in {"node": "--version", "nginx": "-v", "uwsgi": "--version"}.items():
        if path := shutil.which(program, path=PATH):
            said = subprocess.run([path, words], capture_output=True, text=True, check=False)
            found[program] = (said.stdout + said.stderr).split()[-1].removeprefix("nginx/").removeprefix("v")
    manifest = HERE / "node_modules" / "pm2" / "package.json"
    if manifest.exists():
        found["pm2"] = json.loads(manifest.read_text())["version"]
    return found
