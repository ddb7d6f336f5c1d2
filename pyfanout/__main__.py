"""`python -m pyfanout`, and the `pyfanout` command: they are the same."""

from __future__ import annotations

import sys

from pyfanout.cli import main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
