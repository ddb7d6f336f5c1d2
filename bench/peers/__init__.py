"""The peers: what others use to serve one address with several processes. `make peers` installs them.

Each is a command that serves on 127.0.0.1:{port} with {workers} processes, in the foreground, and answers with the pid
of the process that has the connection. `{folder}` is a fresh one for it, `{here}` is this one.
"""

from __future__ import annotations

import importlib.util
import os
import shlex
import shutil
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

from bench import installed

HERE = Path(__file__).parent
PM2 = HERE / "node_modules" / ".bin" / "pm2-runtime"
PATH = f"{Path(sys.executable).parent}:{os.environ.get('PATH', os.defpath)}"
"""With the programs of our own environment."""


@dataclass(frozen=True, slots=True)
class Peer:
    """One of them."""

    command: str
    needs: str
    """A Python module, or a program."""
    variables: tuple[tuple[str, str], ...] = ()
    files: tuple[tuple[str, str], ...] = ()
    """Written into its folder before it starts."""
    reload: signal.Signals | str | None = None
    """What it is told to replace its workers by, a signal or a command; None: it cannot."""
    stop: signal.Signals = signal.SIGTERM
    """What it is told by to finish what it has begun, and leave."""
    preload: str = ""
    """Option to load the application before the fork; empty: it does so by itself, or cannot."""

    def missing(self) -> str | None:
        """What is not installed."""
        if self.needs.startswith("python:"):
            module = self.needs.removeprefix("python:")
            return None if importlib.util.find_spec(module) else module
        return None if shutil.which(self.needs, path=PATH) else Path(self.needs).name

    def text(self) -> str:
        """Its command line, as a report has it."""
        variables = [f"{name}={shlex.quote(text) if ' ' in text else text}" for name, text in self.variables]
        text = " ".join([*variables, *self.command.split()])
        return text.replace(str(HERE), "{here}").replace("{here}", "bench/peers").replace("{python}", "python")

    def words(self, port: int, workers: int, folder: Path, *, preload: bool = False) -> list[str]:
        values = {"port": port, "workers": workers, "folder": folder, "here": HERE, "python": installed.python()}
        for name, text in self.files:
            (folder / name).write_text(text % values)
        command = f"{self.command} {self.preload}" if preload else self.command
        program, *rest = command.format(**values).split()
        return [shutil.which(program, path=PATH) or program, *rest]

    def environment(self, port: int, folder: Path) -> dict[str, str]:
        return {name: text.format(port=port, folder=folder) for name, text in self.variables}


GUNICORN = (
    "{{python}} -m gunicorn bench.peers.app:wsgi --bind 127.0.0.1:{{port}} --workers {{workers}} --backlog 4096"
    " --worker-class {worker} --keep-alive 75 --no-control-socket --log-level error {more}"
)
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

PYFANOUT = (
    "{{python}} -m pyfanout run bench.peers.app:{app} --factory --bind 127.0.0.1:{{port}} --workers {{workers}}"
    " --backlog 4096 --log-level error"
)
GTHREAD = "--threads 4 --worker-connections 20000"


def _gunicorn(worker: str, more: str = "") -> Peer:
    command = GUNICORN.format(worker=worker, more=more)
    return Peer(command, "python:gunicorn", reload=signal.SIGHUP, preload="--preload")


def _pyfanout(server: str) -> Peer:
    command = PYFANOUT.format(app=f"pyfanout_{server}")
    return Peer(command, f"python:{server}", reload=signal.SIGHUP, preload="--preload")


PEERS = {
    "pyfanout gunicorn sync": _gunicorn("pyfanout.embed.gunicorn.Sync"),
    "pyfanout gunicorn gthread": _gunicorn("pyfanout.embed.gunicorn.GThread", GTHREAD),
    "pyfanout waitress": _pyfanout("waitress"),
    "pyfanout uvicorn": _pyfanout("uvicorn"),
    "pyfanout hypercorn": _pyfanout("hypercorn"),
    "gunicorn sync": _gunicorn("sync"),
    "gunicorn sync, reuse_port": _gunicorn("sync", "--reuse-port"),
    "gunicorn gthread": _gunicorn("gthread", GTHREAD),
    "uWSGI": Peer(
        "uwsgi --http-socket 127.0.0.1:{port} --processes {workers} --master --disable-logging"
        " --listen 4096 --need-app --module bench.peers.app:wsgi",
        "uwsgi",
        (("UWSGI_HOOK_MASTER_START", "unix_signal:15 gracefully_kill_them_all"),),  # else SIGTERM reloads it
        reload=signal.SIGHUP,
    ),
    "uvicorn": Peer(
        "{python} -m uvicorn bench.peers.app:asgi --port {port} --workers {workers} --backlog 4096 --no-access-log"
        " --log-level error --loop uvloop --timeout-keep-alive 75",
        "python:uvicorn",
        reload=signal.SIGHUP,
    ),
    "hypercorn": Peer(
        "{python} -m hypercorn bench.peers.app:asgi --bind 127.0.0.1:{port} --workers {workers} --backlog 4096"
        " --log-level error --keep-alive 75 --worker-class uvloop",
        "python:hypercorn",
    ),
    "granian": Peer(
        "{python} -m granian --interface asginl bench.peers.app:asgi --port {port} --workers {workers} --backlog 4096"
        " --respawn-failed-workers --respawn-interval 0.2 --backpressure 20000 --log-level error",
        "python:granian",
        reload=signal.SIGHUP,
    ),
    "Node cluster, SCHED_RR": Peer("node {here}/cluster.js rr {workers}", "node", (("PORT", "{port}"),)),
    "Node cluster, SCHED_NONE": Peer("node {here}/cluster.js none {workers}", "node", (("PORT", "{port}"),)),
    "PM2 cluster": Peer(
        f"{PM2} start {{here}}/app.js -i {{workers}}",
        str(PM2),
        (("PORT", "{port}"), ("PM2_HOME", "{folder}")),
        reload=f"{PM2.with_name('pm2')} reload all",
    ),
    "nginx": Peer(
        "nginx -c {folder}/nginx.conf",
        "nginx",
        files=(("nginx.conf", NGINX),),
        reload=signal.SIGHUP,
        stop=signal.SIGQUIT,
    ),
}
