"""Builds the extension module pyfanout._core with cffi (out of line, API mode).

The cdef is cut out of fanout.h, so the two cannot drift apart. setup.py names `ffibuilder`; run by hand, this file
only writes the generated C (`python csrc/build.py`).
"""

import os
from pathlib import Path

from cffi import FFI

HERE = Path(__file__).parent
SOURCES = (
    "core.c",
    "loop.c",
    "dispatch.c",
    "accept.c",
    "route.c",
    "seat.c",
    "channel.c",
    "events.c",
    "take.c",
    "turns.c",
    "linger.c",
    "scoreboard.c",
    "process.c",
)
HEADERS = ("fanout.h", "core.h", "state.h", "os.h")


def cdef_of(header: str) -> str:
    """The declarations between the two markers of fanout.h."""
    return header.split("/* cdef: begin */")[1].split("/* cdef: end */", maxsplit=1)[0]


ffibuilder = FFI()
ffibuilder.cdef(cdef_of((HERE / "fanout.h").read_text()))
ffibuilder.set_source(
    "pyfanout._core",
    '#include "fanout.h"',
    sources=[os.path.relpath(HERE / name) for name in SOURCES],  # setuptools refuses absolute paths
    depends=[os.path.relpath(HERE / name) for name in HEADERS],  # without it an edited header rebuilds nothing
    include_dirs=[os.path.relpath(HERE)],
    # Python's own flags define NDEBUG; the asserts state what only our own bug can break, and stay on.
    undef_macros=["NDEBUG"],
    extra_compile_args=[
        "-std=gnu11",
        "-O2",
        "-Wall",
        "-Wextra",
        "-fvisibility=hidden",
        *os.environ.get("CORE_CFLAGS", "").split(),  # CI: -Werror
    ],
    py_limited_api=True,
)

if __name__ == "__main__":
    ffibuilder.emit_c_code("_core.c")
