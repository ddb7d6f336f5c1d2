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


RECENT_NS = 2_000_000_000
"""How long after a kill a death is taken for its work: a large process needs that long to be gone."""


class OomKills:
    """Looked at in each round of pings, so that a kill of long ago explains no death of today."""

    def __init__(self, paths: tuple[Path, ...] = (_CGROUP_EVENTS, _VMSTAT)) -> None:
        self._path = next((path for path in paths if _kills(path) is not None), None)
        self._seen = 0
        self._seen = self._count()
        self._looked_ns: int | None = None
        self._last_ns: int | None = None
        """When one was noticed that came between two looks not far apart."""

    def look(self, now_ns: int) -> None:
        """Whether there are more by now."""
        before, self._seen = self._seen, self._count()
        fresh = self._looked_ns is not None and now_ns - self._looked_ns <= RECENT_NS
        self._looked_ns = now_ns
        if self._seen > before and fresh:
            self._last_ns = now_ns

    def happened(self, now_ns: int) -> bool:
        """Whether there was one just now."""
        self.look(now_ns)
        return self._last_ns is not None and now_ns - self._last_ns <= RECENT_NS

    def _count(self) -> int:
        kills = _kills(self._path) if self._path else None
        return self._seen if kills is None else kills  # unreadable for once: nothing new, now or at the next look
