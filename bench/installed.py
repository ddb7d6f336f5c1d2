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

from bench.field import PROGRAMS

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / ".bench"
HOME = FOLDER / "environment"
SITE = Path(sysconfig.get_path("purelib", scheme="venv", vars={"base": str(HOME)}))
OTHERS = SITE / "others.pth"
"""Names the packages of the bench's own environment, whose .pth files, an editable install's, are not read then. It is
written last."""
SOURCES = ("setup.py", "pyproject.toml", "pyfanout/**/*.py", "csrc/*.[chp]*")
"""Of the wheel: it is built again when one of them has changed."""


@functools.cache
def python() -> Path:
    """The interpreter of the environment, which is made, or made again if the tree has changed, once in a run."""
    changed = max(path.stat().st_mtime for pattern in SOURCES for path in ROOT.glob(pattern))
    if not OTHERS.exists() or OTHERS.stat().st_mtime < changed:
        shutil.rmtree(FOLDER, ignore_errors=True)
        venv.create(HOME, symlinks=True)
        _run("-m", "build", "--no-isolation", "--outdir", str(FOLDER / "wheel"), str(ROOT))
        (wheel,) = (FOLDER / "wheel").glob("*.whl")
        _run("-m", "pip", "--python", str(HOME), "install", "--no-deps", "--no-index", str(wheel))
        OTHERS.write_text(sysconfig.get_path("purelib") + "\n")
    ignored = shutil.ignore_patterns("results", "node_modules", "__pycache__")
    shutil.copytree(ROOT / "bench", SITE / "bench", ignore=ignored, dirs_exist_ok=True)
    _run("-m", "compileall", "-q", str(SITE / "bench"))
    return HOME / "bin" / "python"


def _run(*words: str) -> None:
    """A command of our Python. Raises SystemExit with what it has said, if it fails."""
    done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)} failed:\n{done.stdout}{done.stderr}")


def environment() -> dict[str, str]:
    """The variables of a subject: the bench's, without those that tell Python where modules are, or not to keep
    bytecode; programs of its environment are found."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")} | {"PATH": PROGRAMS}
