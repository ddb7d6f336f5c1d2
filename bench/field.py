"""The field: everybody that `python -m bench peers` compares, and how each is started."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from typing import Any

from bench import netns
from bench.peers import HERE, PATH, PEERS
from bench.server import PeerServer, Server, words

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
    beside: str = ""
    """Which of ours it is compared with: the one that does the same work. Empty: it is ours, and has no verdict."""
    asked: tuple[str, ...] = ()
    """A variant, that is asked only the questions whose names begin so."""
    sleeps: bool = False
    """A worker serves so many at once as it has threads, and sleeps when the handler does."""
    sysctls: tuple[tuple[str, str], ...] = ()
    """Of the network, which it is measured with: in a namespace of its own."""

    @property
    def ours(self) -> bool:
        return self.name.startswith("pyfanout")

    def is_asked(self, question: str) -> bool:
        return not self.asked or question.startswith(self.asked)

    def command(self) -> str:
        """Its command line, but for the port and the number of workers."""
        if self.server in PEERS:
            return PEERS[self.server].text()
        python = " ".join(["python", *words(self.server, self.handler, self.threads, self.policy)])
        return "".join(f"{name}={value} " for name, value in self.sysctls) + python

    def missing(self) -> str | None:
        """What is not here; None: it can run."""
        if self.sysctls and os.geteuid() != 0:
            return "root, who may set sysctls in a network namespace,"
        return PEERS[self.server].missing() if self.server in PEERS else None

    def place(self) -> contextlib.AbstractContextManager[None]:
        """Where it is measured, and all that takes part."""
        return netns.namespace(dict(self.sysctls)) if self.sysctls else contextlib.nullcontext()

    def start(self, *, workers: int, cpu: int | None = None, ballast_mb: int = 0, preload: bool = False) -> Server:
        """A context manager; everyone answers inside. `preload`: with the application loaded before the fork, if it
        can; those of `bench.subjects` always do."""
        if self.server in PEERS:
            return PeerServer(self.server, workers=workers, cpu=cpu, ballast_mb=ballast_mb, preload=preload)
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
BLOCKING_RIVAL: dict[str, Any] = {**BLOCKS, "beside": "pyfanout blocking"}
STREAMS_RIVAL: dict[str, Any] = {**STREAMS, "beside": "pyfanout asyncio"}
SLEEPERS = ("sync", "gthread", "uWSGI", "waitress")
BESIDE = {
    **dict.fromkeys(("gunicorn sync", "gunicorn sync, reuse_port", "uWSGI"), "pyfanout gunicorn sync"),
    "gunicorn gthread": "pyfanout gunicorn gthread",
    **dict.fromkeys(("uvicorn", "granian"), "pyfanout uvicorn"),
    "hypercorn": "pyfanout hypercorn",
    **dict.fromkeys(("Node cluster, SCHED_RR", "Node cluster, SCHED_NONE", "PM2 cluster", "nginx"), "pyfanout asyncio"),
}
"""Of the peers; uWSGI serves one request at a time in a worker, as gunicorn's sync workers do."""
POLICIES = ("throughput", "tail", "balance")
SUBJECTS = (
    Subject("pyfanout blocking", server="pyfanout", quick=True, **BLOCKS),
    Subject("pyfanout blocking, source-hash", server="pyfanout", policy="source-hash", asked=POLICIES, **BLOCKS),
    Subject("pyfanout threads", server="pyfanout", threads=4, asked=("throughput",), **BLOCKS),
    Subject("pyfanout asyncio", server="pyfanout", quick=True, **STREAMS),
    Subject(
        "pyfanout asyncio, least-connections",
        server="pyfanout",
        policy="least-connections",
        asked=POLICIES,
        **STREAMS,
    ),
    Subject("pyfanout asyncio, source-hash", server="pyfanout", policy="source-hash", asked=POLICIES, **STREAMS),
    Subject("SO_REUSEPORT blocking", server="reuseport", quick=True, **BLOCKING_RIVAL),
    Subject(
        "SO_REUSEPORT blocking, tcp_migrate_req",
        server="reuseport",
        sysctls=(("net.ipv4.tcp_migrate_req", "1"),),
        asked=("kill", "stop", "restart", "recovery"),
        **BLOCKING_RIVAL,
    ),
    Subject("SO_REUSEPORT asyncio", server="reuseport", quick=True, **STREAMS_RIVAL),
    Subject("shared listener blocking", server="shared", **BLOCKING_RIVAL),
    Subject("shared listener asyncio", server="shared", **STREAMS_RIVAL),
    Subject("dispatcher in Python, blocking", server="by-hand", replaces=False, **BLOCKING_RIVAL),
    Subject("dispatcher in Python, asyncio", server="by-hand", replaces=False, **STREAMS_RIVAL),
    *(
        Subject(
            f"multiprocessing.reduction, {handler}",
            server="reduction",
            replaces=False,
            asked=("throughput",),
            **rival,
        )
        for handler, rival in (("blocking", BLOCKING_RIVAL), ("asyncio", STREAMS_RIVAL))
    ),
    *(
        Subject(
            name,
            next((kind for word, kind in KINDS.items() if word in name), "another language"),
            name,
            quick=name in QUICK,
            threads=4 if "gthread" in name or "waitress" in name else 1,
            keeps=not any(word in name for word in ("sync", "uWSGI")),
            waits=name != "nginx",
            beside=BESIDE.get(name, ""),
            sleeps=any(word in name for word in SLEEPERS),
        )
        for name in PEERS
    ),
)
BY_NAME = {subject.name: subject for subject in SUBJECTS}


USED = ("uvloop", "httptools", "h11")
"""By uvicorn, hypercorn and granian, where they are installed."""


def versions() -> dict[str, str]:
    """Of the peers that are here, and of what they use."""
    found = {name: importlib.metadata.version(name) for name in USED if importlib.util.find_spec(name)}
    for peer in PEERS.values():
        if peer.needs.startswith("python:") and peer.missing() is None:
            module = peer.needs.removeprefix("python:")
            found[module] = importlib.metadata.version(module)
    for program, option in {"node": "--version", "nginx": "-v", "uwsgi": "--version"}.items():
        if path := shutil.which(program, path=PATH):
            said = subprocess.run([path, option], capture_output=True, text=True, check=False)
            found[program] = (said.stdout + said.stderr).split()[-1].removeprefix("nginx/").removeprefix("v")
    manifest = HERE / "node_modules" / "pm2" / "package.json"
    if manifest.exists():
        found["pm2"] = json.loads(manifest.read_text())["version"]
    return found
