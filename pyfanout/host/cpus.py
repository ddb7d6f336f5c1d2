"""How many CPUs this process may use: what `workers="auto"` means.

Owns the reading of CPU affinity and of the cgroup quota (v2 and v1). Does not count the machine, unless a sandbox
refuses to tell the affinity: `os.cpu_count()` ignores both and starts 48 workers in a container that was given two
CPUs. Called by `config` only.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath


def available(root: Path = Path("/")) -> int:
    """CPUs by affinity or by cgroup quota, whichever is less; a quota of 1.5 CPUs counts as 2; at least 1.

    `root` is where /proc and the mounts of the control groups are looked for; tests give a made-up tree. A
    file that is missing or cannot be understood sets no limit.
    """
    return max(1, min([_by_affinity(), *_quotas(root)]))


def _by_affinity() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except OSError:  # a sandbox
        return os.cpu_count() or 1


def _quotas(root: Path) -> Iterator[int]:
    """The quota in whole CPUs of every control group above this process that sets one; the smallest binds."""
    with suppress(OSError):  # no /proc or no control groups: no quota
        paths = _own_groups(_read(root / "proc/self/cgroup"))
        for mount in _mounts(_read(root / "proc/self/mountinfo")):
            path = paths.get(mount.version)
            if path is None:
                continue
            top = root / mount.point.lstrip("/")
            group = _folder(top, mount.root, path)
            for folder in (group, *group.parents):
                with suppress(OSError, ValueError):  # this group sets no quota, or one we do not understand
                    yield _quota(folder, mount.version)
                if folder == top:
                    break


@dataclass(frozen=True, slots=True)
class _Mount:
    version: int  # 1 or 2
    root: str  # the control group that is mounted: "/", or the container's own if it has no cgroup namespace
    point: str  # where it is mounted


def _own_groups(text: str) -> dict[int, str]:
    """The path of this process in the v2 hierarchy and in v1's cpu hierarchy, by version.

    Lines of /proc/self/cgroup are `number:controllers:path`; v2 is the line `0::path`. See cgroups(7).
    """
    paths: dict[int, str] = {}
    for line in text.splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            paths[2] = path
        elif "cpu" in controllers.split(","):
            paths[1] = path
    return paths


def _mounts(text: str) -> Iterator[_Mount]:
    """The mounts of /proc/self/mountinfo that hold a CPU quota.

    A line is `id parent device root point options [tags...] - type source options`. See proc(5).
    """
    for line in text.splitlines():
        left, _, right = line.partition(" - ")
        fields, (kind, _, options) = left.split(" "), [*right.split(" "), "", "", ""][:3]
        if len(fields) < 6:
            continue
        if kind == "cgroup2" or (kind == "cgroup" and "cpu" in options.split(",")):
            yield _Mount(2 if kind == "cgroup2" else 1, _unescape(fields[3]), _unescape(fields[4]))


def _folder(top: Path, root: str, path: str) -> Path:
    """The folder of the control group `path` in the mount at `top` that shows `root`.

    In a container the path may be that of the host, which is not below the mount; then the mount's own root
    is the best known.
    """
    with suppress(ValueError):  # not below what is mounted
        relative = PurePosixPath(path).relative_to(root)
        if ".." not in relative.parts and (top / relative).is_dir():
            return top / relative
    return top


def _quota(folder: Path, version: int) -> int:
    """The quota of one control group in whole CPUs, rounded up. ValueError if it has none."""
    if version == 2:
        quota, period = map(int, _read(folder / "cpu.max").split())  # "max 100000" if unlimited
    else:
        quota = int(_read(folder / "cpu.cfs_quota_us"))  # -1 if unlimited
        period = int(_read(folder / "cpu.cfs_period_us"))
    if quota <= 0 or period <= 0:
        raise ValueError("no quota")
    return -(-quota // period)


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="surrogateescape")


def _unescape(text: str) -> str:
    r"""Undo the kernel's `\040` for a blank in a path."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)
