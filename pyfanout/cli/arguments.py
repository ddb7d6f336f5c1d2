"""The parser of the command line and of each verb: argparse, with mistakes as exceptions."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, NoReturn

from pyfanout.errors import ConfigError
from pyfanout.host import stdio


class Parser(argparse.ArgumentParser):
    """argparse, but a mistake is a ConfigError: one line and exit code 1, not the whole usage and 2."""

    more_help: Callable[[], str] = staticmethod(str)
    """Follows the help; called only for that."""

    def format_help(self) -> str:
        return super().format_help() + self.more_help()

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
