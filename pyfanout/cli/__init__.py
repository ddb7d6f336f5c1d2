"""The command line: one module for each verb, and what they share.

Owns the parser, and how a failure looks in a shell: one line on stderr and the exit code that `errors` gives
it. Never does a verb's work. Called by `pyfanout.__main__`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from pyfanout import __version__
from pyfanout.cli import foreign, run
from pyfanout.errors import ConfigError, FanoutError
from pyfanout.host import stdio
from pyfanout.host.log import plain
from pyfanout.master.signals import Signals


class Parser(argparse.ArgumentParser):
    """argparse, but a mistake is a ConfigError: one line and exit code 1, not the whole usage and 2."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; try '{self.prog} --help'")

    def _print_message(self, message: str, file: Any = None) -> None:
        """That of --help and --version."""
        stdio.show(message)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Leave nothing over, so that the verb's own parser complains of a flag that it does not know."""
        known, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unknown argument {unknown[0]!r}")
        return known, unknown


def parser() -> Parser:
    """The parser of the whole command. What it returns has `act`, the function that does the verb."""
    top = Parser(
        prog="pyfanout",
        description="Pre-fork runtime for Python: a C core accepts connections and passes them to workers.",
        allow_abbrev=False,  # an abbreviation that works today is ambiguous tomorrow
    )
    top.add_argument("--version", action="version", version=f"pyfanout {__version__}", help="print it and exit")
    verbs = top.add_subparsers(title="verbs", metavar="verb", required=True)
    run.add(verbs)
    return top


def main(argv: Sequence[str] | None = None, signals: Signals | None = None) -> int:
    """Do what `argv` (default: the arguments of this process) asks for; the exit code. `--help` raises
    SystemExit(0). `signals` are those of the whole process, if there are."""
    words = sys.argv[1:] if argv is None else argv
    try:
        foreign.check(words, verbs=("run",), ours=run.flags())
        arguments = parser().parse_args(words)
        code: int = arguments.act(arguments, signals)
    except FanoutError as error:
        print(f"pyfanout: {plain(str(error))}", file=sys.stderr)
        return error.exit_code
    return code
