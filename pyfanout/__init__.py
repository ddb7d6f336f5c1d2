"""pyfanout: the pre-fork runtime for Python on Linux.

`serve(handler)` runs a handler on every core. Read `server`, then `master.supervisor` (the life of a worker), then
`csrc/fanout.h` (the path of a connection).
"""

from pyfanout.config import Config, Policy
from pyfanout.dispatcher.owner import Dispatcher
from pyfanout.errors import ConfigError, CoreError, FanoutError, LoadError, ReloadError, StuckError, WorkerError
from pyfanout.master.callbacks import Notice
from pyfanout.master.status import WorkerStatus
from pyfanout.serve import serve
from pyfanout.server import Master
from pyfanout.version import __version__ as __version__
from pyfanout.worker.face import Worker
from pyfanout.worker.listener import Listener
from pyfanout.worker.worker import current_worker

__all__ = [
    "Config",
    "ConfigError",
    "CoreError",
    "Dispatcher",
    "FanoutError",
    "Listener",
    "LoadError",
    "Master",
    "Notice",
    "Policy",
    "ReloadError",
    "StuckError",
    "Worker",
    "WorkerError",
    "WorkerStatus",
    "current_worker",
    "serve",
]
