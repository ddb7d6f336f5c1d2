"""Runs pyfanout, or a rival that the bench has made: `python -m bench.subjects NAME --port 8000 --workers 2 ...`.

Each gets the same handlers, the same backlog and TCP_NODELAY, and stops on TERM.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

from bench.workloads import HANDLERS

HOST = "127.0.0.1"
# 4,000 connections that arrive at once must fit into one accept queue; net.core.somaxconn is 4096.
BACKLOG = 4096
Options = argparse.Namespace


def _pyfanout(options: Options) -> None:
    import pyfanout  # noqa: PLC0415 - the rivals must not carry its modules

    pyfanout.serve(
        HANDLERS[options.handler],
        bind=f"{HOST}:{options.port}",
        workers=options.workers,
        threads=options.threads,
        policy=options.policy,
        backlog=BACKLOG,
        nodelay=True,
        log_level="warning",
    )


def _prefork(options: Options) -> None:
    from bench.rivals import prefork  # noqa: PLC0415 - one subject, one server's modules

    reuse_port = options.name == "reuseport"
    prefork.serve(HANDLERS[options.handler], (HOST, options.port), options.workers, BACKLOG, reuse_port=reuse_port)


def _dispatcher(options: Options) -> None:
    from bench.rivals import byhand  # noqa: PLC0415 - one subject, one server's modules

    channel = byhand.Reduction if options.name == "reduction" else byhand.FdsOfSocket
    byhand.serve(HANDLERS[options.handler], (HOST, options.port), options.workers, BACKLOG, channel)


SUBJECTS: dict[str, Callable[[Options], None]] = {
    "pyfanout": _pyfanout,
    "reuseport": _prefork,
    "shared": _prefork,
    "by-hand": _dispatcher,
    "reduction": _dispatcher,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.subjects", description=__doc__)
    parser.add_argument("name", choices=sorted(SUBJECTS))
    parser.add_argument("--handler", choices=sorted(HANDLERS), default="blocking")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1, help="pyfanout only")
    parser.add_argument("--policy", default="round-robin", help="pyfanout only")
    options = parser.parse_args()
    SUBJECTS[options.name](options)


if __name__ == "__main__":
    main()
