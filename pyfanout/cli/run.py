"""`pyfanout run module:attr`: serve an application until stopped.

Owns the flags, which it makes from `config.options()`; adds none of its own but `--check-config`. The work is
`serve`'s.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pyfanout import servers
from pyfanout.app import Given, check_spec, loader_of
from pyfanout.config import Config, options, unknown_variables
from pyfanout.errors import ConfigError, LoadError
from pyfanout.failure import failure_of
from pyfanout.folders import Folders
from pyfanout.groupconfig import GroupConfig
from pyfanout.host import stdio
from pyfanout.host.log import plain
from pyfanout.master.access import Access
from pyfanout.master.addresses import parse_all
from pyfanout.master.readiness import check_inherited
from pyfanout.master.signals import Signals
from pyfanout.options import BINDS, SWITCH, Option, options_of
from pyfanout.server import Master, check_greenlets
from pyfanout.worker.loading import preloaded
from pyfanout.worker.main import serving_of

if TYPE_CHECKING:
    from pyfanout.cli.arguments import Parser


def add(verbs: argparse._SubParsersAction[Parser]) -> None:
    """Add this verb to the command."""
    parser = verbs.add_parser(
        "run",
        help="serve an application",
        description="Serve module:attr: handler(conn, addr), async def handler(reader, writer), a WSGI or ASGI "
        "application, a socketserver class; told by its shape, or by --as. "
        "The module is looked for in the current folder first.",
        epilog="Every option is also a variable, such as PYFANOUT_MAX_REQUESTS=1000; a flag wins over it. "
        "Exit code: 0 stopped, 1 bad option, 3 no worker can start, 4 application cannot be loaded, "
        "5 stopped, but a worker cannot be killed.",
        allow_abbrev=False,
    )
    parser.add_argument("app", metavar="module:attr", help="the application to serve, such as app:handler")
    server, workers = parser.add_argument_group("server"), parser.add_argument_group("workers")
    of_workers = options_of(GroupConfig)
    for name, option in options().items():
        if not option.python_only:
            place = workers if name in of_workers else server
            place.add_argument(*_flags(option), dest=name, help=_help(option), **_form(option))
    parser.add_argument(
        "--check-config", action="store_true", help="load the application, print what would run, and exit"
    )
    parser.set_defaults(act=run)
    parser.more_help = _registered_servers


def _registered_servers() -> str:
    """Those that `--server` knows besides pyfanout's own."""
    try:
        names = servers.registered()
    except ConfigError as error:
        return f"\n{error}\n"
    lines = ["", "servers that packages register, for --server:", *(f"  {name}" for name in names), ""] if names else []
    return "\n".join(lines)


def flags() -> set[str]:
    """All that `run` knows."""
    return {flag for option in options().values() if not option.python_only for flag in _flags(option)}


def run(arguments: argparse.Namespace, signals: Signals | None) -> int:
    """Check everything that can be checked without opening anything, then serve. Returns 0 when stopped;
    raises FanoutError."""
    check_spec(arguments.app)
    given = {name: getattr(arguments, name) for name, option in options().items() if not option.python_only}
    config = Config.resolve(given, os.environ, command_line=True)
    parse_all(config.bind)
    if arguments.check_config:
        if signals is not None:
            signals.exit_code = 1  # of a check that is interrupted: a deploy must not go on
        check(arguments.app, config)
        return 0
    if signals is not None and config.ready_fd is not None:
        check_inherited(config.ready_fd)
    with Master.of(config, arguments.app, signals=signals) as master:
        master.run()
    return 0


def check(spec: str, config: Config) -> None:
    """Load the application as a worker does, or the master, and print what would run. Raises ConfigError, and
    LoadError, after the application's traceback, if it cannot be loaded."""
    for line in unknown_variables(os.environ):
        print(f"pyfanout: {plain(line)}", file=sys.stderr)
    folders = Folders.of(config)
    Access.of(config.unix_mode, config.unix_owner)
    if config.tls:
        from pyfanout.worker.tls import prepare  # noqa: PLC0415 - ssl takes 10 ms to import

        prepare(folders.fixed(config))
    load = loader_of(spec, folders, factory=config.factory)
    if config.preload:
        with _told():
            load = Given(preloaded(load))
        check_greenlets()
    with _told():
        serving = serving_of(load, config)
        if serving.loops is not None:
            serving.loops.close()
    stdio.show(f"app = {spec}\nserved as = {serving.words}\n{config.describe()}\n")


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """Whatever fails is a LoadError, and the application's traceback is printed."""
    try:
        yield
    except (Exception, SystemExit) as error:
        failed = failure_of(error)
        if failed.trace:
            print(plain(failed.trace.rstrip()), file=sys.stderr)
        raise LoadError(failed.reason) from error


def _flags(option: Option) -> list[str]:
    return [option.short, option.flag] if option.short else [option.flag]


def _form(option: Option) -> dict[str, Any]:
    """How the flag takes its values. They stay text: `Config` reads them, and complains in its own words."""
    if option.values is SWITCH:
        return {"action": argparse.BooleanOptionalAction}
    return {"action": "append" if option.values is BINDS else "store", "metavar": option.values.metavar}


def _help(option: Option) -> str:
    return f"{option.help} (default: {option.default})".replace("%", "%%")
