"""A process is "it", and a sentence of the documents has a subject. Only a guard: it finds the words of a relapse."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
DOCUMENTS = [*(ROOT / "docs").glob("*.md"), *(ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "CHANGELOG"))]
DOCUMENTS += [ROOT / "bench/README.md"]
PERSONS = re.compile(r"\b(who|whom|whoever|he|him|his|(?:no|some|every|any)body|of ours|of theirs)\b", re.I)
CODE = re.compile(r"^```.*?^```|^    .*?$|``.*?``|`[^`]*`", re.S | re.M)


def persons(text: str) -> Iterator[str]:
    """Lines in which a process would be a person. Code, and quoted lines of the log, are left out."""
    for line in CODE.sub(lambda found: "\n" * found[0].count("\n"), text).splitlines():
        if PERSONS.search(line):
            yield line


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_process_is_a_person(document: Path) -> None:
    assert list(persons(document.read_text())) == []


@pytest.mark.parametrize("sentence", ["It serves while nobody waits.", "Who is hung leaves.", "a stop of ours"])
def test_a_person_is_found(sentence: str) -> None:
    assert list(persons(f"A worker, whose client waits.\n\n{sentence}\n")) == [sentence]


def test_code_is_left_out() -> None:
    text = "`--who NAME` of `bench`\n\n```sh\nwho  # is here\n```\n\n    who | wc\n\nThe end: nobody.\n"
    assert list(persons(text)) == ["The end: nobody."]
