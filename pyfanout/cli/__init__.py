"""The command line: one module for each verb, and what they share.

Owns the parser, and how a failure looks in a shell: one line on stderr and the exit code that `errors` gives
it. Never does a verb's work. Called by `pyfanout.__main__`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from pyfanout.cli import foreign, run
from pyfanout.cli.arguments import Parser
from pyfanout.errors import FanoutError
from pyfanout.host.log import plain
from pyfanout.master.signals import Signals
from pyfanout.version import __version__


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
