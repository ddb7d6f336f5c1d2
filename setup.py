"""Hands csrc/build.py to setuptools and tags the wheel abi3; all else is in pyproject.toml."""

import sysconfig

from setuptools import setup

FREE_THREADED = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))  # no limited API there

setup(
    cffi_modules=["csrc/build.py:ffibuilder"],
    options={} if FREE_THREADED else {"bdist_wheel": {"py_limited_api": "cp311"}},
)
