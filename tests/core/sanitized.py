"""Builds the core with the address and undefined-behaviour sanitizers and runs tests/core with it: `make asan`.

Works on a copy of the tree in a temporary directory; the ordinary build is not touched. Arguments go to pytest.
What the sanitizers find ends the process that did it, and so the run. Leaks of memory are not looked for: Python's own
would hide ours, and the core allocates in one place only.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SANITIZE = "-fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer -fno-wrapv -g -O1 -Werror"


def compiler() -> list[str]:
    """The one that Python was built with, unless CC names another."""
    return (os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc").split()


def library(name: str) -> str:
    """The path of one of the compiler's own libraries."""
    found = subprocess.run([*compiler(), f"-print-file-name={name}"], check=True, capture_output=True, text=True)
    path = found.stdout.strip()
    if not os.path.isabs(path):
        raise SystemExit(f"{' '.join(compiler())} has no {name}: install it, or set CC")
    return path


def main(arguments: list[str]) -> int:
    with tempfile.TemporaryDirectory(prefix="pyfanout-asan-") as name:
        copy = Path(name)
        ignore = shutil.ignore_patterns("*.so", "__pycache__", "build")
        for folder in ("csrc", "pyfanout", "tests"):
            shutil.copytree(ROOT / folder, copy / folder, ignore=ignore)
        for file in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(ROOT / file, copy)
        build = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
        built = {"CORE_CFLAGS": SANITIZE, "LDFLAGS": "-fsanitize=address,undefined"}
        subprocess.run(build, cwd=copy, env=os.environ | built, check=True)
        sanitizers = {
            "LD_PRELOAD": f"{library('libasan.so')} {library('libubsan.so')}",
            # A child that was forked by a test ends with this code, too, and the test fails.
            "ASAN_OPTIONS": "detect_leaks=0:exitcode=99:detect_stack_use_after_return=1:check_initialization_order=1",
            "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1:exitcode=99",
            "PYTHONPATH": name,  # before the editable install
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        # -s: what a sanitizer writes in a process that it ends would be lost with pytest's capture.
        run = [sys.executable, "-m", "pytest", "-q", "-s", "-p", "no:cacheprovider", "tests/core", *arguments]
        run += [f"--ignore=tests/core/test_{name}.py" for name in ("model", "threads")]  # they run other tools
        return subprocess.run(run, cwd=copy, env=os.environ | sanitizers, check=False).returncode


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
