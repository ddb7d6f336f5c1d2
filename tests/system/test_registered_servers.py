"""Servers that packages register: the example of docs/embedding.md is installed and serves; a mistake is one line."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import TESTS, Server, connect, read_all

MakeServer = Callable[[], Server]

EMBEDDING = (TESTS.parent / "docs" / "embedding.md").read_text()
GROUP = "pyfanout.servers"
APP = """
import os
def wsgi(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"%s by process %d" % (environ["PATH_INFO"].encode(), os.getpid())]
"""


def example() -> tuple[str, str, str]:
    """The name of the package in the document, the entry points of its pyproject.toml, and its module."""
    section = EMBEDDING.split("### A server that a package registers\n")[1].split("\n## ")[0]
    (toml,), (source,) = (re.findall(rf"```{kind}\n(.*?)```", section, re.DOTALL) for kind in ("toml", "python"))
    project = tomllib.loads(toml)["project"]
    entries = "\n".join(f"{name} = {value}" for name, value in project["entry-points"][GROUP].items())
    return project["name"], entries, source


def install(folder: Path, name: str, entries: str, source: str = "") -> None:
    """As pip does, without a network."""
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{GROUP}]\n{entries}\n")
    (folder / f"{name}.py").write_text(source)


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A folder on the path of what is run, with the package of the document."""
    folder = tmp_path / "site"
    folder.mkdir()
    install(folder, *example())
    (tmp_path / "app.py").write_text(APP)
    return folder


def environ(site: Path) -> dict[str, str]:
    return {"PYTHONPATH": os.pathsep.join([str(site), str(TESTS)])}


def run(site: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pyfanout", "run", *arguments],
        cwd=site.parent,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_example_of_the_document_serves(server: MakeServer, tmp_path: Path, site: Path) -> None:
    one = server().start("app:wsgi", cwd=tmp_path, workers=2, server="oneshot", environ=environ(site))
    assert "wsgi by oneshot.Runner" in one.log
    for path in ("/one", "/two"):
        answer = read_all(connect(one.address, f"GET {path} HTTP/1.0\r\n\r"))
        assert answer.startswith(b"HTTP/1.0 200 OK")
        assert int(answer.split()[-1]) in one.workers
        assert answer.split()[-4] == path.encode()


def test_it_is_listed_and_checked(site: Path) -> None:
    assert "\n  oneshot (oneshot:Runner of oneshot 1.0)\n" in run(site, "--help").stdout
    checked = run(site, "app:wsgi", "--server", "oneshot", "--check-config")
    assert (checked.returncode, checked.stderr) == (0, "")
    assert "served as = wsgi by oneshot.Runner\n" in checked.stdout


def test_it_is_not_imported_for_another_server(site: Path) -> None:
    (site / "oneshot.py").write_text("raise SystemExit('imported')")
    checked = run(site, "app:wsgi", "--server", "wsgiref", "--check-config")
    assert (checked.returncode, checked.stderr) == (0, "")


@pytest.mark.parametrize(
    ("entries", "code", "line"),
    [
        (
            "mine = nowhere:Runner",
            4,
            r"server: mine is nowhere:Runner of other 1\.0; there is no module named 'nowhere'",
        ),
        ("mine = other:Runner", 4, r"server: mine is other:Runner of other 1\.0; 'other' has no such attribute"),
        ("oneshot = other:Runner", 1, r"server: oneshot is registered twice, as .*: uninstall one of the packages"),
        ("yours = other:Runner", 1, r"server: 'mine' \(from --server\) is not one of auto, .*, oneshot, yours"),
        ("no entry point", 1, r"server: the entry points of other, in .*: install it again, or uninstall it"),
    ],
    ids=["no module", "no attribute", "twice", "unknown", "unreadable"],
)
@pytest.mark.parametrize("checks", [True, False], ids=["--check-config", "run"])
def test_a_mistake_is_one_line(site: Path, entries: str, code: int, line: str, checks: bool) -> None:
    install(site, "other", entries)
    name = "oneshot" if "oneshot" in entries else "mine"
    more = ["--check-config"] if checks else ["--bind", "127.0.0.1:0", "--workers", "1"]
    done = run(site, "app:wsgi", "--server", name, *more)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert re.search(line, done.stderr.splitlines()[-1]), done.stderr
    if checks or code == 1:  # else the log has it, too, as what its worker died of
        assert done.stderr.count("\n") == 1, done.stderr
