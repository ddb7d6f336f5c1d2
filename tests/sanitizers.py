"""Runs tests/core so that a tool sees each access of the core to memory: `make asan`, `make valgrind`. Arguments behind
the name of the tool go to pytest.

asan: the core is built with the address and undefined-behaviour sanitizers. What they find ends the process that did
it, and so the run. Leaks of memory are not looked for: Python's own would hide ours, and the core allocates in one
place only; tests/core/test_threads.py has valgrind look for them in a life without Python.

valgrind: the core as it is, and Python with it, whose own findings are passed over: what counts is a report with a line
of the core in it. Left out are tests in which each descriptor counts, of which valgrind has some itself.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted(path.name for path in (ROOT / "csrc").glob("*.[ch]") if path.name != "_core.c")
SANITIZE = "-fsanitize=address,undefined"
FLAGS = f"{SANITIZE} -fno-sanitize-recover=all -fno-omit-frame-pointer -fno-wrapv -g -O1 -Werror"
# -s: what a tool writes in a process that it ends would be lost with pytest's capture.
PYTEST = ("-m", "pytest", "-q", "-s", "-p", "no:cacheprovider", "tests/core")
OTHER_TOOLS = ("model", "threads")
"""Tests that run tools themselves."""

LIMITS = "descriptor or birth or random_life or lost_connection or full_but or cannot_be_made or at_once or wake_up"
"""Tests with limits of descriptors, or of time, which valgrind changes."""


def build(copy: Path, flags: str, link_flags: str = "") -> None:
    """The tree, with a core that is built with these flags, in `copy`; the ordinary build is not touched."""
    ignore = shutil.ignore_patterns("*.so", "__pycache__", "build")
    for folder in ("csrc", "pyfanout", "tests"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=ignore)
    for file in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, copy)
    command = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
    subprocess.run(command, cwd=copy, env=os.environ | {"CORE_CFLAGS": flags, "LDFLAGS": link_flags}, check=True)


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


def run(copy: Path, environment: dict[str, str], without: Iterable[str], arguments: list[str], *by: str) -> int:
    """tests/core of the copy, run `by` a program."""
    environment |= {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}  # before the editable install
    ignored = [f"--ignore=tests/core/test_{name}.py" for name in without]
    command = [*by, sys.executable, *PYTEST, *ignored, *arguments]
    return subprocess.run(command, cwd=copy, env=os.environ | environment, check=False).returncode


def asan(copy: Path, arguments: list[str]) -> int:
    build(copy, FLAGS, SANITIZE)
    environment = {
        "LD_PRELOAD": f"{library('libasan.so')} {library('libubsan.so')}",
        # A child that was forked by a test ends with this code, too, and the test fails.
        "ASAN_OPTIONS": "detect_leaks=0:exitcode=99:detect_stack_use_after_return=1:check_initialization_order=1",
        "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1:exitcode=99",
    }
    return run(copy, environment, OTHER_TOOLS, arguments)


def valgrind(copy: Path, arguments: list[str]) -> int:
    build(copy, "-g -O1 -Werror")
    logs = copy / "logs"
    logs.mkdir()
    by = ["valgrind", "--quiet", "--leak-check=no", "--error-limit=no", f"--log-file={logs}/%p"]
    # malloc: valgrind cannot look into Python's own pools.
    code = run(copy, {"PYTHONMALLOC": "malloc"}, (*OTHER_TOOLS, "sweep"), ["-k", f"not ({LIMITS})", *arguments], *by)
    found = [report for log in logs.iterdir() for report in reports_on_the_core(log.read_text())]
    print(*found, sep="\n")
    print(f"valgrind: {len(found)} reports on the core in {len(list(logs.iterdir()))} processes")
    return code or len(found) > 0


def reports_on_the_core(log: str) -> list[str]:
    """Those of valgrind's that have a line of the core in them."""
    text = re.sub(r"^==\d+== ?", "", log, flags=re.M)
    return [report for report in text.split("\n\n") if any(f"({name}:" in report for name in SOURCES)]


TOOLS = {"asan": asan, "valgrind": valgrind}


def main(tool: str, *arguments: str) -> int:
    with tempfile.TemporaryDirectory(prefix="pyfanout-") as name:
        return TOOLS[tool](Path(name), list(arguments))


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
