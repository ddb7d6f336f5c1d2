"""Runs pyfanout, or a rival that the bench has made: `python -m bench.subjects NAME --port 8000 --workers 2 ...`.

Each gets the same handlers, the same backlog and TCP_NODELAY, stops on TERM, and imports nothing of the others.
"""

from __future__ import annotations

import argparse
import importlib
from typing import Any

from bench.workloads import HANDLERS

HOST = "127.0.0.1"
BACKLOG = 4096
"""4,000 connections that arrive at once must fit into one accept queue; net.core.somaxconn is 4096."""
RIVALS: dict[str, tuple[str, dict[str, Any]]] = {
    "reuseport": ("prefork", {"reuse_port": True}),
    "shared": ("prefork", {"reuse_port": False}),
    "by-hand": ("byhand", {"passing": "send_fds"}),
    "reduction": ("byhand", {"passing": "reduction"}),
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.subjects", description=__doc__)
    parser.add_argument("name", choices=["pyfanout", *RIVALS])
    parser.add_argument("--handler", choices=sorted(HANDLERS), default="blocking")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1, help="pyfanout only")
    parser.add_argument("--policy", default="round-robin", help="pyfanout only")
    options = parser.parse_args()
    handler, workers = HANDLERS[options.handler], options.workers
    if options.name == "pyfanout":
        own = {"threads": options.threads, "policy": options.policy, "nodelay": True, "log_level": "warning"}
        own |= {"bind": f"{HOST}:{options.port}", "workers": workers, "backlog": BACKLOG}
        importlib.import_module("pyfanout").serve(handler, **own)
    else:
        module, more = RIVALS[options.name]
        serve = importlib.import_module(f"bench.rivals.{module}").serve
        serve(handler, (HOST, options.port), workers, BACKLOG, **more)


if __name__ == "__main__":
    main()
