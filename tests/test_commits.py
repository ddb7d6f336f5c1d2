"""The check of commit messages finds what it should, and needs no history."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import commits
import pytest

BODY = "\n\nThe reason.\n"
GOOD = f"core: the ring is full{BODY}"


@pytest.mark.parametrize(
    ("message", "fault"),
    [
        (f"core: {'x' * 67}{BODY}", "its subject has 73 characters; at most 72"),
        (f"The ring is full{BODY}", "its subject is not `area: what`"),
        (f"A sentence, with a colon: not so{BODY}", "its subject is not `area: what`"),
        (f"core:{BODY}", "its subject is not `area: what`"),
        (f"core: the ring\nis full{BODY}", "no empty line follows its subject"),
        ("core: the ring is full\n", "it has no body, which says why"),
        ("core: the ring is full\n\nSigned-off-by: A <a@b>\n", "it has no body, which says why"),
    ],
)
def test_a_fault_is_found(message: str, fault: str) -> None:
    assert list(commits.faults(message)) == [fault]


@pytest.mark.parametrize("area", ["core", "log, errors", "master/signals.py", "CONTRIBUTING", "worker.py, test_x"])
def test_a_good_message_has_none(area: str) -> None:
    message = f"{area}: {'x' * (70 - len(area))}{BODY}"
    assert list(commits.faults(message)) == []


def git(folder: Path, *words: str) -> str:
    """Whatever git is configured to do here."""
    names = {f"GIT_{role}_{what}": "a@b" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    environ = os.environ | names | {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
    done = subprocess.run(["git", *words], cwd=folder, env=environ, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def commit(folder: Path, message: str) -> str:
    git(folder, "commit", "--quiet", "--allow-empty", f"--message={message}")
    return git(folder, "rev-parse", "HEAD")


@pytest.fixture
def history(tmp_path: Path) -> tuple[Path, str]:
    """A repository, and the commit after which its messages are good; that itself has a bad one."""
    folder = tmp_path / "tree"
    folder.mkdir()
    git(folder, "init", "--quiet", "--initial-branch=main")
    since = commit(folder, "Start")
    commit(folder, GOOD)
    return folder, since


def test_only_commits_since_then_are_checked(history: tuple[Path, str], capsys: pytest.CaptureFixture[str]) -> None:
    folder, since = history
    assert commits.main(folder, since) == 0
    assert capsys.readouterr().out == ""
    bad = commit(folder, "no area")
    commit(folder, GOOD)
    assert commits.main(folder, since) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(" (no area): ")[2] for line in lines] == [
        "its subject is not `area: what`",
        "it has no body, which says why",
    ]
    assert all(bad.startswith(line.split()[1]) for line in lines)


def test_a_merge_is_not_checked(history: tuple[Path, str]) -> None:
    folder, since = history
    git(folder, "switch", "--quiet", "--create=side", since)
    commit(folder, GOOD)
    git(folder, "merge", "--quiet", "--no-ff", "--message=Merge", "main")
    assert commits.main(folder, since) == 0


def test_where_there_is_no_history(history: tuple[Path, str], capsys: pytest.CaptureFixture[str]) -> None:
    """In a shallow clone, in an sdist, in one inside another repository, and without git."""
    folder, since = history
    commit(folder, "bad")
    shallow = folder.parent / "shallow"
    git(folder, "clone", "--quiet", "--depth=1", folder.as_uri(), str(shallow))
    (folder / "inner").mkdir()
    plain = folder.parent / "plain"
    shutil.copytree(folder, plain, ignore=shutil.ignore_patterns(".git"))
    for place in (shallow, plain, folder / "inner"):
        assert commits.main(place, since) == 0
        (line,) = capsys.readouterr().out.splitlines()
        assert line.startswith("commits are not checked: ")


def test_without_git(
    history: tuple[Path, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, since = history
    monkeypatch.setenv("PATH", "")
    assert commits.main(folder, since) == 0
    assert capsys.readouterr().out == "commits are not checked: git is not installed\n"
