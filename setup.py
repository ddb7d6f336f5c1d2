"""Hands csrc/build.py to setuptools, tags the wheel abi3, and makes the README's links absolute, for pages that show it
without the tree; all else is in pyproject.toml."""

import re
import shutil
import sys
import sysconfig
import tomllib
from pathlib import Path

from setuptools import setup
from setuptools.command.build_ext import build_ext

HERE = Path(__file__).parent
FREE_THREADED = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))  # no limited API there


class BuildCore(build_ext):
    """Says in one line what is missing; a compiler would print many lines, or none."""

    def build_extensions(self) -> None:
        if sys.platform != "linux":
            raise SystemExit("pyfanout runs on Linux only: other systems cannot pass connections as it does")
        compiler = self.compiler.compiler[0]
        if not shutil.which(compiler):
            raise SystemExit(f"pyfanout: no C compiler ({compiler}): install one (apt install gcc), or set CC")
        headers = Path(sysconfig.get_path("include"), "Python.h")
        if not headers.exists():
            raise SystemExit(f"pyfanout: no {headers}: install Python's headers (apt install python3-dev)")
        super().build_extensions()


def absolute(readme: str) -> str:
    """The README with absolute links to the published tree."""
    source = tomllib.loads((HERE / "pyproject.toml").read_text())["project"]["urls"]["Source"]
    pictures = re.sub(r"(!\[[^]]*\])\((?!https?:)([^)]+)\)", rf"\1({source}/raw/main/\2)", readme)
    return re.sub(r"\]\((?!https?:|#)([^)]+)\)", rf"]({source}/blob/main/\1)", pictures)


setup(
    cmdclass={"build_ext": BuildCore},
    cffi_modules=["csrc/build.py:ffibuilder"],
    long_description=absolute((HERE / "README.md").read_text()),
    long_description_content_type="text/markdown",
    options={} if FREE_THREADED else {"bdist_wheel": {"py_limited_api": "cp311"}},
)
