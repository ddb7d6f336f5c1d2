"""The messages of commits, as CONTRIBUTING.md wants them: `make lint` checks those since SINCE.

Where there is no history, as in a shallow clone or in an sdist, it says so and finds no fault.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

SINCE = "9b42537106cc74dfb55e77cc650fca8ead27c167"
"""The last commit that is not checked."""

MOST = 72
"""Characters of a subject."""

_WORD = r"[\w.*/+-]+"
_SUBJECT = re.compile(rf"{_WORD}(, {_WORD})*: \S")
_TRAILER = re.compile(r"[A-Z][a-z-]+-by: ")


class NoHistoryError(Exception):
    """Why no commit can be looked at."""


def faults(message: str) -> Iterator[str]:
    subject, *rest = message.rstrip("\n").split("\n")
    if len(subject) > MOST:
        yield f"its subject has {len(subject)} characters; at most {MOST}"
    if not _SUBJECT.match(subject):
        yield "its subject is not `area: what`"
    if rest and rest[0]:
        yield "no empty line follows its subject"
    if not any(line and not _TRAILER.match(line) for line in rest):
        yield "it has no body, which says why"


def _git(root: Path, *words: str) -> str:
    try:
        done = subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=True)
    except FileNotFoundError:
        raise NoHistoryError("git is not installed") from None
    except subprocess.CalledProcessError as error:
        raise NoHistoryError(error.stderr.strip().partition("\n")[0] or f"git {' '.join(words)} fails") from None
    return done.stdout


def messages(root: Path, since: str) -> Iterator[tuple[str, str]]:
    """The short name and the message of each commit after `since`, newest first, without merges."""
    top = _git(root, "rev-parse", "--show-toplevel").removesuffix("\n")
    if Path(top).resolve() != root.resolve():
        raise NoHistoryError(f"{root} is a part of another repository")
    if not _git(root, "rev-list", "--max-count=1", "--ignore-missing", since):
        raise NoHistoryError(f"{since[:10]} is not in this clone")
    for each in _git(root, "log", "-z", "--no-merges", "--format=%h %B", f"{since}..HEAD").split("\0"):
        if each:
            name, _, message = each.partition(" ")
            yield name, message


def main(root: Path = ROOT, since: str = SINCE) -> int:
    """The exit code."""
    try:
        found = [(name, text, fault) for name, text in messages(root, since) for fault in faults(text)]
    except NoHistoryError as reason:
        print(f"commits are not checked: {reason}")
        return 0
    for name, text, fault in found:
        print(f"commit {name} ({text.splitlines()[0]}): {fault}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
