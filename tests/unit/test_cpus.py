"""cpus: affinity and the quota of control groups, read from made-up trees."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pyfanout.host import cpus

V2 = "30 23 0:26 {root} /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = "33 31 0:30 {root} /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct\n"
V1_OTHER = "34 31 0:31 / /sys/fs/cgroup/cpuset rw,relatime - cgroup cgroup rw,cpuset\n"


@pytest.fixture(autouse=True)
def eight_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def v2(root: Path, path: str, mounted: str = "/", **limits: str) -> Path:
    """A v2 tree; `limits` are contents of cpu.max by folder below the mount, with `__` for `/`."""
    files = {"proc/self/cgroup": f"0::{path}\n", "proc/self/mountinfo": V2.format(root=mounted)}
    for folder, text in limits.items():
        files[f"sys/fs/cgroup/{folder.replace('__', '/').removeprefix('top')}/cpu.max"] = text
    return tree(root, files)


def test_affinity_when_there_is_no_proc(tmp_path: Path) -> None:
    assert cpus.available(tmp_path) == 8


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        ("200000 100000\n", 2),
        ("150000 100000\n", 2),  # 1.5 CPUs: rounded up
        ("10000 100000\n", 1),  # a tenth of one
        ("100001 100000\n", 2),
        ("1600000 100000\n", 8),  # more than the affinity
        ("max 100000\n", 8),
        ("", 8),
        ("nonsense\n", 8),
        ("1 2 3\n", 8),
        ("200000 0\n", 8),
        ("-1 100000\n", 8),
        ("2.5 1\n", 8),
    ],
)
def test_v2_quota(tmp_path: Path, limit: str, expected: int) -> None:
    assert cpus.available(v2(tmp_path, "/app", app=limit)) == expected


def test_v2_smallest_on_the_way_up_wins(tmp_path: Path) -> None:
    root = v2(tmp_path, "/a/b/c", a="300000 100000", a__b="200000 100000", a__b__c="500000 100000")
    assert cpus.available(root) == 2


def test_v2_a_limit_of_the_parent_counts_where_the_child_has_none(tmp_path: Path) -> None:
    assert cpus.available(v2(tmp_path, "/a/b", a="300000 100000", a__b="max 100000")) == 3


def test_v2_a_limit_at_the_mount_counts(tmp_path: Path) -> None:
    assert cpus.available(v2(tmp_path, "/", top="400000 100000")) == 4


def test_v2_siblings_do_not_count(tmp_path: Path) -> None:
    assert cpus.available(v2(tmp_path, "/a", a="max 100000", b="100000 100000")) == 8


def test_v2_container_without_namespace(tmp_path: Path) -> None:
    """The path is the host's, and the mount shows just that group: both begin alike."""
    root = v2(tmp_path, "/docker/1234", mounted="/docker/1234", top="200000 100000")
    assert cpus.available(root) == 2


@pytest.mark.parametrize("path", ["/docker/1234", "/../../other", "/gone (deleted)"])
def test_v2_path_that_is_not_below_the_mount(tmp_path: Path, path: str) -> None:
    assert cpus.available(v2(tmp_path, path, top="200000 100000")) == 2


def test_v2_folder_that_is_not_ours_to_read(tmp_path: Path) -> None:
    root = v2(tmp_path, "/a/b", a="200000 100000", a__b="100000 100000")
    limit = root / "sys/fs/cgroup/a/b/cpu.max"
    limit.unlink()
    limit.mkdir()  # fails to be read for root, too, which a mode of 0 does not
    assert cpus.available(root) == 2


def test_mount_point_with_a_blank(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "0::/\n",
        "proc/self/mountinfo": "30 23 0:26 / /my\\040groups rw - cgroup2 none rw\n",
        "my groups/cpu.max": "100000 100000\n",
    }
    assert cpus.available(tree(tmp_path, files)) == 1


def v1(root: Path, path: str, limits: dict[str, tuple[str, str]], mounted: str = "/") -> Path:
    files = {
        "proc/self/cgroup": f"5:cpuset:/elsewhere\n4:cpu,cpuacct:{path}\n1:name=systemd:/x\n",
        "proc/self/mountinfo": V1_OTHER + V1.format(root=mounted),
    }
    for folder, (quota, period) in limits.items():
        files[f"sys/fs/cgroup/cpu,cpuacct{folder}/cpu.cfs_quota_us"] = quota
        files[f"sys/fs/cgroup/cpu,cpuacct{folder}/cpu.cfs_period_us"] = period
    return tree(root, files)


@pytest.mark.parametrize(
    ("quota", "period", "expected"),
    [
        ("250000\n", "100000\n", 3),
        ("-1\n", "100000\n", 8),
        ("50000\n", "50000\n", 1),
        ("0\n", "100000\n", 8),
        ("100000\n", "0\n", 8),
        ("many\n", "100000\n", 8),
        ("100000\n", "", 8),
    ],
)
def test_v1_quota(tmp_path: Path, quota: str, period: str, expected: int) -> None:
    assert cpus.available(v1(tmp_path, "/app", {"/app": (quota, period)})) == expected


def test_v1_parents_and_namespaces(tmp_path: Path) -> None:
    limits = {"": ("-1", "100000"), "/a": ("200000", "100000"), "/a/b": ("700000", "100000")}
    assert cpus.available(v1(tmp_path, "/a/b", limits)) == 2
    assert cpus.available(v1(tmp_path / "n", "/docker/12", {"": ("300000", "100000")})) == 3


def test_hybrid_takes_the_smaller(tmp_path: Path) -> None:
    root = v1(tmp_path, "/app", {"/app": ("500000", "100000")})
    tree(
        root,
        {
            "proc/self/cgroup": "4:cpu,cpuacct:/app\n0::/app\n",
            "proc/self/mountinfo": V1.format(root="/")
            + "41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n",
            "sys/fs/cgroup/unified/app/cpu.max": "300000 100000\n",
        },
    )
    assert cpus.available(root) == 3


@pytest.mark.parametrize(
    "garbage", ["", "\n\n", "x", ":::::", "1 2 3 4 5 6 7", " - ", " - cgroup2", "0::", "\udcff\0 - cgroup2 x"]
)
def test_malformed_files_set_no_limit(tmp_path: Path, garbage: str) -> None:
    root = tree(tmp_path, {})
    (root / "proc/self").mkdir(parents=True)
    for name in ("cgroup", "mountinfo"):
        (root / "proc/self" / name).write_text(garbage, errors="surrogateescape")
    assert cpus.available(root) == 8


def test_the_affinity_binds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 5})
    assert cpus.available(v2(tmp_path, "/app", app="400000 100000")) == 2


def test_this_machine() -> None:
    assert 1 <= cpus.available() <= 8


def test_a_sandbox_that_does_not_tell_the_affinity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(pid: int) -> set[int]:
        raise PermissionError

    monkeypatch.setattr(os, "sched_getaffinity", refuse)
    monkeypatch.setattr(os, "cpu_count", lambda: 5)
    assert cpus.available(tmp_path) == 5
