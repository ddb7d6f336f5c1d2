"""Where log lines go: to stderr, unless the application has said."""

from __future__ import annotations

import logging

FORMAT = "%(asctime)s [%(process)d] %(levelname)s %(message)s"


def set_up_logging(level: str) -> None:
    """From now on lines of `level` and above are logged. May be called again."""
    log = logging.getLogger("pyfanout")
    log.setLevel(level.upper())
    if not log.hasHandlers():
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter(FORMAT))
        log.addHandler(handler)
