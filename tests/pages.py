"""A machine whose pages are larger than this one's, made up by pages.c."""

from __future__ import annotations

import mmap
import os
import subprocess
from pathlib import Path

import sanitizers

SIZES = [size for size in (16384, 65536) if size > mmap.PAGESIZE]
"""Of a page, in bytes: Raspberry Pi 5 and Asahi Linux; aarch64 with RHEL's 64k kernel, and ppc64le."""


def larger(folder: Path, page_bytes: int) -> dict[str, str]:
    """The environment of a process there. `folder` is for what is compiled."""
    library = folder / "pages.so"
    flags = ["-std=gnu11", "-Wall", "-Wextra", "-Werror", "-O1", "-fPIC", "-shared"]
    source = str(Path(__file__).with_name("pages.c"))
    subprocess.run([*sanitizers.compiler(), *flags, "-o", str(library), source, "-ldl"], check=True)
    preloaded = [*os.environ.get("LD_PRELOAD", "").split(), str(library)]  # a sanitizer wants to be the first
    return {"LD_PRELOAD": " ".join(preloaded), "PAGE_BYTES": str(page_bytes)}
