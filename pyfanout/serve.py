"""serve(): arguments to Master, and a failure to an exit code."""

from __future__ import annotations

import sys
from typing import Unpack

from pyfanout.app import App
from pyfanout.config import Options
from pyfanout.errors import FanoutError
from pyfanout.host.log import plain
from pyfanout.server import Master


def serve(app: App, **options: Unpack[Options]) -> None:
    """Serve until stopped, with one worker process per CPU unless told otherwise. Blocks; call it in the main thread.

    `app` is a handler, or anything else that `pyfanout.kind.Kind` names: a WSGI or ASGI application, a class of the
    standard library's servers, a `pyfanout.embed.Runner`; told by its shape, or by `as_`. See docs/embedding.md.

    `handler(conn, addr)` is called in a worker for each connection: `conn` a connected, blocking `socket.socket`,
    `addr` the client's address as `socket.accept` gives it. Or it is `async def handler(reader, writer)`, with
    asyncio's streams. When it returns or raises, the connection is closed, unless it was detached.

    Each option that is not given here is taken from its variable (`PYFANOUT_WORKERS`, ...), else from its default. They
    are explained, with units, defaults and reasons, in `pyfanout.Config`. The hooks are called in each worker with
    its `Worker` (slot, pid, generation): before its first connection, and after its last unless it is killed.

    SIGTERM stops gracefully, SIGINT and SIGQUIT at once; then it returns, with the signal handlers that it found.
    SIGHUP replaces the workers one by one, SIGTTIN and SIGTTOU make them one more or one less. On failure it prints one
    line and raises SystemExit as the command does: 1 for a bad option or address, 3 if no worker can start, 4 if the
    application cannot be loaded, 5 if a worker cannot be killed. `Master` raises the exceptions themselves.
    """
    try:
        with Master(app, **options) as master:
            master.run()
    except FanoutError as error:
        print(f"pyfanout: {plain(str(error))}", file=sys.stderr)
        raise SystemExit(error.exit_code) from error
