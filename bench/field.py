"""The field: servers of one address with several processes, how each is started, and what it is compared with.

Each is a command that serves on 127.0.0.1:{port} with {workers} processes, in the foreground, and answers with the pid
of the process that has the connection. `{folder}` is a fresh one for it, `{here}` is bench/peers. `make peers` installs
those that others have made.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from signal import SIGHUP, SIGQUIT, SIGTERM, Signals
from typing import Any

PEERS = Path(__file__).parent / "peers"
PROGRAMS = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
PM2 = PEERS / "node_modules" / ".bin" / "pm2-runtime"


@dataclass(frozen=True, slots=True)
class Subject:
    name: str
    kind: str
    """What it speaks: subjects that differ in that are not compared where the speed of that decides."""
    command: str
    traits: str
    """Of `keeps`: a worker can hold many connections. `replaces`: it forks another when one dies. `works`: it can be
    asked for what takes a while. `sleeps`: a worker serves so many at once as it has threads, and sleeps when its
    handler does. `loops`: it works, and serves any number at once."""
    beside: str = ""
    """The subject of pyfanout that does the same work: the two are compared. Empty: it is one, and has no verdict."""
    asked: tuple[str, ...] = ()
    """A variant, that is asked only the questions with these begins of a name."""
    threads: int = 1
    """Of a worker, that serve at once: only subjects with equal numbers are compared."""
    quick: bool = False
    """It is in the short run, too."""
    needs: str = ""
    """`python:` and a module, or a program, without which it is not run."""
    variables: tuple[tuple[str, str], ...] = ()
    files: tuple[tuple[str, str], ...] = ()
    """Written into its folder before it starts."""
    reload: Signals | str | None = None
    """What it is told to replace its workers by, a signal or a command; None: it cannot."""
    stop: Signals = SIGTERM
    """What it is told by to finish what it has begun, and leave."""
    preload: str = ""
    """Option to load the application before the fork; empty: it does so by itself, or cannot."""
    exits: bool = False
    """It must stop with 0, and leave nothing: subjects that this repository has made."""
    sysctls: tuple[tuple[str, str], ...] = ()
    """Of the network, which it is measured with: in a namespace of its own."""

    @property
    def ours(self) -> bool:
        return self.name.startswith("pyfanout")

    def has(self, *traits: str) -> bool:
        """Also of `reloads`."""
        return {*traits} <= {*self.traits.split(), *(["reloads"] if self.reload else [])}

    def missing(self) -> str | None:
        """What is not here; None: it can run."""
        if self.sysctls and os.geteuid() != 0:
            return "root, which may set sysctls in a network namespace,"
        if self.needs.startswith("python:"):
            module = self.needs.removeprefix("python:")
            return None if importlib.util.find_spec(module) else module
        return None if not self.needs or program(self.needs) else Path(self.needs).name

    def text(self) -> str:
        """Its command line, as a report has it: but for the port and the number of workers."""
        named = [*self.sysctls, *self.variables]
        variables = [f"{name}={shlex.quote(value) if ' ' in value else value}" for name, value in named]
        text = " ".join([*variables, *self.command.split()])
        text = text.replace(str(PEERS), "{here}").replace("{here}", "bench/peers").replace("{python}", "python")
        return text.replace(" --port {port} --workers {workers}", "")


def program(name: str) -> str | None:
    """Where it is, also in the environment of the bench."""
    return shutil.which(name, path=PROGRAMS)


# ---- pyfanout, and the rivals that the bench has made --------------------------------------------------------------

OWN = "{python} -m bench.subjects"
HANDLERS: dict[str, dict[str, Any]] = {
    "blocking": {"kind": "handler", "traits": "works sleeps", "exits": True},
    "asyncio": {"kind": "streams", "traits": "keeps works loops", "exits": True},
}
BY_HAND = ("by-hand", "reduction")
"""These do not replace a worker that dies."""


def _made(name: str, handler: str, server: str = "pyfanout", words: str = "", **more: Any) -> Subject:
    command = f"{OWN} {server} --handler {handler} {words} --port {{port}} --workers {{workers}}"
    own = HANDLERS[handler] | ({"reload": SIGHUP} if server == "pyfanout" else {"beside": f"pyfanout {handler}"})
    traits = own["traits"] if server in BY_HAND else f"replaces {own['traits']}"
    return Subject(name, command=command, **own | {"traits": traits} | more)


def _both(name: str, server: str, **more: Any) -> list[Subject]:
    """One that blocks, and one that loops."""
    return [_made(f"{name}{handler}", handler, server, **more) for handler in HANDLERS]


def _released(handler: str) -> Subject:
    """Its application is a file, that can be replaced."""
    command = "{python} -m pyfanout run release:handler --app-dir {folder} --bind 127.0.0.1:{port} --workers {workers}"
    release = f"from bench.workloads import HANDLERS\nhandler = HANDLERS[{handler!r}]\n"
    more = {"asked": ("life",), "files": (("release.py", release),)}
    return replace(_made(f"pyfanout run, {handler}", handler), command=f"{command} --backlog 4096", **more)


LEAST, HASH = "--policy least-connections", "--policy source-hash"
SPREAD = ("throughput", "tail", "balance")
KILLED = ("kill", "stop", "restart", "recovery")
MIGRATES: dict[str, Any] = {"quick": False, "asked": KILLED, "sysctls": (("net.ipv4.tcp_migrate_req", "1"),)}
REUSEPORT = _both("SO_REUSEPORT ", "reuseport", quick=True)
MADE = (
    _made("pyfanout blocking", "blocking", quick=True),
    _made("pyfanout blocking, source-hash", "blocking", words=HASH, asked=SPREAD),
    _made("pyfanout blocking, least-connections", "blocking", words=LEAST, asked=("dispatch",)),
    _made("pyfanout threads", "blocking", words="--threads 4", threads=4, asked=("throughput",)),
    _made("pyfanout asyncio", "asyncio", quick=True),
    _made("pyfanout asyncio, least-connections", "asyncio", words=LEAST, asked=SPREAD),
    _made("pyfanout asyncio, source-hash", "asyncio", words=HASH, asked=SPREAD),
    *REUSEPORT,
    replace(REUSEPORT[0], name="SO_REUSEPORT blocking, tcp_migrate_req", **MIGRATES),
    *_both("shared listener ", "shared"),
    *_both("dispatcher in Python, ", "by-hand"),
    *_both("multiprocessing.reduction, ", "reduction", asked=("throughput",)),
    *map(_released, HANDLERS),
)

# ---- what others have made, and their servers under pyfanout -------------------------------------------------------

EMBED = ("embed",)
NGINX = """
daemon off; master_process on; worker_processes %(workers)s; pid %(folder)s/pid; error_log stderr error;
worker_rlimit_nofile 65536;
events { worker_connections 32768; }
http {
    access_log off; keepalive_timeout 75;
    client_body_temp_path %(folder)s/a; proxy_temp_path %(folder)s/b; fastcgi_temp_path %(folder)s/c;
    uwsgi_temp_path %(folder)s/d; scgi_temp_path %(folder)s/e;
    server { listen 127.0.0.1:%(port)s backlog=4096; location / { default_type text/plain; return 200 "$pid\\n"; } }
}
"""
BIND = "--bind 127.0.0.1:{port} --workers {workers} --backlog 4096 --log-level error"
GUNICORN = (
    "{{python}} -m gunicorn bench.peers.app:{app} {bind} --worker-class {worker} --keep-alive 75 --no-control-socket"
)
PYFANOUT = "{{python}} -m pyfanout run bench.peers.app:{app} --factory {bind}"
UVICORN = (
    "{python} -m uvicorn bench.peers.app:asgi --port {port} --workers {workers} --backlog 4096 --no-access-log"
    " --log-level error --timeout-keep-alive 75 --loop "
)
HYPERCORN = f"{{python}} -m hypercorn bench.peers.app:asgi {BIND} --keep-alive 75 --worker-class uvloop"
UWSGI = (
    "uwsgi --http-socket 127.0.0.1:{port} --processes {workers} --master --disable-logging --listen 4096 --need-app"
    " --module bench.peers.app:wsgi"
)
GRANIAN = (
    "{python} -m granian --interface asginl bench.peers.app:asgi --port {port} --workers {workers} --backlog 4096"
    " --respawn-failed-workers --respawn-interval 0.2 --backpressure 20000 --log-level error"
)
FOUR = "--threads 4 --worker-connections 20000"
MANY = "--worker-connections 5000 --asgi-loop asyncio"
SYNC = "replaces works sleeps"
THREADED = "keeps replaces works sleeps"
LOOPS = "keeps replaces works loops"
RELOADS: dict[str, Any] = {"reload": SIGHUP, "preload": "--preload"}
ANOTHER, STREAMS, NODE = "another language", "pyfanout asyncio", "node {here}/cluster.js"
AIOHTTP: dict[str, Any] = {"kind": "aiohttp", "asked": EMBED, "beside": "pyfanout aiohttp"}
PORT, PM2_HOME = ("PORT", "{port}"), ("PM2_HOME", "{folder}")
RUNS_NODE: dict[str, Any] = {"needs": "node", "variables": (PORT,)}
RUNS_PM2 = {"needs": str(PM2), "variables": (PORT, PM2_HOME), "reload": f"{PM2.with_name('pm2')} reload all"}
RUNS_NGINX = {"needs": "nginx", "files": (("nginx.conf", NGINX),), "reload": SIGHUP, "stop": SIGQUIT}
DRAINS = (("UWSGI_HOOK_MASTER_START", "unix_signal:15 gracefully_kill_them_all"),)
"""Else SIGTERM reloads it."""


def _gunicorn(name: str, worker: str, traits: str, more: str = "", *, app: str = "wsgi", **rest: Any) -> Subject:
    command = f"{GUNICORN.format(app=app, bind=BIND, worker=worker)} {more}"
    rest = {"kind": app.upper(), "needs": "python:gunicorn", **RELOADS, **rest}
    return Subject(name, command=command, traits=traits, **rest)


def _pyfanout(server: str, kind: str, traits: str = LOOPS, **more: Any) -> Subject:
    """With the factory of its name."""
    app = f"pyfanout_{server.replace(', ', '_')}"
    command, needs = PYFANOUT.format(app=app, bind=BIND), f"python:{server.partition(',')[0]}"
    return Subject(f"pyfanout {server}", kind, command, traits, needs=needs, **RELOADS, **more)


def _asgi(name: str, command: str, **more: Any) -> Subject:
    needs = f"python:{name.partition(',')[0]}"
    more = {"kind": "ASGI", "needs": needs, "beside": f"pyfanout {name}", **more}
    return Subject(name, command=command, traits=LOOPS, **more)


OTHERS = (
    _gunicorn("pyfanout gunicorn sync", "pyfanout.embed.gunicorn.Sync", SYNC),
    _gunicorn("pyfanout gunicorn gthread", "pyfanout.embed.gunicorn.GThread", THREADED, FOUR, threads=4, quick=True),
    _gunicorn("pyfanout gunicorn asgi", "pyfanout.embed.gunicorn.ASGI", LOOPS, MANY, app="asgi", asked=EMBED),
    _pyfanout("waitress", "WSGI", THREADED, threads=4),
    _pyfanout("uvicorn", "ASGI", quick=True),
    _pyfanout("uvicorn, asyncio", "ASGI", asked=EMBED),
    _pyfanout("hypercorn", "ASGI"),
    _pyfanout("aiohttp", "aiohttp", asked=EMBED),
    _pyfanout("tornado", "tornado", asked=EMBED),
    _gunicorn("gunicorn sync", "sync", SYNC, beside="pyfanout gunicorn sync"),
    _gunicorn("gunicorn sync, reuse_port", "sync", SYNC, "--reuse-port", beside="pyfanout gunicorn sync"),
    _gunicorn("gunicorn gthread", "gthread", THREADED, FOUR, threads=4, quick=True, beside="pyfanout gunicorn gthread"),
    _gunicorn("gunicorn asgi", "asgi", LOOPS, MANY, app="asgi", asked=EMBED, beside="pyfanout gunicorn asgi"),
    Subject("uWSGI", "WSGI", UWSGI, SYNC, "pyfanout gunicorn sync", needs="uwsgi", variables=DRAINS, reload=SIGHUP),
    _asgi("uvicorn", f"{UVICORN} uvloop", quick=True, reload=SIGHUP),
    _asgi("uvicorn, asyncio", f"{UVICORN} asyncio", asked=EMBED, reload=SIGHUP),
    _asgi("hypercorn", HYPERCORN),
    _asgi("granian", GRANIAN, quick=True, beside="pyfanout uvicorn", reload=SIGHUP),
    _gunicorn("aiohttp", "aiohttp.GunicornWebWorker", LOOPS, app="aiohttp_for_gunicorn", **AIOHTTP),
    _asgi("tornado", "{python} -m bench.peers.app {port} {workers}", asked=EMBED, kind="tornado"),
    Subject("Node cluster, SCHED_RR", ANOTHER, f"{NODE} rr {{workers}}", LOOPS, STREAMS, quick=True, **RUNS_NODE),
    Subject("Node cluster, SCHED_NONE", ANOTHER, f"{NODE} none {{workers}}", LOOPS, STREAMS, **RUNS_NODE),
    Subject("PM2 cluster", ANOTHER, f"{PM2} start {{here}}/app.js -i {{workers}}", LOOPS, STREAMS, **RUNS_PM2),
    Subject("nginx", ANOTHER, "nginx -c {folder}/nginx.conf", "keeps replaces", STREAMS, quick=True, **RUNS_NGINX),
)
FIELD = (*MADE, *OTHERS)
BY_NAME = {subject.name: subject for subject in FIELD}

# ---- what is here --------------------------------------------------------------------------------------------------

VERSIONS = {"node": "--version", "nginx": "-v", "uwsgi": "--version", str(PM2): "--version"}


def versions() -> dict[str, str]:
    """Of those that others have made and are here, and of what they use."""
    modules = [each.needs.removeprefix("python:") for each in OTHERS if each.needs.startswith("python:")]
    names = [name for name in dict.fromkeys(["uvloop", "httptools", "h11", *modules]) if importlib.util.find_spec(name)]
    found = {name: importlib.metadata.version(name) for name in names}
    for name, option in VERSIONS.items():
        if path := program(name):
            said = subprocess.run([path, option], capture_output=True, text=True, check=False)
            found[Path(name).name] = (said.stdout + said.stderr).split()[-1].removeprefix("nginx/").removeprefix("v")
    return found
