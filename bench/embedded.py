"""The applications of `python -m bench embed`: the same answer from each server, the worker's pid.

`python -m bench.embedded tornado PORT WORKERS` runs tornado its own way, which is a programme and not a command.
"""

from __future__ import annotations

import os
import sys
from typing import Any


async def asgi(scope: Any, _receive: Any, send: Any) -> None:
    """For uvicorn, hypercorn and gunicorn, without lifespan."""
    if scope["type"] != "http":
        raise RuntimeError("no lifespan here")
    body = b"%d\n" % os.getpid()
    headers = [(b"content-type", b"text/plain"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def wsgi(_environ: dict[str, Any], start_response: Any) -> list[bytes]:
    body = b"%d\n" % os.getpid()
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]


def uvicorn_on_asyncio() -> Any:
    from pyfanout.embed import uvicorn

    return uvicorn.Runner(asgi, loop="asyncio")


def aiohttp() -> Any:
    from aiohttp import web

    async def answer(_request: web.Request) -> web.Response:
        return web.Response(body=b"%d\n" % os.getpid())

    app = web.Application()
    app.add_routes([web.get("/fast", answer)])
    return app


async def aiohttp_for_gunicorn() -> Any:
    return aiohttp()


def tornado() -> Any:
    from tornado import web

    class Answer(web.RequestHandler):
        def get(self) -> None:
            self.write(b"%d\n" % os.getpid())

    return web.Application([("/fast", Answer)], log_function=lambda _handler: None)


def main(port: int, workers: int) -> None:
    import asyncio

    from tornado import httpserver, netutil, process

    sockets = netutil.bind_sockets(port, "127.0.0.1", backlog=4096)
    process.fork_processes(workers)

    async def serve() -> None:
        httpserver.HTTPServer(tornado()).add_sockets(sockets)
        await asyncio.Event().wait()

    asyncio.run(serve())


if __name__ == "__main__":
    main(int(sys.argv[2]), int(sys.argv[3]))
