"""`python -m pyfanout`, and the `pyfanout` command: they are the same.

Owns the process: it handles the signals of the process from here to the very end.
"""

from __future__ import annotations

import atexit
import sys

from pyfanout import cli
from pyfanout.errors import CoreError
from pyfanout.host import stdio
from pyfanout.master.signals import Signals


def main() -> int:
    """Returns the exit code."""
    stdio.occupy()
    try:
        signals = Signals(whole_process=True)
    except OSError as error:
        print(f"pyfanout: signals cannot be handled: {error.strerror}", file=sys.stderr)
        return CoreError.exit_code
    signals.__enter__()  # and never restored
    atexit.register(signals.ignore)  # registered first, called last
    try:
        signals.exit_code = cli.main(signals=signals)
    finally:
        signals.end()
    return signals.exit_code


if __name__ == "__main__":
    sys.exit(main())
