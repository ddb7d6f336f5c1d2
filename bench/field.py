"""The field: everybody that `python -m bench peers` compares, and how each is started."""

from __future__ import annotations

import importlib.metadata
import json
import shutil
import subprocess
from dataclasses import dataclass

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
    quick: bool = False
    """It is in the short run, too."""
    keeps: bool = True
    """A worker can hold many connections."""
    replaces: bool = True
    """It forks another worker when one dies."""
    waits: bool = True
    """It can be asked for work that takes a while."""

    @property
    def ours(self) -> bool:
        return self.name.startswith("pyfanout")

    def missing(self) -> str | None:
        """What is not installed; None: it can run."""
        return PEERS[self.server].missing() if self.server in PEERS else None

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


SUBJECTS = (
    Subject("pyfanout blocking", "handler", "pyfanout", "blocking", quick=True, keeps=False),
    Subject("pyfanout threads", "handler", "pyfanout", "blocking", threads=4, keeps=False),
    Subject("pyfanout asyncio", "streams", "pyfanout", "asyncio", quick=True),
    Subject("pyfanout asyncio, least-connections", "streams", "pyfanout", "asyncio", policy="least-connections"),
    Subject("pyfanout asyncio, source-hash", "streams", "pyfanout", "asyncio", policy="source-hash"),
    Subject("SO_REUSEPORT blocking", "handler", "reuseport", "blocking", quick=True, keeps=False),
    Subject("SO_REUSEPORT asyncio", "streams", "reuseport", "asyncio", quick=True),
    Subject("shared listener blocking", "handler", "shared", "blocking", keeps=False),
    Subject("shared listener asyncio", "streams", "shared", "asyncio"),
    Subject("dispatcher in Python, blocking", "handler", "by-hand", "blocking", keeps=False, replaces=False),
    Subject("dispatcher in Python, asyncio", "streams", "by-hand", "asyncio", replaces=False),
    *(
        Subject(
            name,
            next((kind for word, kind in KINDS.items() if word in name), "another language"),
            name,
            quick=name in QUICK,
            keeps="sync" not in name and name != "uWSGI",
            waits=name != "nginx",
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
