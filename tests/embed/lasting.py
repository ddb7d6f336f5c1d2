"""A program that serves an application of the server that is its first argument; the second is `drain_timeout`. A
request lasts longer than any test. It prints what runs at the end of a worker."""

from __future__ import annotations

import asyncio
import atexit
import sys
import threading
import time
from typing import Any

import pyfanout

LONG_S = 60.0


def say(what: str) -> None:
    print(f"app: {what}", flush=True)


def on_worker_start(_: Any) -> None:
    atexit.register(say, "atexit")


def on_worker_exit(_: Any) -> None:
    say("hook")


nearly_over: list[bool] = []
"""Not empty in the last second of `drain_timeout`."""


def telling(runner: Any) -> Any:
    """A runner that says when that is."""
    cut = runner.cut

    def cut_and_tell(listener: Any) -> Any:
        nearly_over.append(True)
        return cut(listener)

    runner.cut = cut_and_tell
    return runner


async def last(path: str, sleep: Any = asyncio.sleep) -> None:
    """`/stubborn` is cancelled once in vain. `/late` is over when `drain_timeout` nearly is."""
    say("request")
    match path:
        case "/thread":
            await asyncio.to_thread(time.sleep, LONG_S)
        case "/late":
            while not nearly_over:
                await sleep(0.01)
            return
    for _ in range(2 if path == "/stubborn" else 1):
        try:
            await sleep(LONG_S)
        except asyncio.CancelledError:
            say("cancelled")
            if path == "/last":
                raise


async def asgi(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        for what in ("startup", "shutdown"):
            assert (await receive())["type"] == f"lifespan.{what}"
            if what == "shutdown":
                say("clean-up")
            await send({"type": f"lifespan.{what}.complete"})
        return
    await last(scope["path"])
    await send({"type": "http.response.start", "status": 200})
    await send({"type": "http.response.body"})


def uvicorn() -> Any:
    from pyfanout.embed import uvicorn as embedded

    return telling(embedded.Runner(asgi, loop="uvloop"))


def uvicorn_asyncio() -> Any:
    from pyfanout.embed import uvicorn as embedded

    return telling(embedded.Runner(asgi, loop="asyncio", http="h11"))


def hypercorn(loop: str = "asyncio") -> Any:
    from pyfanout.embed import hypercorn as embedded

    return telling(embedded.Runner(asgi, loop=loop))


def hypercorn_uvloop() -> Any:
    return hypercorn("uvloop")


def aiohttp(loop: str = "asyncio") -> Any:
    from aiohttp import web

    from pyfanout.embed import aiohttp as embedded

    async def answer(request: web.Request) -> web.Response:
        await last(request.path)
        return web.Response()

    async def clean_up(_: web.Application) -> None:
        say("clean-up")

    app = web.Application()
    app.router.add_get("/{path}", answer)
    app.on_cleanup.append(clean_up)
    return telling(embedded.Runner(app, loop=loop))


def aiohttp_uvloop() -> Any:
    return aiohttp("uvloop")


def tornado(loop: str = "asyncio") -> Any:
    from tornado import web

    from pyfanout.embed import tornado as embedded

    class Root(web.RequestHandler):
        async def get(self) -> None:
            await last(self.request.path)

    return telling(embedded.Runner(web.Application([("/.*", Root)]), loop=loop))


def tornado_uvloop() -> Any:
    return tornado("uvloop")


def trio() -> Any:
    from pyfanout.embed import trio as embedded

    async def handle(stream: Any) -> None:
        import trio

        path = (await stream.receive_some()).split()[1].decode()
        say("request")
        while True:
            try:
                await trio.sleep(LONG_S)
            except trio.Cancelled:
                say("cancelled")
                if path == "/last":
                    raise
                path = "/last"

    async def start(nursery: Any) -> None:
        async def beside() -> None:
            import trio

            try:
                await trio.sleep_forever()
            finally:
                say("clean-up")

        nursery.start_soon(beside)

    return embedded.Runner(handle, start=start)


def anyio() -> Any:
    from pyfanout.embed import anyio as embedded

    async def handle(stream: Any) -> None:
        await last((await stream.receive()).split()[1].decode())

    return embedded.Runner(handle)


def twisted() -> Any:
    from twisted.web import resource, server

    from pyfanout.embed import twisted as embedded

    cleaning_up: list[Any] = []

    class Root(resource.Resource):
        isLeaf = True

        def render_GET(self, _: Any) -> Any:
            from twisted.internet import reactor

            say("request")
            if not cleaning_up:
                cleaning_up.append(reactor.addSystemEventTrigger("before", "shutdown", say, "clean-up"))
            return server.NOT_DONE_YET

    site = server.Site(Root())
    site.noisy = False
    return embedded.Runner(site)


def gevent(**options: Any) -> Any:
    from pyfanout.embed import gevent as embedded

    def answer(environ: Any, start_response: Any) -> Any:
        import gevent as green

        say("request")
        stubborn = environ["PATH_INFO"] != "/last"
        while True:
            try:
                green.sleep(LONG_S)
            except green.GreenletExit:
                say("cancelled")
                if not stubborn:
                    raise
                stubborn = False

    return embedded.Runner(answer, **options)


def gevent_of_three() -> Any:
    return gevent(spawn=3)


def wsgi(environ: Any, start_response: Any) -> Any:
    say("request")
    while environ["PATH_INFO"] == "/late" and not nearly_over:
        time.sleep(0.01)
    start_response("200 OK", [("Content-Length", "0")])
    return []


def telling_of_stop(runner: Any) -> Any:
    """The same for a server with threads: then it is told to stop."""
    stop = runner.stop

    def stop_and_tell() -> None:
        threading.Timer(0.1, nearly_over.append, [True]).start()
        stop()

    runner.stop = stop_and_tell
    return runner


def waitress() -> Any:
    from pyfanout.embed import waitress as embedded

    return telling_of_stop(embedded.Runner(wsgi))


def cheroot() -> Any:
    from pyfanout.embed import cheroot as embedded

    return telling_of_stop(embedded.Runner(wsgi))


def own() -> Any:
    """A server of one's own, as docs/embedding.md has it: asyncio's streams."""
    from pyfanout.embed.aio import AsyncioRunner

    class Own(AsyncioRunner):
        async def run(self, worker: Any, listener: Any, started: Any, stopping: Any) -> None:
            server = await asyncio.start_server(coroutine, sock=listener)
            started()
            await stopping.wait()
            server.close()
            while listener.live:
                await asyncio.sleep(0.1)

    return Own()


async def coroutine(reader: Any, writer: Any) -> None:
    await last((await reader.readline()).split()[1].decode())
    writer.close()


def handler() -> Any:
    return coroutine


def main(name: str, drain_timeout: str) -> None:
    pyfanout.serve(
        f"lasting:{name.replace('-', '_')}",
        factory=True,
        bind="127.0.0.1:0",
        workers=1,
        drain_timeout=float(drain_timeout),
        on_worker_start=on_worker_start,
        on_worker_exit=on_worker_exit,
        log_level="debug",
    )


def post_fork(_server: Any, _worker: Any) -> None:
    """gunicorn's hooks; this module is its configuration, too."""
    on_worker_start(None)


def worker_exit(_server: Any, _worker: Any) -> None:
    on_worker_exit(None)


if __name__ == "__main__":
    main(*sys.argv[1:])
