"""What the Python servers serve: the answer of bench/workloads.py, as an application for each of them.

`python -m bench.peers.app PORT WORKERS` runs tornado its own way, which is a programme and not a command.
"""

from __future__ import annotations

import asyncio
import importlib
import os
import sys
import time
from functools import partial
from typing import Any

from bench.workloads import waits_s


def wsgi(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    if wait_s := waits_s(environ["PATH_INFO"].encode()):
        time.sleep(wait_s)
    body = b"%d\n" % os.getpid()
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]


async def asgi(scope: Any, _receive: Any, send: Any) -> None:
    if scope["type"] != "http":
        raise RuntimeError("no lifespan here")
    if wait_s := waits_s(scope["path"].encode()):
        await asyncio.sleep(wait_s)
    body = b"%d\n" % os.getpid()
    headers = [(b"content-type", b"text/plain"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _under_pyfanout(server: str, app: Any, **options: Any) -> Any:
    return importlib.import_module(f"pyfanout.embed.{server}").Runner(app, **options)


# As their peers are told on their command lines: with the time for idle connections that all have here.
pyfanout_uvicorn = partial(_under_pyfanout, "uvicorn", asgi, timeout_keep_alive=75)
pyfanout_uvicorn_asyncio = partial(pyfanout_uvicorn, loop="asyncio")
pyfanout_hypercorn = partial(_under_pyfanout, "hypercorn", asgi, loop="uvloop", keep_alive_timeout=75)
# waitress has a limit of 100 connections, and select(), unless it is told otherwise.
pyfanout_waitress = partial(_under_pyfanout, "waitress", wsgi, connection_limit=20_000, asyncore_use_poll=True)


def pyfanout_aiohttp() -> Any:
    from aiohttp import web

    async def answer(_request: web.Request) -> web.Response:
        return web.Response(body=b"%d\n" % os.getpid())

    app = web.Application()
    app.add_routes([web.get("/{path}", answer)])
    return app


async def aiohttp_for_gunicorn() -> Any:
    return pyfanout_aiohttp()


def pyfanout_tornado() -> Any:
    from tornado import web

    class Answer(web.RequestHandler):
        def get(self) -> None:
            self.write(b"%d\n" % os.getpid())

    return web.Application([("/.*", Answer)], log_function=lambda _handler: None)


def tornado(port: int, workers: int) -> None:
    from tornado import httpserver, netutil, process

    sockets = netutil.bind_sockets(port, "127.0.0.1", backlog=4096)
    process.fork_processes(workers)

    async def serve() -> None:
        httpserver.HTTPServer(pyfanout_tornado()).add_sockets(sockets)
        await asyncio.Event().wait()

    asyncio.run(serve())


if __name__ == "__main__":
    tornado(int(sys.argv[1]), int(sys.argv[2]))
