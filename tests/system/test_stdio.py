"""Descriptors 0, 1 and 2 that are closed at the start: no socket gets their numbers, and no client what is written to
them."""

from __future__ import annotations

import itertools
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import Server, fds_of, read_all, wait_until

MakeServer = Callable[..., Server]

SIGNS = ("<&-", ">&-", "2>&-")
COMBINATIONS = [each for count in (1, 2, 3) for each in itertools.combinations(range(3), count)]

APP = """
import json, os

def handler(conn, addr):
    conn.recv(99)
    links = []
    for fd in range(3):
        try:
            os.write(fd, b"noise")
        except OSError:
            pass
        links.append((os.readlink(f"/proc/self/fd/{fd}"), os.get_inheritable(fd)))
    conn.sendall(json.dumps(links).encode())
"""

PROGRAMS = {
    "serve": "import app, sys, pyfanout\npyfanout.serve(app.handler, bind=sys.argv[1], workers=1)",
    "serve, its own socket": (
        "import app, socket, sys, pyfanout\n"
        "sock = socket.socket(socket.AF_UNIX)\n"
        "assert sock.fileno() == 0\n"
        "sock.bind(sys.argv[1].removeprefix('unix:'))\n"
        "sock.listen()\n"
        "pyfanout.serve(app.handler, bind=sock, workers=1)"
    ),
    "dispatcher": (
        "import app, os, sys, signal, pyfanout\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit())\n"
        "with pyfanout.Dispatcher(bind=sys.argv[1]) as dispatcher:\n"
        "    if os.fork() == 0:\n"
        "        os._exit(dispatcher.serve(app.handler))\n"
        "    signal.pause()"
    ),
}


def closing(fds: tuple[int, ...]) -> type[Server]:
    """A server that is started with these closed."""

    class ServerStopping(Server):
        def _launch(self, command: list[str], *arguments: object, **options: object) -> None:  # type: ignore[override]
            signs = " ".join(SIGNS[fd] for fd in fds)
            super()._launch(["/bin/sh", "-c", f'exec "$@" {signs}', "sh", *command], *arguments, **options)  # type: ignore[arg-type]

    return ServerStopping


def ask(path: Path) -> list[tuple[str, bool]]:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(20)
        client.connect(str(path))
        client.sendall(b"x")
        return [tuple(each) for each in json.loads(read_all(client))]


def check(links: list[tuple[str, bool]], closed: tuple[int, ...]) -> None:
    for fd, (link, inheritable) in enumerate(links):
        assert inheritable
        assert link == "/dev/null" if fd in closed else ":" not in link


def test_all_combinations(server: MakeServer, tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(APP)
    servers = {}
    for fds in COMBINATIONS:
        path = tmp_path / "".join(map(str, fds))
        servers[fds] = (
            path,
            server(closing(fds)).start("app:handler", bind=f"unix:{path}", workers=1, cwd=tmp_path, wait=False),
        )
    for fds, (path, one) in servers.items():
        one.wait_ready()
        check(ask(path), fds)
        for pid in (one.pid, *one.workers):
            assert {fds_of(pid)[fd] for fd in fds} == {"/dev/null"}
        assert one.stop() == 0


@pytest.mark.parametrize("program", list(PROGRAMS))
def test_in_a_program_of_ones_own(tmp_path: Path, program: str) -> None:
    (tmp_path / "app.py").write_text(APP)
    path = tmp_path / "sock"
    command = [sys.executable, "-c", PROGRAMS[program], f"unix:{path}"]
    running = subprocess.Popen(["/bin/sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *command], cwd=tmp_path)
    try:
        check_soon(running, path)
    finally:
        running.send_signal(signal.SIGTERM)
        assert running.wait(30) == 0


def test_gunicorn(tmp_path: Path) -> None:
    pytest.importorskip("gunicorn")
    (tmp_path / "app.py").write_text(
        "import json, os\n"
        "def app(environ, start_response):\n"
        "    os.write(1, b'noise'); os.write(2, b'noise')\n"
        "    links = [(os.readlink(f'/proc/self/fd/{fd}'), os.get_inheritable(fd)) for fd in range(3)]\n"
        "    start_response('200 OK', [('X-Links', json.dumps(links)), ('Content-Length', '0')])\n"
        "    return []\n"
    )
    path = tmp_path / "sock"
    command = [
        sys.executable,
        "-m",
        "gunicorn",
        "-k",
        "pyfanout.embed.gunicorn.GThread",
        "-b",
        f"unix:{path}",
        "app:app",
    ]
    running = subprocess.Popen(["/bin/sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *command], cwd=tmp_path)
    try:
        wait_bound(running, path)
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(30)
            client.connect(str(path))
            client.sendall(b"GET / HTTP/1.0\r\n\r\n")
            head = read_all(client)
        assert head.startswith(b"HTTP/1."), head
        (links,) = [line for line in head.split(b"\r\n") if line.lower().startswith(b"x-links:")]
        check([tuple(each) for each in json.loads(links.partition(b":")[2])], (0, 1, 2))
    finally:
        running.send_signal(signal.SIGTERM)
        assert running.wait(30) == 0


def wait_bound(running: subprocess.Popen[bytes], path: Path) -> None:
    def listens() -> bool:
        assert running.poll() is None
        with socket.socket(socket.AF_UNIX) as client:
            return client.connect_ex(str(path)) == 0

    wait_until(listens, "it listens", deadline_s=30)


def check_soon(running: subprocess.Popen[bytes], path: Path) -> None:
    wait_bound(running, path)
    links = ask(path)
    check(links, (0, 1, 2))
    assert {os.readlink(f"/proc/{running.pid}/fd/{fd}") for fd in (1, 2)} == {"/dev/null"}
