"""Which servers there are: pyfanout's own, and those that packages register by an entry point."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pyfanout import servers
from pyfanout.config import Config
from pyfanout.embed import runner_of
from pyfanout.errors import ConfigError, LoadError
from pyfanout.kind import Kind
from pyfanout.recognition import kind_of

RUNNER = """
from pyfanout.embed import Runner as Base
class Runner(Base):
    kinds = ("wsgi", "asgi")
    def __init__(self, app):
        self.app = app
    def serve(self, worker): ...
"""
KINDS = '("wsgi", "asgi")'


class Packages:
    """A folder with packages, as pip installs them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def add(self, package: str, entries: str, modules: dict[str, str] | None = None) -> None:
        info = self.folder / f"{package}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[{servers.GROUP}]\n{entries}\n")
        for name, source in (modules or {}).items():
            (self.folder / f"{name}.py").write_text(source)


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Packages]:
    monkeypatch.syspath_prepend(str(tmp_path))
    servers._entries.cache_clear()
    known = set(sys.modules)
    yield Packages(tmp_path)
    servers._entries.cache_clear()
    for name in set(sys.modules) - known:
        if str(tmp_path) in (getattr(sys.modules[name], "__file__", None) or ""):
            del sys.modules[name]


def wsgi(environ: Any, start_response: Any) -> Any: ...


def handler(conn: Any, addr: Any) -> None: ...


def test_for_a_server_of_pyfanouts_own_nothing_is_looked_up() -> None:
    code = (
        "import sys, pyfanout, pyfanout.cli.run; "
        "[pyfanout.Config(server=each) for each in ('auto', 'waitress')]; print('importlib.metadata' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_a_registered_server_is_imported_when_it_is_used(packages: Packages) -> None:
    packages.add("my-server", "Mine = my_runner:Runner", {"my_runner": RUNNER})
    assert Config(server="mine").server == "mine"
    assert servers.registered() == ["mine (my_runner:Runner of my-server 1.0)"]
    assert "my_runner" not in sys.modules
    found = servers.found("mine")
    assert found.kinds == (Kind.WSGI, Kind.ASGI)
    assert not found.patches
    assert kind_of(wsgi, server="mine") is Kind.WSGI
    runner: Any = runner_of(wsgi, Kind.WSGI, "mine")
    assert type(runner).__module__ == "my_runner"
    assert runner.app is wsgi


def test_what_it_does_not_serve_is_refused(packages: Packages) -> None:
    packages.add("my-server", "mine = my_runner:Runner", {"my_runner": RUNNER})
    with pytest.raises(ConfigError, match=r"server: mine is for wsgi and asgi applications, and handler is a blocking"):
        kind_of(handler, server="mine")


def test_an_unknown_one_is_refused_with_the_names_of_all(packages: Packages) -> None:
    packages.add("my-server", "mine = my_runner:Runner\nwaitress = my_runner:Runner")
    with pytest.raises(ConfigError) as caught:
        Config(server="yours")
    allowed = "auto, uvicorn, hypercorn, waitress, cheroot, gevent, wsgiref, mine"
    assert str(caught.value) == f"server: 'yours' is not one of {allowed}"


def test_the_name_of_one_of_pyfanouts_own_is_taken(packages: Packages) -> None:
    packages.add("my-server", "waitress = my_runner:Runner")
    assert isinstance(servers.find("waitress"), servers.Own)
    (line,) = servers.registered()
    assert line == "waitress (my_runner:Runner of my-server 1.0, not used: pyfanout has a server of that name)"


def test_a_name_that_two_packages_register(packages: Packages) -> None:
    packages.add("one", "mine = a:Runner")
    packages.add("two", "mine = b:Runner")
    with pytest.raises(ConfigError) as caught:
        Config(server="mine")
    both = {"a:Runner of one 1.0 and b:Runner of two 1.0", "b:Runner of two 1.0 and a:Runner of one 1.0"}
    assert str(caught.value) in {
        f"server: mine is registered twice, as {each}: uninstall one of the packages" for each in both
    }


def test_entry_points_that_cannot_be_read(packages: Packages) -> None:
    packages.add("my-server", "no entry point")
    with pytest.raises(ConfigError, match=r"^server: the entry points of my-server, in .*: install it again, or"):
        Config(server="mine")
    with pytest.raises(ConfigError, match="my-server"):
        servers.registered()
    assert Config(server="waitress").server == "waitress", "which nothing is looked up for"


@pytest.mark.parametrize(
    ("value", "source", "reason"),
    [
        ("nowhere:Runner", "", "there is no module named 'nowhere': install the package again"),
        ("mod:Other", RUNNER, "'mod' has no such attribute: the entry point has to name a class, as in mod:Runner"),
        ("mod", RUNNER, "'mod' has no such attribute: the entry point has to name a class, as in mod:Runner"),
        ("mod:x", "x = 1", "it is not a subclass of pyfanout.embed.Runner, which it has to be"),
        ("mod:Runner", RUNNER.replace(KINDS, "()"), "its kinds, (), have to be some of handler, coroutine, "),
        ("mod:Runner", RUNNER.replace(KINDS, '("http",)'), "its kinds, ('http',), have to be some of "),
        ("mod:Runner", RUNNER.replace(KINDS, '"wsgi"'), "its kinds, 'wsgi', have to be some of "),
        ("mod:Runner", RUNNER.replace(KINDS, '("runner",)'), "its kinds, ('runner',), have to be some of "),
        ("mod:Runner", "1 / 0", "its import failed: ZeroDivisionError: division by zero"),
        ("mod:Runner", "import no_such", "its import failed: ModuleNotFoundError: No module named 'no_such'"),
        ("mod.sub:Runner", RUNNER, "there is no module named 'mod.sub': install the package again"),
    ],
)
def test_a_broken_one_is_an_error_of_one_line(packages: Packages, value: str, source: str, reason: str) -> None:
    packages.add("my-server", f"mine = {value}", {"mod": source})
    assert Config(server="mine").server == "mine"
    with pytest.raises(LoadError) as caught:
        _ = servers.found("mine").kinds
    assert str(caught.value).startswith(f"server: mine is {value} of my-server 1.0; {reason}")
    assert "\n" not in str(caught.value)
