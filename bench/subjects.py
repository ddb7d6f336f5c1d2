"""Runs one server under test: `python -m bench.subjects NAME --handler blocking --port 8000 ...`.

Every subject gets the same handlers, the same backlog and TCP_NODELAY, says that it is ready by a newline on
`--ready-fd`, and stops on TERM. The suite starts them through bench/server.py.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from functools import partial

from bench.workloads import HANDLERS

HOST = "127.0.0.1"
# 4,000 connections that arrive at once must fit into one accept queue; net.core.somaxconn is 4096.
BACKLOG = 4096


def _pyfanout(options: argparse.Namespace) -> None:
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
        ready_fd=options.ready_fd,
    )


def _reuseport(options: argparse.Namespace) -> None:
    from bench.rivals import reuseport  # noqa: PLC0415 - one subject, one server's modules

    _rival(reuseport.serve, options)


def _shared(options: argparse.Namespace) -> None:
    from bench.rivals import shared  # noqa: PLC0415 - one subject, one server's modules

    _rival(shared.serve, options)


def _by_hand(options: argparse.Namespace) -> None:
    from bench.rivals import byhand  # noqa: PLC0415 - one subject, one server's modules

    _rival(partial(byhand.serve, channel=byhand.FdsOfSocket), options)


def _reduction(options: argparse.Namespace) -> None:
    from bench.rivals import byhand  # noqa: PLC0415 - one subject, one server's modules

    _rival(partial(byhand.serve, channel=byhand.Reduction), options)


def _rival(serve: Callable[..., None], options: argparse.Namespace) -> None:
    serve(
        HANDLERS[options.handler],
        host=HOST,
        port=options.port,
        workers=options.workers,
        backlog=BACKLOG,
        ready_fd=options.ready_fd,
    )


SUBJECTS: dict[str, Callable[[argparse.Namespace], None]] = {
    "pyfanout": _pyfanout,
    "reuseport": _reuseport,
    "shared": _shared,
    "by-hand": _by_hand,
    "reduction": _reduction,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.subjects", description=__doc__)
    parser.add_argument("name", choices=sorted(SUBJECTS))
    parser.add_argument("--handler", choices=sorted(HANDLERS), default="blocking")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1, help="pyfanout only")
    parser.add_argument("--policy", default="least-connections", help="pyfanout only")
    parser.add_argument("--cpu", type=int, help="the one core that the whole server tree may use")
    parser.add_argument("--ready-fd", type=int, default=1)
    options = parser.parse_args()
    if options.cpu is not None:
        os.sched_setaffinity(0, {options.cpu})
    SUBJECTS[options.name](options)


if __name__ == "__main__":
    main()
