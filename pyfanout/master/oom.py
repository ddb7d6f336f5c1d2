"""Whether the kernel's OOM killer was at work: what makes of a SIGKILL from nowhere a cause in words."""

from __future__ import annotations

from pathlib import Path

_CGROUP_EVENTS = Path("/sys/fs/cgroup/memory.events")
"""Of our own cgroup, in a container with cgroup v2: `oom_kill` counts its processes alone."""

_VMSTAT = Path("/proc/vmstat")
"""The same of the whole machine."""


def _kills(path: Path) -> int | None:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), None)


class OomKills:
    """Remembers how many there were."""

    def __init__(self, paths: tuple[Path, ...] = (_CGROUP_EVENTS, _VMSTAT)) -> None:
        self._path = next((path for path in paths if _kills(path) is not None), None)
        self._seen = self._count()

    def happened(self) -> bool:
        """Whether there were more since this was asked last, or since birth."""
        before, self._seen = self._seen, self._count()
        return self._seen > before

    def _count(self) -> int:
        return (_kills(self._path) or 0) if self._path else 0
