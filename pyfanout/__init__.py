"""pyfanout: the pre-fork runtime for Python on Linux.

`serve(handler)` runs a handler on every core. Read `serve`, then `master.supervisor` (the life of a worker), then
`csrc/fanout.h` (the path of a connection).
"""

from pyfanout.config import Config, Policy
from pyfanout.errors import ConfigError, CoreError, FanoutError, LoadError, WorkerError
from pyfanout.serve import serve
from pyfanout.worker.worker import Worker, current_worker

__all__ = [
    "Config",
    "ConfigError",
    "CoreError",
    "FanoutError",
    "LoadError",
    "Policy",
    "Worker",
    "WorkerError",
    "current_worker",
    "serve",
]
