"""The environment that every subject runs in: this tree's wheel, installed by pip as users do it, and beside it what
subjects import of the bench. All of it is there with its bytecode, whatever PYTHONDONTWRITEBYTECODE says here.

Whatever else is needed, gunicorn for example, comes from the environment of the bench itself.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / ".bench"
HOME = FOLDER / "environment"
SITE = Path(sysconfig.get_path("purelib", scheme="venv", vars={"base": str(HOME)}))
OTHERS = SITE / "others.pth"
"""Names the packages of the bench's own environment, whose .pth files, an editable install's, are not read then. It is
written last."""
SOURCES = ("pyfanout", "csrc", "setup.py", "pyproject.toml")
"""Of the wheel: it is built again when one of them has changed."""


@functools.cache
def python() -> Path:
    """The interpreter of the environment, which is made, or made again if the tree has changed, once in a run."""
    if not OTHERS.exists() or OTHERS.stat().st_mtime < _changed():
        shutil.rmtree(FOLDER, ignore_errors=True)
        venv.create(HOME, symlinks=True)
        _run("-m", "build", "--no-isolation", "--outdir", str(FOLDER / "wheel"), str(ROOT))
        (wheel,) = (FOLDER / "wheel").glob("*.whl")
        _run("-m", "pip", "--python", str(HOME), "install", "--no-deps", "--no-index", str(wheel))
        OTHERS.write_text(sysconfig.get_path("purelib") + "\n")
    _copy_bench()
    return HOME / "bin" / "python"


def _changed() -> float:
    """When the newest of the sources was written."""
    files = [path for name in SOURCES for path in (ROOT / name, *(ROOT / name).rglob("*.[pch]*"))]
    return max(path.stat().st_mtime for path in files if path.suffix in (".py", ".c", ".h", ".toml"))


def _copy_bench() -> None:
    ignored = shutil.ignore_patterns("results", "node_modules", "__pycache__")
    shutil.copytree(ROOT / "bench", SITE / "bench", ignore=ignored, dirs_exist_ok=True)
    _run("-m", "compileall", "-q", str(SITE / "bench"))


def _run(*words: str) -> None:
    """A command of our Python. Raises SystemExit with what it has said, if it fails."""
    done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)} failed:\n{done.stdout}{done.stderr}")


def environment() -> dict[str, str]:
    """The variables of a subject: ours, without those that tell Python where modules are, or not to keep bytecode; the
    programs of our environment are found."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return kept | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"}
