"""The servers under test, and real HTTP clients."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import socket
import subprocess
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness import Server, asking, children_of, fds_of

FOLDER = Path(__file__).parent
"""The application of each is here, in `apps`."""


@dataclass(frozen=True)
class Subject:
    """One server, with an application that it serves."""

    app: str
    options: dict[str, object] = field(default_factory=dict)
    keeps_alive: bool = True
    knows_port: bool = True


FACTORY = {"factory": True}
ONE_SHOT = {"keeps_alive": False}
SUBJECTS = {
    "socketserver": Subject("apps:TcpServer", **ONE_SHOT),
    "socketserver-handler": Subject("apps:Raw", **ONE_SHOT),
    "socketserver-forking": Subject("apps:ForkingServer", **ONE_SHOT),
    "http.server": Subject("apps:OneByOne"),
    "http.server-handler": Subject("apps:Web"),
    "http.server-threading": Subject("apps:Threading"),
    "wsgiref": Subject("apps:wsgi", {"server": "wsgiref"}, keeps_alive=False, knows_port=False),
    "waitress": Subject("apps:wsgi"),
    "waitress-flask": Subject("apps:flask", FACTORY),
    "cheroot": Subject("apps:wsgi", {"server": "cheroot"}),
    "gevent": Subject("apps:wsgi", {"server": "gevent"}),
    "gevent-handler": Subject("apps:gevent_handler", FACTORY, **ONE_SHOT),
    "uvicorn": Subject("apps:asgi"),
    "uvicorn-fastapi": Subject("apps:fastapi", FACTORY),
    "uvicorn-asyncio": Subject("apps:uvicorn_on_asyncio", FACTORY),
    "hypercorn": Subject("apps:asgi", {"server": "hypercorn"}),
    "hypercorn-uvloop": Subject("apps:hypercorn_on_uvloop", FACTORY),
    "aiohttp": Subject("apps:aiohttp", FACTORY),
    "aiohttp-uvloop": Subject("apps:aiohttp_on_uvloop", FACTORY),
    "tornado": Subject("apps:tornado", FACTORY),
    "tornado-uvloop": Subject("apps:tornado_on_uvloop", FACTORY),
    "trio": Subject("apps:trio", FACTORY, **ONE_SHOT),
    "anyio": Subject("apps:anyio", FACTORY, **ONE_SHOT),
    "twisted": Subject("apps:twisted", FACTORY),
}
POOLED = ("socketserver", "socketserver-handler", "http.server", "http.server-handler", "wsgiref")
"""One request at a time: these share the pool channel."""


def start(server: Server, subject: Subject, **options: object) -> Server:
    return server.start(subject.app, cwd=FOLDER, **{**subject.options, **options})


class Client:
    """A real client that keeps its connection if the server does."""

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self._http = http.client.HTTPConnection(host, int(port), timeout=20)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def ask(self, path: str = "/", *, close: bool = False) -> tuple[dict[str, Any], Any]:
        """The decoded answer, and our own address as the server should see it."""
        ours = self.begin(path, close=close)
        return self.end(close=close), ours

    def begin(self, path: str = "/", *, close: bool = False) -> Any:
        """The request only; our own address."""
        if self._http.sock is None:
            self._http.connect()
        ours = self._http.sock.getsockname()
        self._http.request("GET", path, headers={"Connection": "close"} if close else {})
        return ours

    def end(self, *, close: bool = False) -> dict[str, Any]:
        answer = self._http.getresponse()
        body = answer.read()
        assert answer.status == 200, (answer.status, body)
        if answer.will_close or close:
            self._http.close()
        return dict(json.loads(body))

    @property
    def socket(self) -> socket.socket | None:
        return self._http.sock


def fill_two_of_three(address: str) -> None:
    """Two workers take turns, each of them at most three connections. A client that comes when one has three is served
    by the other, although it is the first one's turn."""
    with contextlib.ExitStack() as stack:

        def hold() -> tuple[Client, int]:
            client = stack.enter_context(Client(address))
            return client, client.ask()[0]["pid"]

        held = [hold() for _ in range(6)]
        pids = [pid for _, pid in held]
        assert pids.count(pids[0]) == 3
        for client, pid in held:
            if pid != pids[0]:
                client.__exit__()
        assert {hold()[1] for _ in range(3)} == set(pids) - {pids[0]}


def ask(address: str, path: str = "/") -> dict[str, Any]:
    """On a connection of its own."""
    with Client(address) as client:
        return client.ask(path, close=True)[0]


def connections(one: Server, pid: int) -> int:
    """Accepted connections that the worker, or a process that it has forked, has open."""
    port = one.address.rpartition(":")[2]
    inodes = {link[8:-1] for each in (pid, *children_of(pid)) for link in fds_of(each).values() if "socket:" in link}
    # /proc/net/tcp would be the whole system's, and takes a second when other tests have left 40,000 in TIME_WAIT.
    command = ["ss", "--no-header", "--numeric", "--extended", "--tcp", "state", "established", f"sport = :{port}"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return len(inodes.intersection(re.findall(r"\bino:(\d+)", said)))


def strangers(address: str, *, knows_port: bool = True) -> list[Any]:
    """Asks 960 times, on connections that are kept if the server does: the answers that name another client than the
    one that asked, which are none."""
    wrong: list[Any] = []

    def ask_240() -> None:
        with Client(address) as client:
            for _ in range(240):
                answer, ours = client.ask()
                if answer["client"] != [ours[0], ours[1] if knows_port else 0]:
                    wrong.append((answer, ours))

    threads = [threading.Thread(target=ask_240) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return wrong


def load(
    address: str, clients: int = 4, *, keep_alive: bool = False
) -> contextlib.AbstractContextManager[list[dict[str, Any]]]:
    """Clients that ask one after the other, all the time, with `keep_alive` 20 times a connection. See `asking`."""

    def ask_on(answers: list[dict[str, Any]]) -> None:
        with Client(address) as client:
            for _ in range(20 if keep_alive else 1):
                answers.append(client.ask(close=not keep_alive)[0])

    return asking(ask_on, clients)
