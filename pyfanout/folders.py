"""The folders of a server: the one in which it was started, as its name was typed, and those of its application.

A deploy often switches a link (`/srv/app/current`) and then asks for a reload. The kernel knows the folder in which a
process was started, and not the name by which it was entered. So the name is kept, as a shell keeps it in `$PWD`, and
each worker looks it up anew.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import os
import socket
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from pyfanout.config import Config
from pyfanout.errors import ConfigError, LoadError


@dataclass(frozen=True, slots=True)
class Folders:
    """`of` is called at the start; `enter` in each worker, before it imports the application."""

    start: str | None
    """Where the server was started, by the name that was typed; None: that folder was deleted."""
    found: str | None
    """Where that name led then, without links."""
    chdir: str | None
    """Where workers run; None: in `start`. As it was typed."""
    app_dir: str | None
    """Where modules are looked for, as seen from there; None: there itself. As it was typed."""

    @classmethod
    def of(cls, config: Config, environ: Mapping[str, str] = os.environ) -> Folders:
        """Of a server that is started now, here. Raises ConfigError if there is no such `chdir` or `app_dir`."""
        self = cls(*_typed(environ), config.chdir, config.app_dir)
        if config.chdir is not None:
            _check("chdir", self.seen_from_start(config.chdir))
        if config.app_dir is not None:
            _check("app_dir", os.path.join(self._run or ".", config.app_dir))
        return self

    @classmethod
    def here(cls) -> Folders:
        """Those without options."""
        return cls(*_typed(os.environ), None, None)

    def seen_from_start(self, path: str) -> str:
        """`path` as it was meant when it was typed; links in it are looked up when it is used."""
        return path if self.start is None else os.path.join(self.start, path)

    def fixed(self, config: Config) -> Config:
        """With the names of the files that workers read as seen from the start, wherever the application goes."""
        if config.certfile is None:
            return config
        keyfile = None if config.keyfile is None else self.seen_from_start(config.keyfile)
        return dataclasses.replace(config, certfile=self.seen_from_start(config.certfile), keyfile=keyfile)

    def fixed_binds(self, binds: Iterable[str | socket.socket]) -> list[str | socket.socket]:
        """With socket files as seen from the start, wherever a preloaded application has gone. As they were typed if
        that is still here: a longer name may be too long for a socket."""
        return [bind if self._is_here(self.start) else self._fixed(bind) for bind in binds]

    def _fixed(self, bind: str | socket.socket) -> str | socket.socket:
        if isinstance(bind, str) and bind.startswith("unix:") and bind[5:6] not in ("", "@"):
            return f"unix:{self.seen_from_start(bind[5:])}"
        return bind

    def enter(self) -> str | None:
        """Look all of them up anew, go where workers run, and have modules found there. Returns the folder to search,
        which is first in `sys.path`; None: there is none. Raises LoadError, one line, if a folder is not there.

        The names in `sys.path` have no links in them: a worker that imports something later still finds it in the
        release that it has begun with.
        """
        if self._run is not None and not self._is_here(self._run):
            try:
                os.chdir(self._run)
            except OSError as error:
                if self.chdir is not None or not self._may_stay(error):
                    raise LoadError(f"the folder {self._run!r} cannot be entered: {error.strerror}") from None
        here = _here()
        if here is None:
            return None
        self._move_path()
        search = os.path.realpath(os.path.join(here, self.app_dir or ""))
        if not os.path.isdir(search):
            raise LoadError(f"the folder {search!r} (app_dir) is not there")
        if sys.path[:1] != [search]:
            sys.path.insert(0, search)
        importlib.invalidate_caches()  # two releases may have folders of the same age
        return search

    @property
    def _run(self) -> str | None:
        return self.start if self.chdir is None else self.seen_from_start(self.chdir)

    @staticmethod
    def _is_here(path: str | None) -> bool:
        try:
            return path is not None and os.path.samefile(path, ".")
        except OSError:
            return False

    def _may_stay(self, error: OSError) -> bool:
        """In a folder that this user may not look up, or that is deleted: an installed module is found all the same.
        Not in one that is still there while its name leads nowhere: it would be taken for the new release."""
        return isinstance(error, PermissionError) or _here() is None

    def _move_path(self) -> None:
        """Entries of `sys.path` that were found from the start's folder (`python -m`, `PYTHONPATH=src`), which the
        interpreter has made absolute, without links."""
        now = None
        if self.start is not None:
            with contextlib.suppress(OSError):
                now = os.path.realpath(self.start, strict=True)
        if now is None or self.found is None or now == self.found:
            return
        inside = self.found.rstrip("/") + "/"
        for number, entry in enumerate(sys.path):
            if f"{entry}/".startswith(inside):
                sys.path[number] = os.path.join(now, entry[len(inside) :]).rstrip("/")


def _typed(environ: Mapping[str, str]) -> tuple[str | None, str | None]:
    """The present folder, as a shell's user sees it (`pwd -L`), and without links."""
    here = _here()
    if here is None:
        return None, None
    name = environ.get("PWD", "")
    with contextlib.suppress(OSError, ValueError):
        if os.path.isabs(name) and os.path.samefile(name, "."):
            return name, here
    return here, here


def _here() -> str | None:
    try:
        return os.getcwd()
    except OSError:  # it was deleted
        return None


def _check(option: str, path: str) -> None:
    """Raises ConfigError unless it is a folder that can be entered."""
    try:
        os.stat(os.path.join(path, "."))
    except OSError as error:
        raise ConfigError(f"{option}: the folder {path!r} cannot be entered: {error.strerror}") from error
