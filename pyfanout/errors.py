"""The exceptions of pyfanout. One root; each class knows the exit code its failure deserves.

`ConfigError` is about what you asked for, `WorkerError` about your application, `CoreError` about the system.
Raised everywhere, converted to an exit code in `serve` only.
"""

from __future__ import annotations

import errno
import os


class FanoutError(Exception):
    """Root of all errors that pyfanout raises by itself."""

    exit_code: int = 1
    """What `pyfanout run` and `serve()` exit with: 1 is "usage or configuration"."""


class ConfigError(FanoutError, ValueError):
    """An option or an address cannot be used. The message is one line: which one, what is wrong, what to do."""


class WorkerError(FanoutError):
    """No worker could be started: the application fails between the fork and READY."""

    exit_code = 3  # gunicorn and uvicorn exit with 3 when the application does not boot


class LoadError(WorkerError):
    """The application cannot be imported."""

    exit_code = 4  # gunicorn's "application cannot be loaded"


class StuckError(WorkerError):
    """The server has stopped, except for workers that SIGKILL does not end: the kernel keeps them, as it keeps a
    process that waits for a device or a file server. They are left behind."""

    exit_code = 5


class ReloadError(WorkerError):
    """A reload has stopped: the first new worker that failed, in one line. The old workers that were left serve on."""


class CoreError(FanoutError, OSError):
    """A system call of the C core failed. `errno` is set; the message says what was being done."""


def is_refusal(error: OSError) -> bool:
    """Of a sandbox, or of a kernel that does not know the call: it is of no use to try it again."""
    return error.errno in (errno.EPERM, errno.EACCES, errno.ENOSYS)


def check(rc: int, doing: str) -> int:
    """Pass on a result of the core that is not negative; turn `-errno` into `CoreError`.

    `doing` is the act, in words ("add listener 3"). The only place where the core's results become exceptions.
    """
    if rc < 0:
        raise CoreError(-rc, f"{doing}: {os.strerror(-rc)}")
    return rc
